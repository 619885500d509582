"""Requests with several answers: forks that share blocks, beams, and children of vLLM V1."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.engine import run
from simulator.recorder import COMPLETED, REJECTED, Result
from simulator.request import Beams, RequestTable
from simulator.routers import LeastLoaded, RoundRobin
from simulator.samples import sample_rows
from simulator.schedulers import Orca, VllmV0, VllmV1
from simulator.setup import Setup
from tests.simulator.block_tables import BlockTables
from tests.simulator.outcomes import BOOKED
from tests.simulator.toys import toy_cost, toy_setup, toy_table
from tests.simulator.watch import (
    Planned,
    Watched,
    difference,
    run_audited,
    token_ns,
)


def one_request(prompt: int, output: int, n: int, **columns: Any) -> RequestTable:
    return RequestTable(
        arrival_ns=np.array([0]),
        prompt_tokens=np.array([prompt]),
        output_tokens=np.array([output]),
        num_samples=np.array([n]),
        **columns,
    )


def used_blocks(result: Result) -> list[int]:
    used: list[int] = result.lanes[0].segments["used_blocks"].tolist()
    return used


# --- worked examples ------------------------------------------------------------------------------


def test_blocks_of_four_samples_by_hand() -> None:
    """100 tokens are 6 full blocks and one of 4; 3 of 4 samples copy that before they write."""
    setup = toy_setup(one_request(100, 50, 4), scheduler=VllmV0(), coalesce=False)
    result = run(setup)
    # Contexts 101 ... 149: a block more for each at 113, 129 and 145.
    assert used_blocks(result) == [7] + [10] * 12 + [14] * 16 + [18] * 16 + [22] * 5
    saved = result.lanes[0].saved_blocks
    assert saved is not None
    assert saved.tolist() == [0] + [3 * 6] * 49
    assert result.table.answer_tokens.tolist() == [200]


def test_a_prompt_of_whole_blocks_is_never_copied() -> None:
    setup = toy_setup(one_request(96, 20, 3), scheduler=VllmV0(), coalesce=False)
    assert used_blocks(run(setup)) == [6] + [9] * 16 + [12] * 3


def test_blocks_are_given_back_as_samples_end() -> None:
    """Samples of 1, 3 and 20 tokens: the first writes nothing, so it copies nothing."""
    table = one_request(20, 20, 3, sample_tokens=np.array([1, 20, 3]))
    result = run(toy_setup(table, scheduler=VllmV0(), coalesce=False))
    # 2 blocks; two samples remain: the partly filled one is copied once, then 1 + 2 * 1; then one.
    assert used_blocks(result) == [2, 3, 3] + [2] * 10 + [3] * 7
    assert result.samples is not None
    assert [len(times) for times in token_ns(result.samples)] == [1, 20, 3]


def test_a_beam_tree_by_hand() -> None:
    """Two beams over blocks of 4 from a prompt of 6, with the parents that the stream draws."""
    table = one_request(6, 6, 2, beams=Beams(persistence=1.0))
    result = run(toy_setup(table, scheduler=VllmV0(), block_tokens=4, coalesce=False))
    assert used_blocks(result) == [2, 3, 3, 5, 5, 5]  # nobody dies: as parallel samples

    class Heirs(Beams):
        def parents(self, request: int, num_tokens: int, width: int) -> list[list[int]]:
            return [[0, 0], [0, 1], [1, 1], [0, 1], [0, 0], [0, 1]]

    result = run(
        toy_setup(replace(table, beams=Heirs()), scheduler=VllmV0(), block_tokens=4, coalesce=False)
    )
    # 6: [0 1]. 7: copy of block 1. Both go on from the first: one block is freed, and copied for 8.
    # 9: two new ones after two full ones each; then both go on from the second, whose two blocks
    # stay: the last is copied for 10, and for 11 nothing.
    assert used_blocks(result) == [2, 3, 3, 5, 4, 4]
    saved = result.lanes[0].saved_blocks
    assert saved is not None
    assert saved.tolist() == [0, 1, 1, 1, 2, 2]


def test_children_of_vllm_v1_hit_the_prefix_cache() -> None:
    """Each of the other three computes the 4 tokens of 100 that fill no block."""
    result = run(toy_setup(one_request(100, 50, 4), coalesce=False))
    assert used_blocks(result) == [10] * 13 + [14] * 16 + [18] * 16 + [22] * 5
    assert result.lanes[0].segments["prefill_tokens"].tolist()[:2] == [100 + 3 * 4, 0]
    without = run(toy_setup(one_request(100, 50, 4), prefix_caching=False, coalesce=False))
    assert without.lanes[0].segments["prefill_tokens"].tolist()[:2] == [400, 0]
    assert used_blocks(without)[0] == 28


# --- against block tables -------------------------------------------------------------------------


DRAWN = {
    "seed": st.integers(0, 10**6),
    "num": st.integers(6, 14),
    "rate": st.sampled_from((500.0, 50.0)),
    "most_prompt": st.sampled_from((20, 90)),
    "most_output": st.sampled_from((60, 3)),
    "max_concurrency": st.sampled_from((0, 0, 3)),
    "answers": st.sampled_from(("equal", "drawn", "beams")),
    "persistence": st.sampled_from((0.0, 0.7, 1.0)),
    "num_lanes": st.sampled_from((1, 1, 2)),
    "num_pages": st.sampled_from((60, 36, 90, 400)),
    "block_tokens": st.sampled_from((16, 4, 8)),
    "max_num_seqs": st.sampled_from((32, 6)),
    "preemption": st.sampled_from(("recompute", "swap")),
    "swap_pages": st.sampled_from((0, 12)),
    "router": st.sampled_from((RoundRobin(), LeastLoaded())),
}


def setup_of(drawn: dict[str, Any]) -> Setup:
    num, rng = drawn["num"], np.random.default_rng(drawn["seed"])
    names = ("rate", "most_prompt", "most_output", "max_concurrency")
    table = toy_table(drawn["seed"], num, **{name: drawn[name] for name in names})
    counts = rng.integers(1, 6, num)
    counts[0] = 3
    if drawn["answers"] == "beams":
        beams = Beams(persistence=drawn["persistence"], seed=drawn["seed"])
        table = replace(table, num_samples=np.full(num, rng.integers(2, 6)), beams=beams)
    elif drawn["answers"] == "drawn":
        tokens = rng.integers(1, drawn["most_output"] + 1, int(counts.sum()))
        longest = np.maximum.reduceat(tokens, np.cumsum(counts) - counts)
        table = replace(table, num_samples=counts, sample_tokens=tokens, output_tokens=longest)
    else:
        table = replace(table, num_samples=counts)
    return toy_setup(
        table,
        num_lanes=drawn["num_lanes"],
        num_pages=drawn["num_pages"],
        block_tokens=drawn["block_tokens"],
        cost=toy_cost(max_num_seqs=drawn["max_num_seqs"], num_stages=drawn["num_lanes"]),
        scheduler=VllmV0(preemption=drawn["preemption"], swap_pages=drawn["swap_pages"]),
        router=drawn["router"],
    )


def compared(setup: Setup, seen: Counter[str] | None = None) -> Result:
    """Run one iteration at a time, comparing blocks with the tables after every plan."""
    assert setup.table.num_samples is not None
    tables = BlockTables(sample_rows(setup.table)[0], setup.kinds[0].layout.block_tokens)
    sizes: Counter[int] = Counter(tables.leader)

    def note(plan: Planned, lane: Any) -> None:
        tables.planned(lane, plan.granted)
        held = tables.references()
        assert lane.num_pages - lane.allocator.free_pages == len(held)
        each = sum(len(table) for table in tables.tables.values())
        assert sum(other._saved for other in lane.rank.lanes.values()) == each - len(held)
        for search in lane._searches:
            rows = [tables.tables[seq.id] for seq in sorted(search.members, key=lambda s: s.id)]
            assert shape(search.rows, search.common, search.width) == [
                sorted(Counter(column).values()) for column in zip(*rows, strict=True)
            ]
        out = {tables.leader[row] for row in plan.preempted} - tables.alone
        assert out.isdisjoint(tables.leader[seq.id] for seq in lane.running())  # all or none
        if seen is not None:
            seen["preempted"] += bool(plan.preempted)
            seen["shared"] += len(held) < each
            seen["alone"] += bool(tables.alone)
            seen["multiple"] += max(sizes.values()) > 1

    watched = replace(setup, coalesce=False, scheduler=Watched(setup.scheduler, note))
    return run_audited(watched, [])


def shape(rows: list[list[int]], common: int, width: int) -> list[list[int]]:
    """Reference counts of the blocks at each depth."""
    return [[width]] * common + [sorted(Counter(row).values()) for row in rows]


SEEN: Counter[str] = Counter()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(drawn=st.fixed_dictionaries(DRAWN))
def test_blocks_are_those_of_the_tables_at_every_plan(drawn: dict[str, Any]) -> None:
    setup = setup_of(drawn)
    stepped = compared(setup, SEEN)
    result = run(setup)
    assert result.samples is not None
    assert stepped.samples is not None
    booked = BOOKED if drawn["num_lanes"] > 1 else ()
    assert difference(result, stepped, but=booked) == ""
    assert difference(result.samples, stepped.samples, but=booked) == ""
    times, rows = token_ns(result.samples), result.samples.table
    done = result.samples.status == COMPLETED
    given_tokens = np.array([len(each) for each in times])
    assert np.array_equal(given_tokens, np.where(done, rows.output_tokens, 0))
    sampled = sum(
        int((lane.segments["sampled"] * lane.segments["iterations"]).sum()) for lane in result.lanes
    )
    assert sampled == result.table.answer_tokens[result.completed].sum()
    of = np.repeat(np.arange(len(result.table)), result.table.num_samples)
    for request in np.flatnonzero(result.completed).tolist():
        mine = [times[row] for row in np.flatnonzero(of == request).tolist()]
        assert result.first_token_ns[request] == min(each[0] for each in mine)
        assert result.finish_ns[request] == max(each[-1] for each in mine)


def test_the_drawn_set_ups_share_and_preempt() -> None:
    assert min(SEEN[name] for name in ("preempted", "shared", "alone", "multiple")) > 50, SEEN


# --- laws -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", [VllmV0(), VllmV1()], ids=["v0", "v1"])
def test_one_answer_each_changes_nothing(scheduler: Any) -> None:
    table = toy_table(3, 80)
    setup = toy_setup(table, scheduler=scheduler, num_pages=60)
    ones = replace(setup, table=replace(table, num_samples=np.ones(80, dtype=np.int64)))
    assert difference(run(setup), run(ones)) == ""


def test_beams_that_never_die_are_parallel_samples() -> None:
    table = replace(toy_table(5, 60, rate=40), num_samples=np.full(60, 4))
    parallel = toy_setup(table, scheduler=VllmV0(), num_pages=150)
    beams = replace(parallel, table=replace(table, beams=Beams(persistence=1.0)))
    a, b = run(parallel), run(beams)
    assert a.preemptions.sum() > 0
    assert a.samples is not None
    assert b.samples is not None
    assert difference(a.samples, b.samples) == ""


def test_beams_that_die_need_fewer_blocks_than_parallel_samples() -> None:
    table = replace(toy_table(5, 60, rate=40), num_samples=np.full(60, 4))
    peaks = []
    for beams in (None, Beams(persistence=0.9), Beams()):
        setup = toy_setup(replace(table, beams=beams), scheduler=VllmV0(), coalesce=False)
        peaks.append(max(used_blocks(run(setup))))
    assert peaks[0] > peaks[1] > peaks[2]


@pytest.mark.parametrize("scheduler", [VllmV0(), VllmV1(), Orca()], ids=["v0", "v1", "orca"])
def test_a_closed_loop_counts_requests_not_answers(scheduler: Any) -> None:
    table = replace(
        toy_table(7, 30, rate=1e4, max_concurrency=2), num_samples=np.full(30, 3), parent=None
    )
    result = run(toy_setup(table, scheduler=scheduler))
    moments = np.sort(np.concatenate((result.sent_ns, result.finish_ns)))
    in_flight = [((result.sent_ns <= t) & (t < result.finish_ns)).sum() for t in moments.tolist()]
    assert max(in_flight) == 2
    assert result.completed.all()


@pytest.mark.parametrize("router", [RoundRobin(), LeastLoaded()])
@pytest.mark.parametrize("scheduler", [VllmV0(), VllmV1()], ids=["v0", "v1"])
def test_the_answers_to_a_request_come_from_one_rank(scheduler: Any, router: Any) -> None:
    table = replace(toy_table(9, 40), num_samples=np.full(40, 3))
    result = run(toy_setup(table, scheduler=scheduler, router=router, num_replicas=2, num_ranks=2))
    assert result.samples is not None
    ranks = result.samples.target.reshape(40, 3)
    assert (ranks == ranks[:, :1]).all()
    assert np.array_equal(result.target, ranks[:, 0])
    assert set(result.target.tolist()) == {0, 1, 2, 3}


def test_requests_whose_samples_do_not_fit_together_are_rejected() -> None:
    """Of 4 x (160 + 40) tokens in blocks of 16: 10 shared, 3 each: 22 blocks."""
    for pages, status in ((22, COMPLETED), (21, REJECTED)):
        setup = toy_setup(one_request(160, 41, 4), scheduler=VllmV0(), num_pages=pages)
        assert run(setup).status.tolist() == [status]
    cost = toy_cost(max_num_seqs=3)
    setup = toy_setup(one_request(16, 4, 4), scheduler=VllmV0(), cost=cost)
    assert run(setup).status.tolist() == [REJECTED]
    setup = toy_setup(one_request(16, 4, 4), cost=cost)  # children wait for one another
    assert run(setup).status.tolist() == [COMPLETED]
