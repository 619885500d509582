"""Nano-batches: the overlap's linear program, prices in the engine, and refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linprog

from simulator.allocators import VAttention
from simulator.catalog import load_model, parse_cluster
from simulator.cli import run as run_cli
from simulator.config import load
from simulator.costs.compiled import CompiledCost, StageCost
from simulator.costs.explain import explain
from simulator.costs.overlap import OVERLAPS, pieces, states, together_s
from simulator.costs.price import price_iteration
from simulator.costs.roofline import compile_cost
from simulator.defaults import default_settings
from simulator.engine import prepare, run, simulate
from simulator.errors import ConfigError
from simulator.schedulers import SCHEDULERS, VllmV0
from simulator.spec import EngineSettings, ParallelPlan
from tests.simulator.outcomes import BOOKED
from tests.simulator.toys import toy_cost, toy_setup, toy_table
from tests.simulator.watch import difference

NANO = ("--set", "engine.nano_batches=2")
QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"
MODEL = load_model("llama-3.1-70b")
GROUP = parse_cluster("8xA100-80-SXM").groups[0]
PLAN = ParallelPlan(tp=8)
BATCHES: tuple[tuple[list[tuple[int, int]], list[tuple[int, int]]], ...] = (
    ([(1024, 0)], [(700, 900)]),
    ([], [(1, 1)]),
    ([], [(300, 5000)]),
    ([(3, 40)], []),
    ([(2047, 0)], [(1, 8000)]),
)


def settings(**changes: Any) -> EngineSettings:
    values = {"max_num_batched_tokens": 2048, "max_num_seqs": 1024} | changes
    return default_settings(GROUP.gpu, **values)


def price(plan: ParallelPlan = PLAN, **changes: Any) -> list[float]:
    cost = compile_cost(MODEL, plan, GROUP, settings(**changes))
    return [sum(price_iteration(cost, *batch)) for batch in BATCHES]


# --- the overlapped schedule --------------------------------------------------------------------


def by_linear_program(work: Any, overlap: str) -> float:
    """The least time over mixtures of states: who runs, in which share of the GPU."""
    rates = np.array(states(overlap))
    found = linprog(np.ones(len(rates)), A_ub=-rates.T, b_ub=-np.array(work))
    assert found.fun is not None
    return float(found.fun)


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_the_pieces_are_the_linear_program_over_states(overlap: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        work = (rng.exponential(1.0, 3) * (rng.random(3) > 0.2)).tolist()
        assert together_s(work[0], work[1], work[2], overlap) == pytest.approx(
            by_linear_program(work, overlap)
        )


def test_overlap_lies_between_the_longest_and_the_sum() -> None:
    rng = np.random.default_rng(1)
    for work in rng.exponential(1.0, (100, 3)):
        alone = [together_s(*(work * one)) for one in np.eye(3)]
        assert alone == pytest.approx(list(work))
        times = [
            together_s(work[0], work[1], work[2], overlap) for overlap in ("all", "network", "none")
        ]
        assert max(work) <= times[0] <= times[1] <= times[2] == pytest.approx(sum(work))


def test_states_share_the_gpu_as_measured() -> None:
    everything = states("all")
    assert (0.6, 0.8, 0.0) in everything
    assert max(sum(state) for state in everything) == pytest.approx(0.2 + 0.8 + 0.8)
    assert states("none") == [(0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)]
    assert [piece.compute for piece in pieces("none")] == [1.0]


# --- prices -------------------------------------------------------------------------------------


def test_without_overlap_nano_batches_cost_the_kernels_of_each_part() -> None:
    """Two parts of 1,024 tokens cost at least twice as much as one of them, attention aside."""
    plain, split = price(), price(nano_batches=2, nano_overlap="none")
    assert all(b >= a for a, b in zip(plain, split, strict=True))
    cost = compile_cost(MODEL, PLAN, GROUP, settings(nano_batches=2, nano_overlap="none"))
    whole = compile_cost(MODEL, PLAN, GROUP, settings()).stages[0].linear
    (piece,) = (p for p in cost.stages[0].pieces if p.attention[0].prefill_per_pair)
    outside = 2 * whole[1024] - piece.linear[2048]  # embedding and last norm are not split
    assert 0 < outside < 0.01 * whole[1024]


def test_more_overlap_is_never_slower() -> None:
    none, network, everything = (
        price(nano_batches=2, nano_overlap=overlap) for overlap in ("none", "network", "all")
    )
    assert all(a >= b >= c for a, b, c in zip(none, network, everything, strict=True))
    assert everything[0] < price()[0]


def test_explain_adds_up_to_the_price() -> None:
    chosen = settings(nano_batches=2)
    for batch, seconds in zip(BATCHES, price(nano_batches=2), strict=True):
        told = explain(MODEL, PLAN, GROUP, chosen, *batch)
        assert told.total_s == pytest.approx(seconds, rel=1e-9)
        assert sum(op.share for op in told.ops) == pytest.approx(1.0)


def test_engine_charges_the_price_of_every_iteration() -> None:
    experiment = load(QUICKSTART)
    experiment = replace(
        experiment,
        settings=replace(experiment.settings, nano_batches=2),
        workload=toy_table(4, 1, most_prompt=3000),
    )
    result = simulate(experiment)
    cost = prepare(experiment).kinds[0].cost
    prompt, output = (int(c[0]) for c in (result.table.prompt_tokens, result.table.output_tokens))
    expected = [sum(price_iteration(cost, [(prompt, 0)], []))]
    expected += [sum(price_iteration(cost, [], [(1, prompt + i)])) for i in range(1, output)]
    lane = result.lanes[0]
    times = np.diff(lane.end_ns, prepend=lane.segment_start_ns[0])
    assert times == pytest.approx(np.array(expected) * 1e9, abs=1.0)


# --- the engine ---------------------------------------------------------------------------------


def with_pieces(cost: CompiledCost, rng: np.random.Generator) -> CompiledCost:
    """A price that is the largest of three: of compute, of KV, and of many sequences."""

    def piece(stage: StageCost, base: float, kv: float) -> StageCost:
        attention = tuple(
            replace(
                one,
                decode_per_token=[round(kv * ticks) for ticks in one.decode_per_token],
                prefill_per_pair=round(kv * one.prefill_per_pair),
            )
            for one in stage.attention
        )
        linear = [0] + [round(base * ticks) for ticks in stage.linear[1:]]
        return replace(stage, linear=linear, attention=attention, send=[])

    weights = [(1.0, 0.1), (0.8, rng.uniform(5, 40)), (0.5, rng.uniform(50, 150))]
    pieces_of = tuple(piece(cost.stages[0], *weight) for weight in weights)
    return replace(
        cost,
        stages=tuple(
            replace(stage, linear=[0] * len(stage.linear), attention=(), pieces=pieces_of)
            for stage in cost.stages
        ),
    )


@pytest.mark.parametrize("scheduler", sorted(SCHEDULERS.keys() - {"static", "fastswitch"}))
def test_coalesced_run_equals_one_iteration_at_a_time(scheduler: str) -> None:
    saved = switches = 0
    for seed in range(8):
        rng = np.random.default_rng([seed, 9])
        lanes = int(rng.choice([1, 1, 2]))
        windows = (0, 50) if rng.random() < 0.3 else (0,)
        kwargs = {"ttft_s": 0.3} if scheduler in ("edf", "kv_aware") else {}
        setup = toy_setup(
            toy_table(seed, 30, rate=float(rng.choice([2.0, 30.0])), most_output=200),
            num_lanes=lanes,
            num_pages=60,
            cost=with_pieces(toy_cost(num_stages=lanes, windows=windows, spread_s=1e-8), rng),
            scheduler=SCHEDULERS[scheduler](**kwargs),
        )
        result, stepped = run(setup), run(replace(setup, coalesce=False))
        assert difference(result, stepped, but=BOOKED) == "", seed
        for lane in result.lanes:
            saved += len(lane.end_ns) - len(lane.segment_start_ns)
            times = np.diff(lane.end_ns)
            switches += int((np.abs(np.diff(times)) > 0).sum())
    assert saved > 100
    assert switches > 100


def test_a_claim_ends_where_another_price_becomes_the_largest() -> None:
    """1 ms flat until 10 us a token of context is more: a run of 200 tokens has both."""
    flat = toy_cost(base_s=1e-3, token_s=0, kv_token_s=0, pair_s=0, max_num_tokens=64)
    steep = toy_cost(base_s=1e-9, token_s=0, kv_token_s=1e-5, pair_s=0, max_num_tokens=64)
    stage = replace(
        flat.stages[0],
        linear=[0] * 65,
        attention=(),
        pieces=(flat.stages[0], steep.stages[0]),
    )
    table = replace(toy_table(0, 1), prompt_tokens=np.array([10]), output_tokens=np.array([200]))
    setup = toy_setup(table, cost=replace(flat, stages=(stage,)))
    result = run(setup)
    times = np.diff(result.lanes[0].end_ns)
    assert times[0] == times[80] == times[:80].max()
    assert (np.diff(times[100:]) >= 9_999).all()
    assert len(result.lanes[0].segment_start_ns) < 10


def test_prices_of_nano_batches_are_used_only_where_asked_for() -> None:
    experiment = load(QUICKSTART)
    nano = replace(experiment, settings=replace(experiment.settings, nano_batches=2))
    slow, fast = (simulate(each).end_ns for each in (experiment, nano))
    assert slow != fast
    assert not prepare(experiment).kinds[0].cost.stages[0].pieces


# --- what it does not go with -------------------------------------------------------------------


def test_clashes_are_refused() -> None:
    experiment = load(QUICKSTART)
    nano = replace(experiment, settings=replace(experiment.settings, nano_batches=2))
    with pytest.raises(ConfigError, match="neither swaps, pads nor maps"):
        prepare(replace(nano, allocator=VAttention()))
    with pytest.raises(ConfigError, match="neither swaps, pads nor maps"):
        prepare(replace(nano, scheduler=VllmV0(preemption="swap")))
    with pytest.raises(ConfigError, match=r"attention_dp = 1 \(got 2\)"):
        compile_cost(
            load_model("deepseek-v3"),
            ParallelPlan(tp=1, attention_dp=2, ep=2),
            GROUP,
            settings(nano_batches=2),
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["simulate", str(QUICKSTART), "--set", "engine.nano_batches=1"], "nano_batches"),
        (["simulate", str(QUICKSTART), "--set", "engine.nano_overlap=some"], "nano_overlap"),
        (
            ["simulate", f"{QUICKSTART.parent}/speculation.yaml", *NANO],
            "not with speculation",
        ),
        (
            ["search", f"{QUICKSTART.parent}/plan_search.yaml", *NANO],
            "one after another",
        ),
    ],
)
def test_unusable_settings_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_cli(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert len(err.strip().splitlines()) <= 2
