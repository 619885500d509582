"""Laws every registered policy obeys, over set-ups drawn for each combination of policies."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import FrameType
from typing import Any

import numpy as np
import pytest

from simulator import cluster
from simulator.engine import run
from simulator.recorder import COMPLETED, REJECTED, UNFINISHED, LaneResult
from simulator.request import Sequence
from simulator.schedulers import VllmV1
from simulator.setup import welcome
from tests.simulator.draws import draw
from tests.simulator.outcomes import Outcome, every_combination, outcomes
from tests.simulator.toys import toy_setup, toy_table
from tests.simulator.watch import (
    Planned,
    Watched,
    difference,
    is_cut,
    iterations,
    token_ns,
)

# --- conservation -------------------------------------------------------------------------------


@every_combination
def test_every_request_is_completed_rejected_or_cut(policies: tuple[str, str, str]) -> None:
    for each in outcomes(policies):
        status = each.result.status
        assert np.isin(status, (COMPLETED, REJECTED, UNFINISHED)).all(), each.draw.name
        if not is_cut(each.setup):
            assert not (status == UNFINISHED).any(), each.draw.name
        finished = each.result.finish_ns >= 0
        assert np.array_equal(finished, status == COMPLETED), each.draw.name
        assert (each.result.finish_ns <= each.setup.horizon_ns).all(), each.draw.name


@every_combination
def test_rejected_are_exactly_the_requests_that_can_never_fit(
    policies: tuple[str, str, str],
) -> None:
    for each in outcomes(policies):
        kind = each.setup.kinds[0]
        longest = each.setup.scheduler.longest_context(kind.cost.max_num_tokens)
        most = min(kind.max_kv_tokens, longest) + 1  # the last token needs no KV
        total = each.table.prompt_tokens + each.table.output_tokens
        misfits = total > min(most, each.setup.max_model_len or most)
        others = welcome(each.setup)
        if others is not None:
            misfits |= ~others
        assert np.array_equal(each.result.status == REJECTED, misfits), each.draw.name
        assert (each.result.target[misfits] == -1).all(), each.draw.name


def waits_for_the_batch(each: Outcome) -> bool:
    """Answers are returned with the longest of their batch, and computed on until then."""
    return getattr(each.setup.scheduler, "runs_to_completion", False)


@every_combination
def test_token_spans_hold_every_output_token_once(policies: tuple[str, str, str]) -> None:
    for each in outcomes(policies):
        result = each.result
        times = token_ns(result)
        given = np.array([len(tokens) for tokens in times])
        done = result.completed
        assert np.array_equal(given[done], each.table.output_tokens[done]), each.draw.name
        assert (given <= each.table.output_tokens).all(), each.draw.name
        for i in np.flatnonzero(done).tolist():
            assert (np.diff(times[i]) > 0).all(), (each.draw.name, i)
            assert times[i][0] == result.first_token_ns[i], (each.draw.name, i)
            if waits_for_the_batch(each):
                assert times[i][-1] <= result.finish_ns[i], (each.draw.name, i)
            else:
                assert times[i][-1] == result.finish_ns[i], (each.draw.name, i)


@every_combination
def test_iterations_compute_each_token_once_and_preempted_ones_again(
    policies: tuple[str, str, str],
) -> None:
    for each in outcomes(policies):
        if is_cut(each.setup):
            continue
        result, done = each.result, each.result.completed
        logs = [iterations(lane) for lane in result.lanes]
        sampled = sum(int(log["sampled"].sum()) for log in logs)
        padding = sampled - each.table.output_tokens[done].sum()
        assert padding >= 0 if waits_for_the_batch(each) else padding == 0, each.draw.name
        prefilled = sum(int(log["prefill_tokens"].sum()) for log in logs)
        missing = int((each.table.prompt_tokens - result.cached_tokens)[done].sum())
        if result.preemptions.any():
            assert prefilled >= missing, each.draw.name
        else:
            assert prefilled == missing, each.draw.name


@every_combination
def test_pages_are_conserved(policies: tuple[str, str, str]) -> None:
    """`Audited` checks taken + free == total at every gift and return; here, the end."""
    for each in outcomes(policies):
        assert len(each.audits) == len(each.result.num_blocks)
        for audit, total in zip(each.audits, each.result.num_blocks, strict=True):
            assert audit.num_pages == total
            if not is_cut(each.setup):
                assert (audit.taken, audit.free_pages) == (0, total), each.draw.name
        for lane in each.result.lanes:
            used = lane.segments["used_blocks"]
            assert ((used > 0) & (used <= each.result.num_blocks[lane.rank]))[
                lane.segments["num_decode"] + lane.segments["num_prefill"] > 0
            ].all(), each.draw.name


# --- causality ----------------------------------------------------------------------------------


@every_combination
def test_causes_come_before_effects(policies: tuple[str, str, str]) -> None:
    for each in outcomes(policies):
        result, done = each.result, each.result.completed
        assert (result.sent_ns >= each.table.arrival_ns)[done].all(), each.draw.name
        assert (result.scheduled_ns >= result.sent_ns)[done].all(), each.draw.name
        assert (result.first_token_ns > result.scheduled_ns)[done].all(), each.draw.name
        assert (result.finish_ns >= result.first_token_ns)[done].all(), each.draw.name
        assert (result.cached_tokens < each.table.prompt_tokens).all(), each.draw.name


@every_combination
def test_iterations_of_a_lane_follow_one_another(policies: tuple[str, str, str]) -> None:
    for each in outcomes(policies):
        for lane in each.result.lanes:
            assert (np.diff(lane.end_ns) > 0).all(), each.draw.name
            repeats = lane.segments["iterations"]
            assert repeats.sum() == len(lane.end_ns), each.draw.name
            first = np.cumsum(repeats) - repeats
            assert (lane.segment_start_ns < lane.end_ns[first]).all(), each.draw.name
            assert (lane.segment_start_ns[1:] >= lane.end_ns[first[1:] - 1]).all(), each.draw.name


@every_combination
def test_clients_wait_for_answers_and_for_their_limit(policies: tuple[str, str, str]) -> None:
    for each in outcomes(policies):
        table, result = each.table, each.result
        answered = np.where(result.status == REJECTED, result.sent_ns, result.finish_ns)
        sent = result.sent_ns >= 0
        if table.parent is not None and table.delay_ns is not None:
            child = np.flatnonzero((table.parent >= 0) & sent)
            earliest = answered[table.parent[child]] + table.delay_ns[child]
            assert (answered[table.parent[child]] >= 0).all(), each.draw.name
            assert (result.sent_ns[child] >= earliest).all(), each.draw.name
        if table.max_concurrency:
            starts = result.sent_ns[sent & (result.status != REJECTED)]
            ends = answered[(answered >= 0) & (result.status != REJECTED)]
            in_flight = [int((starts <= t).sum() - (ends < t).sum()) for t in starts]
            assert max(in_flight, default=0) <= table.max_concurrency, each.draw.name


# --- work and plans -----------------------------------------------------------------------------


@every_combination
def test_replica_with_work_is_never_idle(policies: tuple[str, str, str]) -> None:
    for each in outcomes(policies):
        result = each.result
        lead_ns = 0 if each.setup.lead_ns is None else each.setup.lead_ns
        replicas = [
            [lane for lane in result.lanes if lane.replica == number]
            for number in sorted({lane.replica for lane in result.lanes})
        ]
        for lanes in replicas:
            mine = np.isin(result.target, [lane.rank for lane in lanes])
            left = np.where(result.finish_ns < 0, np.iinfo(np.int64).max, result.finish_ns)
            for begin, end in gaps(lanes):
                inside = mine & (result.sent_ns + lead_ns < end) & (left > begin)
                assert not inside.any(), (each.draw.name, begin, end, np.flatnonzero(inside))


def gaps(lanes: list[LaneResult]) -> list[tuple[int, int]]:
    """Times between the first and the last iteration in which no batch was in flight."""
    busy = []
    for lane in lanes:
        last = np.cumsum(lane.segments["iterations"]) - 1
        busy += list(zip(lane.segment_start_ns.tolist(), lane.end_ns[last].tolist(), strict=True))
    found, until = [], 0
    for begin, end in sorted(busy):
        if begin > until:
            found.append((until, begin))
        until = max(until, end)
    return found


@every_combination
def test_plans_keep_to_the_budget_and_to_the_sequence_slots(
    policies: tuple[str, str, str],
) -> None:
    for each in outcomes(policies):
        assert each.broken == [], each.draw.name
        cost = each.setup.kinds[0].cost
        for lane in each.result.lanes:
            log = iterations(lane)
            tokens = log["num_decode"] + log["prefill_tokens"]
            assert (tokens <= cost.max_num_tokens).all(), each.draw.name
            assert (log["num_decode"] + log["num_prefill"] <= cost.max_num_seqs).all()


def test_vllm_v1_never_skips_a_decode_while_pages_last() -> None:
    kept, skipped = [], []

    def note(plan: Planned, lane: Any) -> None:
        if plan.num_decode:
            (kept if plan.granted else skipped).append(plan)

    for number in range(40):
        drawn = draw("vllm_v1", "round_robin", "paged", number)
        scheduler = Watched(drawn.setup.scheduler, note)
        run(replace(drawn.setup, coalesce=False, scheduler=scheduler))
    assert len(kept) > 1000
    assert skipped, "no draw starved a decode"
    assert all(plan.lacking > 0 for plan in skipped)


# --- what a policy may read ---------------------------------------------------------------------

POLICIES = ("simulator.schedulers", "simulator.routers", "simulator.allocators")


class Sealed(Sequence):
    """A sequence whose output length no policy may read."""

    __slots__ = ()

    @property  # type: ignore[override]
    def output_tokens(self) -> int:
        frame: FrameType | None = sys._getframe(1)
        assert frame is not None
        reader = str(frame.f_globals["__name__"])
        assert not reader.startswith(POLICIES), f"{reader} reads output_tokens"
        tokens: int = Sequence.output_tokens.__get__(self)  # type: ignore[attr-defined]
        return tokens

    @output_tokens.setter
    def output_tokens(self, value: int) -> None:
        Sequence.output_tokens.__set__(self, value)  # type: ignore[attr-defined]


@every_combination
def test_no_policy_reads_output_tokens(
    policies: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "Sequence", Sealed)
    for each in outcomes(policies)[::3]:
        assert difference(run(each.setup), each.result) == ""


def test_reading_output_tokens_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "Sequence", Sealed)
    source = (
        "def plan(self, lane):\n    return lane.waiting[0].output_tokens if lane.waiting else 0"
    )
    space: dict[str, Any] = {"__name__": "simulator.schedulers.cheating"}
    exec(source, space)
    cheating = type("Cheating", (VllmV1,), {"plan": space["plan"]})
    with pytest.raises(AssertionError, match="cheating reads output_tokens"):
        run(toy_setup(toy_table(0, 3), scheduler=cheating()))
