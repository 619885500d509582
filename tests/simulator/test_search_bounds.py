from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.engine import simulate
from simulator.itl import token_log
from simulator.latency import request_times
from simulator.metrics import summarise
from simulator.request import RequestTable
from simulator.search.bounds import bound_of, floor_of, waves
from simulator.search.candidates import candidates
from simulator.search.objective import value_of
from simulator.search.trial import Bench
from simulator.spec import Slo
from tests.simulator.search_support import small_search, small_table
from tests.simulator.toys import toy_table


def shared_prefixes() -> RequestTable:
    """Prompts of whole blocks of 16 tokens, drawn from few contents."""
    table = toy_table(1, 50, rate=20.0, most_prompt=40, most_output=40)
    blocks = table.prompt_tokens
    ids = [100 * (i % 3) + j for i, num in enumerate(blocks.tolist()) for j in range(num)]
    return RequestTable(
        arrival_ns=table.arrival_ns,
        prompt_tokens=blocks * 16,
        output_tokens=table.output_tokens,
        hash_ids=np.array(ids),
        hash_offsets=np.concatenate(([0], np.cumsum(blocks))),
        hash_block_tokens=16,
    )


CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("llama-3.1-8b", "4xH100-SXM", {}),
    ("llama-3.1-8b", "4xH100-SXM", {"workload": toy_table(5, 60, rate=2000.0)}),
    ("llama-3.1-8b", "2xH100-SXM", {"workload": shared_prefixes()}),
    (
        "llama-3.1-8b",
        "2xH100-SXM",
        {"workload": toy_table(2, 60, rate=500.0), "engine": {"num_blocks": 60}},
    ),
    ("gemma-2-9b", "2xA100-80-SXM", {"workload": toy_table(4, 30, most_prompt=6000)}),
    ("gpt-oss-20b", "4xH100-SXM", {}),
    ("deepseek-v2-lite", "4xH100-SXM", {}),
    ("llama-3.1-8b", "2xH100-SXM+2xL4", {"tp": (1,)}),
]


@pytest.mark.parametrize(("model", "cluster", "changes"), CASES)
def test_no_request_is_ever_faster_than_its_floor(
    model: str, cluster: str, changes: dict[str, Any]
) -> None:
    spec = small_search(model, cluster, scheduler_variants=False, **changes)
    found = candidates(spec)
    bench = Bench(spec, found)
    feasible = [i for i, candidate in enumerate(found) if not candidate.reason]
    assert feasible
    for index in feasible:
        floor = floor_of(spec, found[index])
        result = simulate(bench.experiment(index, 1.0))
        times = request_times(result, token_log(result))
        done = result.completed
        assert (floor.ttft_s[done] <= times.ttft_s[done]).all()
        decode_s = times.e2e_s - times.ttft_s
        assert (floor.decode_s[done] <= decode_s[done] + 1e-9).all()
        ranks = found[index].plan.dp * found[index].plan.attention_dp
        span_s = (result.end_ns - int(result.sent_ns.min())) / 1e9
        assert floor.stage_s[:, done].sum(axis=1).max() / ranks <= span_s


@pytest.mark.parametrize("objective", ["e2e", "ttft", "tpot", "cost", "energy", "gpus"])
def test_every_bound_is_below_what_is_simulated(objective: str) -> None:
    spec = small_search(objective=objective, slo=Slo(ttft_s=1.0))
    found = candidates(spec)
    bench = Bench(spec, found)
    for index in range(len(found)):
        experiment = bench.experiment(index, 1.0)
        value = value_of(summarise(experiment, simulate(experiment)), objective, "mean")
        assert bound_of(spec, found[index]) <= value


def test_a_bound_is_close_for_a_request_alone() -> None:
    table = small_table(1)
    spec = small_search(workload=table, tp=(4,), pp=(1,), scheduler_variants=False)
    (candidate,) = candidates(spec)
    experiment = Bench(spec, [candidate]).experiment(0, 1.0)
    value = value_of(summarise(experiment, simulate(experiment)), "e2e", "mean")
    assert bound_of(spec, candidate) > 0.8 * value


def test_a_rate_bound_is_zero_where_too_few_meet_the_slos_even_alone() -> None:
    spec = small_search(objective="goodput", slo=Slo(tpot_s=1e-6, attainment=0.5))
    assert bound_of(spec, candidates(spec)[0]) == 0.0


def test_a_rate_bound_follows_from_the_work_and_the_last_deadline() -> None:
    table = small_table(400, rate=5.0)
    slo = Slo(e2e_s=6.0, attainment=1.0)
    spec = small_search("llama-3.1-8b", "1xL4", workload=table, objective="goodput", slo=slo)
    (candidate, *_) = candidates(spec)
    bound = bound_of(spec, candidate)
    work_s = floor_of(spec, candidate).stage_s.sum()
    assert bound == pytest.approx(5.0 * table.duration_s / (work_s - 6.0), rel=0.1)


def test_waves_hold_every_plan_once_first_ones_first() -> None:
    found = list(waves([50, 51], list(range(40))))
    assert found[0] == [50, 51, 0, 1]
    assert [index for wave in found for index in wave] == [50, 51, *range(40)]
    assert [len(wave) for wave in waves([], list(range(30)))] == [4, 8, 16, 2]
    assert list(waves([1, 2, 3, 4, 5], [])) == [[1, 2, 3, 4, 5]]
