"""The conformance laws with speculation on, over drawn set-ups of every drafter and length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from simulator.engine import run
from simulator.recorder import COMPLETED, REJECTED, UNFINISHED, Result
from simulator.schedulers import SCHEDULERS
from simulator.speculation import NGram, NoSpeculation, Speculation
from tests.simulator.draws import COMBINATIONS, Draw, draw
from tests.simulator.outcomes import BOOKED, Dynamic
from tests.simulator.speculating import speculating_draws, with_speculation
from tests.simulator.watch import Audited, difference, is_cut, run_audited, span_rows

# Drafts need pages on demand, that nobody swaps, and answers that end one by one: see
# `engine.prepare`.
POLICIES = [
    each
    for each in COMBINATIONS
    if each[2] in ("paged", "prefix_caching")
    and each[1] != "llumnix"
    and not getattr(SCHEDULERS[each[0]], "runs_to_completion", False)
    and not hasattr(SCHEDULERS[each[0]], "switch_space")
]
NUM_DRAWS = 12  # of each
every_policy = pytest.mark.parametrize("policies", POLICIES, ids="-".join)


@dataclass(frozen=True)
class Outcome:
    draw: Draw
    result: Result
    audits: list[Audited]


@cache
def outcomes(policies: tuple[str, str, str]) -> list[Outcome]:
    found = []
    for drawn in speculating_draws(*policies, NUM_DRAWS):
        audits: list[Audited] = []
        result = run_audited(drawn.setup, audits)
        found.append(Outcome(drawn, result, audits))
    return found


@every_policy
def test_two_runs_are_identical_and_stepping_changes_nothing(
    policies: tuple[str, str, str],
) -> None:
    for each in outcomes(policies):
        stepped = run(replace(each.draw.setup, coalesce=False))
        assert difference(each.result, stepped) == "", each.draw.name
        for a, b in zip(each.result.lanes, stepped.lanes, strict=True):
            assert a.speculation is not None
            assert b.speculation is not None
            busy = [lane.segments["num_decode"] > 0 for lane in (a, b)]
            for name, column in a.speculation.items():
                other = b.speculation[name][busy[1]]
                assert np.array_equal(column[busy[0]], other), (each.draw.name, name)


@every_policy
def test_dealing_arrivals_before_the_run_changes_nothing(policies: tuple[str, str, str]) -> None:
    for each in outcomes(policies):
        setup = each.draw.setup
        if not setup.router.is_static or not setup.table.is_open_loop:
            continue
        dynamic = run(replace(setup, router=Dynamic(setup.router)))
        assert difference(each.result, dynamic, but=BOOKED) == "", each.draw.name


@every_policy
def test_every_request_is_completed_rejected_or_cut(policies: tuple[str, str, str]) -> None:
    for each in outcomes(policies):
        status = each.result.status
        assert np.isin(status, (COMPLETED, REJECTED, UNFINISHED)).all(), each.draw.name
        if not is_cut(each.draw.setup):
            assert not (status == UNFINISHED).any(), each.draw.name
        assert np.array_equal(each.result.finish_ns >= 0, status == COMPLETED), each.draw.name


@every_policy
def test_pages_are_conserved(policies: tuple[str, str, str]) -> None:
    for each in outcomes(policies):
        for audit, total in zip(each.audits, each.result.num_blocks, strict=True):
            if not is_cut(each.draw.setup):
                assert (audit.taken, audit.free_pages) == (0, total), each.draw.name


@every_policy
def test_tokens_given_are_the_tokens_asked_for(policies: tuple[str, str, str]) -> None:
    for each in outcomes(policies):
        result, table = each.result, each.draw.table
        if is_cut(each.draw.setup):
            continue
        given = sum(int(lane.segments["sampled"].sum()) for lane in result.lanes)
        assert given == table.output_tokens[result.completed].sum(), each.draw.name


@every_policy
def test_deliveries_are_as_many_as_drafts_allow(policies: tuple[str, str, str]) -> None:
    """Each delivery holds one to k + 1 tokens; first and last are at the recorded times."""
    for each in outcomes(policies):
        result = each.result
        speculation = each.draw.setup.kinds[0].speculation
        assert speculation is not None
        most = speculation.policy.num_speculative_tokens + 1
        rows = span_rows(result)
        for request in np.flatnonzero(result.completed).tolist():
            mine = rows[rows[:, 0] == request]
            deliveries = int((mine[:, 3] - mine[:, 2] + 1).sum())
            tokens = int(each.draw.table.output_tokens[request])
            assert deliveries <= tokens, each.draw.name
            assert tokens <= 1 + (deliveries - 1) * most + int(result.preemptions[request])
            ends = [result.lanes[lane].end_ns[last] for _, lane, _, last in mine.tolist()]
            assert max(ends) == result.finish_ns[request]
            starts = [result.lanes[lane].end_ns[first] for _, lane, first, _ in mine.tolist()]
            assert min(starts) == result.first_token_ns[request]


@every_policy
def test_budget_and_slots_hold_with_drafts(policies: tuple[str, str, str]) -> None:
    for each in outcomes(policies):
        cost = each.draw.setup.kinds[0].cost
        for lane in each.result.lanes:
            assert lane.speculation is not None
            tokens = lane.segments["num_decode"] + lane.segments["prefill_tokens"]
            assert (tokens + lane.speculation["draft_tokens"] <= cost.max_num_tokens).all()
            assert (lane.speculation["accepted_tokens"] <= lane.speculation["draft_tokens"]).all()
            assert (lane.speculation["drafts"] <= lane.segments["num_decode"]).all()
            assert (np.diff(lane.end_ns) > 0).all(), each.draw.name


@every_policy
def test_causes_come_before_effects(policies: tuple[str, str, str]) -> None:
    for each in outcomes(policies):
        result, done = each.result, each.result.completed
        assert (result.scheduled_ns >= result.sent_ns)[done].all(), each.draw.name
        assert (result.first_token_ns > result.scheduled_ns)[done].all(), each.draw.name
        assert (result.finish_ns >= result.first_token_ns)[done].all(), each.draw.name


@every_policy
def test_the_speculating_lane_without_drafts_is_the_plain_lane(
    policies: tuple[str, str, str],
) -> None:
    """The array sibling against the decode calendar: every time and page, to the nanosecond."""
    never = Speculation(drafter=NGram(host_s=0.0), length=NoSpeculation())
    compared = 0
    for number in range(24):
        drawn = draw(*policies, number)
        if drawn.setup.kinds[0].num_lanes > 1:
            continue
        plain, ragged = run(drawn.setup), run(with_speculation(drawn.setup, never))
        assert difference(plain, ragged, but=BOOKED) == "", drawn.name
        compared += 1
    assert compared > 8


def test_the_draws_contain_what_they_are_for() -> None:
    each = [outcome for policies in POLICIES for outcome in outcomes(policies)]
    lanes = [lane for outcome in each for lane in outcome.result.lanes]
    tables = [lane.speculation for lane in lanes if lane.speculation is not None]
    assert len(tables) == len(lanes) >= 100
    assert sum(int(x["accepted_tokens"].sum()) for x in tables) > 5_000
    assert sum(int((x["drafts"] == 0).sum()) for x in tables) > 1_000
    assert sum(int(outcome.result.preemptions.sum()) for outcome in each) > 100
    assert sum(int((outcome.result.cached_tokens > 0).sum()) for outcome in each) > 100
    assert sum(outcome.draw.setup.kinds[0].num_ranks > 1 for outcome in each) > 10
