"""What a server does around the iterations: planning ahead, front-end time, cold starts, spread."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.costs.compiled import CompiledCost, to_ticks
from simulator.engine import run
from simulator.request import RequestTable
from tests.simulator.outcomes import BOOKED, Dynamic
from tests.simulator.toys import toy_cost, toy_setup, toy_table
from tests.simulator.watch import difference, flat_cost

MS = 1_000_000


def requests(arrival_ms: list[float], prompt: int = 10, output: int = 5) -> RequestTable:
    count = len(arrival_ms)
    return RequestTable(
        arrival_ns=np.rint(np.array(arrival_ms) * MS).astype(np.int64),
        prompt_tokens=np.full(count, prompt),
        output_tokens=np.full(count, output),
    )


def test_planned_ahead_an_arrival_waits_for_the_next_iteration_but_one() -> None:
    """Iterations of 1 ms. Request 1 comes at 2.5 ms, when the iteration from 3 to 4 is planned."""
    setup = toy_setup(requests([0, 2.5], output=9), cost=flat_cost(MS))
    assert run(setup).scheduled_ns.tolist() == [0, 3 * MS]
    ahead = replace(setup, plans_ahead=True)
    assert run(ahead).scheduled_ns.tolist() == [0, 4 * MS]
    assert run(replace(ahead, coalesce=False)).scheduled_ns.tolist() == [0, 4 * MS]


def test_an_idle_server_plans_at_once() -> None:
    setup = toy_setup(requests([0, 7.5], output=5), cost=flat_cost(MS), plans_ahead=True)
    assert run(setup).scheduled_ns.tolist() == [0, 7_500_000]


def test_front_end_time_comes_before_the_scheduler_and_belongs_to_the_request() -> None:
    table = requests([0, 20], output=3)
    lead = np.array([2 * MS, 5 * MS])
    result = run(toy_setup(table, cost=flat_cost(MS), lead_ns=lead))
    assert result.sent_ns.tolist() == [0, 20 * MS]
    assert result.scheduled_ns.tolist() == [2 * MS, 25 * MS]
    closed = replace(table, arrival_ns=np.zeros(2, dtype=np.int64), max_concurrency=1)
    result = run(toy_setup(closed, cost=flat_cost(MS), lead_ns=lead))
    assert result.sent_ns.tolist() == [0, 5 * MS + 1]
    assert result.scheduled_ns.tolist() == [2 * MS, 10 * MS + 1]


def cold_cost() -> CompiledCost:
    cost = flat_cost(MS, max_num_tokens=4096)
    return replace(cost, stages=tuple(replace(stage, cold=to_ticks(1.0)) for stage in cost.stages))


def test_each_size_of_batch_is_compiled_once_after_a_cold_start() -> None:
    """Prompts of 10, 300 and 310 tokens: two sizes, a second each; decodes compile nothing."""
    table = RequestTable(
        arrival_ns=np.array([0, 5000, 10_000, 15_000]) * MS,
        prompt_tokens=np.array([10, 300, 310, 12]),
        output_tokens=np.full(4, 3),
    )
    result = run(toy_setup(table, cost=cold_cost()))
    ttft_ms = (result.first_token_ns - result.sent_ns) // MS
    assert ttft_ms.tolist() == [1001, 1001, 1, 1]


def test_unequal_contexts_cost_what_the_longest_of_them_adds() -> None:
    """Two decodes, 300 and 100 tokens of context: 200 tokens short of twice the longest."""
    table = RequestTable(
        arrival_ns=np.zeros(2, dtype=np.int64),
        prompt_tokens=np.array([300, 100]),
        output_tokens=np.array([30, 30]),
    )
    spread_s = 1e-6
    even = run(toy_setup(table, cost=toy_cost()))
    uneven = run(toy_setup(table, cost=toy_cost(spread_s=spread_s)))
    extra_ns = np.diff(uneven.lanes[0].end_ns) - np.diff(even.lanes[0].end_ns)
    assert np.abs(extra_ns - 200 * spread_s * 1e9).max() <= 1  # ends are whole nanoseconds


def test_nobody_arrives_after_the_horizon_however_they_are_routed() -> None:
    table = toy_table(5, 60, rate=40.0)
    horizon_ns = int(table.arrival_ns[30])
    setup = toy_setup(
        table,
        num_replicas=2,
        horizon_ns=horizon_ns,
        plans_ahead=True,
        lead_ns=np.full(len(table), 60_000_000),
    )
    dealt = run(setup)
    routed = run(replace(setup, router=Dynamic(setup.router)))
    assert difference(dealt, routed, but=BOOKED) == ""
    assert (dealt.sent_ns >= 0).sum() == 31
    assert (dealt.target >= 0).sum() < 31
    assert dealt.scheduled_ns.max() <= horizon_ns
