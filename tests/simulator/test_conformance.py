"""Every registered policy runs the same however it is run, over drawn set-ups."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from simulator.allocators import ALLOCATORS
from simulator.engine import run
from simulator.occupancy import kv_utilisation
from simulator.recorder import REJECTED, UNFINISHED
from simulator.request import RequestTable
from simulator.routers import ROUTERS, JoinShortestQueue
from simulator.schedulers import SCHEDULERS, VllmV0
from simulator.segments import segment_table
from tests.simulator.draws import COMBINATIONS, draw
from tests.simulator.outcomes import BOOKED, Dynamic, Outcome, every_combination, outcome, outcomes
from tests.simulator.toys import toy_setup, toy_table
from tests.simulator.watch import difference, flat_cost, is_cut

STATIC = [policies for policies in COMBINATIONS if ROUTERS[policies[1]].is_static]
CHOSEN = [policies for policies in COMBINATIONS if policies[2] in ("paged", "prefix_caching")]


# --- equality of the ways to run ----------------------------------------------------------------


@every_combination
def test_coalesced_run_equals_one_iteration_at_a_time(policies: tuple[str, str, str]) -> None:
    for each in outcomes(policies):
        assert difference(each.result, each.stepped, but=BOOKED) == "", each.draw.name


# Draws that have told the two apart while the engine was written; most have several lanes.
ONCE_DIFFERENT = [
    ("least_loaded", "paged", 192),
    ("least_loaded", "paged", 247),
    ("least_loaded", "prefix_caching", 164),
    ("least_loaded", "prefix_caching", 251),
    ("prefix_aware", "paged", 179),
    ("prefix_aware", "prefix_caching", 264),
    ("prefix_aware", "prefix_caching", 338),
]


@pytest.mark.parametrize(("router", "allocator", "number"), ONCE_DIFFERENT)
def test_draws_that_once_differed_are_equal(router: str, allocator: str, number: int) -> None:
    each = outcome(draw("vllm_v1", router, allocator, number))
    assert difference(each.result, each.stepped, but=BOOKED) == ""


# The same of schedulers whose queue orders itself: who is next changes while nothing happens.
ONCE_DIFFERENT_QUEUES = [
    ("vtc", "least_loaded", "paged", 188),
    ("vtc", "round_robin", "vattention", 108),
    ("edf", "round_robin", "paged", 116),
]


@pytest.mark.parametrize(("scheduler", "router", "allocator", "number"), ONCE_DIFFERENT_QUEUES)
def test_queues_that_once_differed_are_equal(
    scheduler: str, router: str, allocator: str, number: int
) -> None:
    each = outcome(draw(scheduler, router, allocator, number))
    assert difference(each.result, each.stepped, but=BOOKED) == ""


def test_answers_of_one_instant_are_followed_in_the_same_order_however_run() -> None:
    """Requests 2 and 3 end at 22 ms on different replicas; their next turns, 4 and 5, both come
    a nanosecond later, and take the two idle ranks in the order they are sent in."""
    turns = RequestTable(
        arrival_ns=np.zeros(6, dtype=np.int64),
        prompt_tokens=np.ones(6, dtype=np.int64),
        output_tokens=np.array([20, 13, 22, 8, 1, 1]),
        parent=np.array([-1, -1, -1, 1, 2, 3]),
    )
    setup = toy_setup(
        turns,
        num_replicas=2,
        num_ranks=2,
        cost=flat_cost(1_000_000, num_ranks=2),
        router=JoinShortestQueue(),
    )
    assert difference(run(setup), run(replace(setup, coalesce=False)), but=BOOKED) == ""


def test_waiting_is_logged_as_it_was_when_the_iteration_was_planned() -> None:
    """Request 1 comes at 5.5 ms: nobody waited when the iteration that ends at 6 was planned."""
    table = RequestTable(
        arrival_ns=np.array([0, 5_500_000]),
        prompt_tokens=np.array([10, 10]),
        output_tokens=np.array([20, 1]),
    )
    setup = toy_setup(table, cost=flat_cost(1_000_000), coalesce=False)
    dynamic = replace(setup, router=Dynamic(setup.router))
    assert [run(each).lanes[0].segments["waiting"].sum() for each in (setup, dynamic)] == [0, 0]


def test_used_blocks_of_a_pipeline_are_sampled_at_other_moments_but_agree() -> None:
    """One lane logs the pages of its rank when it is planned, and plans less often in a run."""
    setup = toy_setup(toy_table(0, 300, rate=60), num_lanes=2)
    means = []
    for each in (setup, replace(setup, coalesce=False)):
        result = run(each)
        series, _ = kv_utilisation(result, segment_table(result))
        means.append(series.mean(0, result.end_ns))
    assert means[0] == pytest.approx(means[1], rel=0.01)


@every_combination
def test_two_runs_are_identical(policies: tuple[str, str, str]) -> None:
    for each in outcomes(policies)[::4]:
        again = run(each.setup)
        assert difference(each.result, again) == "", each.draw.name
        for a, b in zip(each.result.lanes, again.lanes, strict=True):
            for name, column in a.segments.items():
                assert np.array_equal(column, b.segments[name]), (each.draw.name, name)


@pytest.mark.parametrize("policies", CHOSEN, ids="-".join)
def test_engine_takes_the_allocator_the_setup_asks_for(policies: tuple[str, str, str]) -> None:
    for each in outcomes(policies)[1::6]:
        if each.setup.allocator != ALLOCATORS[policies[2]]():
            continue  # with settings that nobody gets unasked
        chosen = replace(each.setup, allocator=None)
        assert difference(each.result, run(chosen)) == "", each.draw.name


@pytest.mark.parametrize("policies", STATIC, ids="-".join)
def test_dealing_arrivals_before_the_run_changes_nothing(policies: tuple[str, str, str]) -> None:
    for each in outcomes(policies):
        if not each.table.is_open_loop:
            continue
        for coalesce in (True, False):
            setup = replace(each.setup, router=Dynamic(each.setup.router), coalesce=coalesce)
            dynamic = run(setup)
            # The horizon ends a client; what is dealt out beforehand is dealt out whole.
            but = (*BOOKED, "sent_ns") if is_cut(setup) else BOOKED
            assert difference(each.result, dynamic, but=but) == "", (each.draw.name, coalesce)


# --- what was drawn -----------------------------------------------------------------------------


def test_the_draws_contain_what_they_are_for() -> None:
    seen: Counter[str] = Counter()
    for policies in COMBINATIONS:
        for each in outcomes(policies):
            count(each, seen)
    assert seen["workloads"] >= 200
    for name, least in {
        "preemptions": 400,
        "workloads with preemption": 30,
        "prefix hits": 400,
        "workloads with prefix hits": 50,
        "workloads by priority": 40,
        "workloads on 4 replicas": 40,
        "workloads in 3 lanes": 30,
        "workloads on 3 ranks": 30,
        "workloads with windows": 60,
        "workloads with sessions": 30,
        "workloads with a concurrency limit": 20,
        "workloads cut by the horizon": 20,
        "rejections": 100,
        "arrivals at an iteration's end": 100,
        "iterations saved": 20_000,
    }.items():
        assert seen[name] >= least, (name, seen)


def count(each: Outcome, seen: Counter[str]) -> None:
    result, table, kind = each.result, each.table, each.setup.kinds[0]
    hits = int((result.cached_tokens > 0).sum())
    ends = np.concatenate([lane.end_ns for lane in result.lanes])
    seen["workloads"] += 1
    seen["preemptions"] += int(result.preemptions.sum())
    seen["prefix hits"] += hits
    seen["rejections"] += int((result.status == REJECTED).sum())
    seen["arrivals at an iteration's end"] += int(np.isin(table.arrival_ns, ends).sum())
    seen["iterations saved"] += sum(
        len(lane.end_ns) - len(lane.segment_start_ns) for lane in result.lanes
    )
    for name, holds in {
        "with preemption": result.preemptions.any(),
        "with prefix hits": hits > 0,
        "by priority": getattr(each.setup.scheduler, "by_priority", False),
        "on 4 replicas": kind.num_replicas == 4,
        "in 3 lanes": kind.num_lanes == 3,
        "on 3 ranks": kind.num_ranks == 3,
        "with windows": kind.cost.windows != (0,),
        "with sessions": table.parent is not None,
        "with a concurrency limit": table.max_concurrency > 0,
        "cut by the horizon": (result.status == UNFINISHED).any(),
    }.items():
        seen[f"workloads {name}"] += bool(holds)


def test_every_registered_policy_is_drawn() -> None:
    assert {c[0] for c in COMBINATIONS} == set(SCHEDULERS)
    assert {c[1] for c in COMBINATIONS} == set(ROUTERS)
    assert {c[2] for c in COMBINATIONS} == set(ALLOCATORS)


@pytest.mark.parametrize("seed", [0, 1, 2, 83, 114])
def test_whoever_waits_on_the_host_comes_back_at_any_end_in_a_pipeline(seed: int) -> None:
    """The pages that a batch gives back let a request of another batch be swapped in."""
    table = toy_table(seed, 30, rate=500, most_prompt=90, most_output=60)
    setup = toy_setup(table, num_lanes=2, num_pages=36, scheduler=VllmV0(preemption="swap"))
    result = run(setup)
    assert result.preemptions.any()
    assert result.completed.all()
    assert difference(result, run(replace(setup, coalesce=False)), but=BOOKED) == ""
