"""Runs whose outcome follows on paper: from prices alone, from queueing theory, or by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from simulator.catalog import load_model, parse_cluster
from simulator.costs.compiled import TICK_BITS, CompiledCost
from simulator.costs.roofline import compile_cost
from simulator.defaults import default_settings
from simulator.engine import run
from simulator.recorder import Result
from simulator.request import RequestTable
from simulator.routers import JoinShortestQueue
from simulator.spec import ParallelPlan
from tests.simulator.toys import toy_cost, toy_setup
from tests.simulator.watch import flat_cost

MS = 1_000_000
US = 1_000


def table(
    arrival_ns: list[int], prompt_tokens: list[int], output_tokens: list[int], **columns: Any
) -> RequestTable:
    return RequestTable(
        arrival_ns=np.array(arrival_ns, dtype=np.int64),
        prompt_tokens=np.array(prompt_tokens, dtype=np.int64),
        output_tokens=np.array(output_tokens, dtype=np.int64),
        **columns,
    )


def equal_requests(num: int, prompt_tokens: int, output_tokens: int) -> RequestTable:
    """All at once."""
    return table([0] * num, [prompt_tokens] * num, [output_tokens] * num)


# --- one request alone --------------------------------------------------------------------------


def test_one_request_alone_has_the_ttft_and_tpot_of_its_prices() -> None:
    """100 prompt tokens and 5 of output at the toy prices, in microseconds.

    Prompt: linear 4000 + 20 * 100, host 100 + 1, logits 10, attention 10 + 0.1 * 100 + 0.001 * 5050
    pairs = 6136.05. Decode of context c: 4000 + 20 + 101 + 10 + 1 + 0.02 * c, c = 101 .. 104.
    """
    result = run(toy_setup(table([7 * MS], [100], [5])))
    assert result.scheduled_ns[0] == 7 * MS
    assert result.first_token_ns[0] - 7 * MS == pytest.approx(6136.05 * US, abs=1)
    tpot = (result.finish_ns[0] - result.first_token_ns[0]) / 4
    assert tpot == pytest.approx((4132 + 0.02 * 102.5) * US, abs=1)


def test_a_prompt_beyond_the_budget_is_computed_in_chunks_that_read_the_earlier_ones() -> None:
    """1000 prompt tokens in chunks of 512 and 488 (which reads 512 of context), microseconds.

    512: 4000 + 20 * 512 + 101 + 10 + 0.1 * 512 + 0.001 * 512 * 513 / 2, nothing sampled.
    488: 4000 + 20 * 488 + 101 + 10 + 0.1 * 488 + 0.001 * (488 * 512 + 488 * 489 / 2)
    + 0.001 * 512 context tokens + 10 for the token sampled.
    """
    result = run(toy_setup(table([0], [1000], [1])))
    first = 4000 + 20 * 512 + 101 + 10 + 51.2 + 0.001 * 512 * 513 / 2
    pairs = 488 * 512 + 488 * 489 / 2
    second = 4000 + 20 * 488 + 101 + 10 + 48.8 + 0.001 * pairs + 0.512 + 10
    assert result.lanes[0].end_ns[0] == pytest.approx(first * US, abs=1)
    assert result.first_token_ns[0] == pytest.approx((first + second) * US, abs=2)
    assert result.finish_ns[0] == result.first_token_ns[0]


def test_a_window_bounds_the_context_a_decode_reads() -> None:
    """Decodes of 60, 61, ... tokens of context in a window of 62 read 60, 61, 62, 62, 62."""
    cost = toy_cost(windows=(62,))
    result = run(toy_setup(table([0], [59], [6]), cost=cost))
    read = np.array([60, 61, 62, 62, 62])
    gaps = np.diff(result.lanes[0].end_ns)
    assert gaps == pytest.approx((4132 + 0.02 * read) * US, abs=1)


# --- one server: queueing theory ----------------------------------------------------------------


def queue(arrival_ns: np.ndarray, output_tokens: np.ndarray) -> Result:
    """One sequence at a time, 1 ms an iteration: a request's service is its output tokens in ms."""
    requests = RequestTable(
        arrival_ns=arrival_ns,
        prompt_tokens=np.ones(len(arrival_ns), dtype=np.int64),
        output_tokens=output_tokens,
    )
    return run(toy_setup(requests, cost=flat_cost(MS, max_num_seqs=1)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("tick_ns", [1, MS])
def test_waiting_times_follow_lindleys_recursion_exactly(seed: int, tick_ns: int) -> None:
    """W(n+1) = max(0, W(n) + S(n) - A(n+1)), in whole nanoseconds."""
    rng = np.random.default_rng(seed)
    num = 8000
    output = rng.integers(1, 20, num)
    arrival = rng.exponential(12 * MS, num).cumsum().astype(np.int64) // tick_ns * tick_ns
    result = queue(arrival, output)
    expected = [0]
    for service, gap in zip((output * MS).tolist(), np.diff(arrival).tolist(), strict=False):
        expected.append(max(0, expected[-1] + service - gap))
    assert (result.scheduled_ns - arrival).tolist() == expected
    assert np.array_equal(result.finish_ns, result.scheduled_ns + output * MS)


def test_mean_wait_of_poisson_arrivals_is_that_of_the_m_d_1_queue() -> None:
    """rho * S / (2 * (1 - rho)) at rho = 0.6 and S = 4 ms, within 3 standard errors."""
    rho, service, num = 0.6, 4, 30_000
    rng = np.random.default_rng(11)
    arrival = rng.exponential(service / rho * MS, num).cumsum().astype(np.int64)
    result = queue(arrival, np.full(num, service))
    waits = (result.scheduled_ns - arrival) / MS
    batches = waits.reshape(30, -1).mean(axis=1)  # long enough to be all but independent
    error = float(batches.std(ddof=1)) / math.sqrt(len(batches))
    assert error < 0.1
    assert abs(float(waits.mean()) - rho * service / (2 * (1 - rho))) < 3 * error


# --- saturation ---------------------------------------------------------------------------------


def real_cost(**plan: int) -> CompiledCost:
    group = parse_cluster("8xH100-SXM").groups[0]
    settings = default_settings(group.gpu, max_num_batched_tokens=2048, max_num_seqs=64)
    return compile_cost(load_model("llama-3.1-8b"), ParallelPlan(**plan), group, settings)


COSTS = {
    "toy": toy_cost(max_num_tokens=2048),
    "llama-3.1-8b": real_cost(),
    "llama-3.1-8b-tp2": real_cost(tp=2),
}


def decode_s(cost: CompiledCost, num_seqs: int, context: float) -> float:
    """Seconds of a decode iteration of `num_seqs` sequences with that context each."""
    (stage,) = cost.stages
    (attention,) = stage.attention
    ticks = stage.linear[num_seqs] + cost.host[num_seqs] + cost.logits[num_seqs]
    ticks += attention.decode_base[num_seqs]
    return (ticks + attention.decode_per_token[num_seqs] * num_seqs * context) / 2**TICK_BITS / 1e9


def prefill_s(cost: CompiledCost, num_seqs: int, prompt_tokens: int) -> float:
    """Seconds of an iteration of whole prompts."""
    (stage,) = cost.stages
    (attention,) = stage.attention
    tokens = num_seqs * prompt_tokens
    ticks = stage.linear[tokens] + cost.host[num_seqs] + cost.logits[num_seqs]
    ticks += attention.prefill_base + attention.prefill_per_token * tokens
    ticks += attention.prefill_per_pair * num_seqs * prompt_tokens * (prompt_tokens + 1) // 2
    return ticks / 2**TICK_BITS / 1e9


@pytest.mark.parametrize("name", COSTS)
def test_saturated_decode_throughput_is_the_bound_of_the_prices(name: str) -> None:
    """Full batches all the time: tokens/s = batch / (price at the mean context), within 1 %."""
    cost = COSTS[name]
    num_seqs, output, rounds = cost.max_num_seqs, 400, 6
    requests = equal_requests(num_seqs * rounds, 4, output)
    result = run(toy_setup(requests, cost=cost, num_pages=100_000))
    bound = num_seqs / decode_s(cost, num_seqs, 4 + output / 2)
    throughput = num_seqs * rounds * output / (result.end_ns / 1e9)
    assert throughput == pytest.approx(bound, rel=0.01)


@pytest.mark.parametrize("name", COSTS)
def test_one_full_batch_takes_the_sum_of_its_iterations(name: str) -> None:
    """64 prompts of 8 tokens, then 299 decodes of contexts 9 .. 307: no tolerance but rounding."""
    cost = COSTS[name]
    result = run(toy_setup(equal_requests(64, 8, 300), cost=cost, num_pages=100_000))
    seconds = prefill_s(cost, 64, 8) + sum(decode_s(cost, 64, 9 + i) for i in range(299))
    assert 0 <= seconds * 1e9 - result.end_ns < 301


@pytest.mark.parametrize("name", COSTS)
def test_saturated_prefill_throughput_is_the_bound_of_the_prices(name: str) -> None:
    """Prompts of a quarter of the budget and one output token: four prompts an iteration."""
    cost = COSTS[name]
    result = run(toy_setup(equal_requests(200, 512, 1), cost=cost, num_pages=100_000))
    bound = 4 * 512 / prefill_s(cost, 4, 512)
    assert 200 * 512 / (result.end_ns / 1e9) == pytest.approx(bound, rel=1e-6)


def test_saturated_replicas_add_up() -> None:
    cost = COSTS["toy"]
    times = [
        run(toy_setup(equal_requests(160 * num, 512, 1), cost=cost, num_replicas=num)).end_ns
        for num in (1, 2, 4)
    ]
    assert times == [times[0]] * 3


# --- pipelines and lockstep ---------------------------------------------------------------------


def test_two_batches_in_two_stages_follow_the_pipeline_recurrence() -> None:
    """Stages of 2 and 3 ms, 0.5 ms between them; the budget holds one prompt.

    Batch A enters at 0: stage 0 until 2, stage 1 from 2.5 to 5.5. Batch B: stage 0 from 2 to 4,
    arrives at 4.5, stage 1 is free at 5.5, ends at 8.5. A again: 5.5 to 7.5, 8, waits until 8.5,
    ends at 11.5. B again: 8.5 to 10.5, 11, 11.5, ends at 14.5: the slower stage never rests.
    """
    cost = flat_cost(0, stage_ns=(2 * MS, 3 * MS), send_ns=MS // 2, max_num_tokens=10)
    for coalesce in (True, False):
        requests = table([0, 0], [10, 10], [4, 4])
        result = run(toy_setup(requests, cost=cost, num_lanes=2, coalesce=coalesce))
        a, b = (lane.end_ns.tolist() for lane in result.lanes)
        assert a == [5_500_000, 11_500_000, 17_500_000, 23_500_000]
        assert b == [8_500_000, 14_500_000, 20_500_000, 26_500_000]
        assert result.finish_ns.tolist() == [a[-1], b[-1]]


def test_one_batch_alone_in_a_pipeline_pays_every_stage_and_transfer() -> None:
    cost = flat_cost(0, stage_ns=(2 * MS, 3 * MS, MS), send_ns=MS // 2)
    result = run(toy_setup(table([0], [10], [3]), cost=cost, num_lanes=3))
    assert result.lanes[0].end_ns.tolist() == [7 * MS, 14 * MS, 21 * MS]
    assert [len(lane.end_ns) for lane in result.lanes] == [3, 0, 0]


def lockstep_cost() -> CompiledCost:
    """20 us a token of the fullest rank, 1 us a token of all ranks, and nothing else."""
    cost = flat_cost(0, num_ranks=2)
    (stage,) = cost.stages
    linear = [n * 20 * US << TICK_BITS for n in range(len(stage.linear))]
    expert = [n * US << TICK_BITS for n in range(len(stage.expert))]
    return replace(cost, stages=(replace(stage, linear=linear, expert=expert),))


def test_attention_ranks_iterate_in_lockstep_with_the_fullest() -> None:
    """Prompts of 100 and 40 tokens on two ranks: 20 * 100 + 140 us, then decodes of 20 + 2 us."""
    requests = table([0, 0], [100, 40], [3, 3])
    result = run(toy_setup(requests, cost=lockstep_cost(), num_ranks=2))
    ends = [2140 * US, 2162 * US, 2184 * US]
    assert [lane.end_ns.tolist() for lane in result.lanes] == [ends, ends]
    assert result.target.tolist() == [0, 1]


def test_an_attention_rank_without_work_iterates_along_and_adds_no_tokens_to_the_experts() -> None:
    """100 tokens on one of two ranks: 20 * 100 + 100 us, then a decode of 20 + 1 us."""
    result = run(toy_setup(table([0], [100], [2]), cost=lockstep_cost(), num_ranks=2))
    ends = [2100 * US, 2121 * US]
    assert [lane.end_ns.tolist() for lane in result.lanes] == [ends, ends]


def test_a_request_on_one_rank_waits_for_the_iteration_of_the_other() -> None:
    """It arrives at 1 ms, in the iteration that ends at 2.1 ms."""
    requests = table([0, MS], [100, 40], [2, 1])
    result = run(toy_setup(requests, cost=lockstep_cost(), num_ranks=2))
    assert result.scheduled_ns.tolist() == [0, 2100 * US]
    # 40 tokens on rank 1 and a decode on rank 0: 20 * 40 + 41.
    assert result.finish_ns.tolist() == [(2100 + 841) * US] * 2


# --- equal times --------------------------------------------------------------------------------

ROUTES = list(product((True, False), (False, True)))


@pytest.mark.parametrize(("coalesce", "dynamic"), ROUTES)
def test_arrival_at_iteration_end_joins_next_iteration(coalesce: bool, dynamic: bool) -> None:
    changes: dict[str, Any] = {"router": JoinShortestQueue()} if dynamic else {}
    requests = table([0, 3 * MS, 5 * MS + 1, 7 * MS - 1], [10] * 4, [20, 1, 1, 1])
    result = run(toy_setup(requests, cost=flat_cost(MS), coalesce=coalesce, **changes))
    assert result.scheduled_ns.tolist() == [0, 3 * MS, 6 * MS, 7 * MS]
    assert result.finish_ns.tolist() == [20 * MS, 4 * MS, 7 * MS, 8 * MS]


@pytest.mark.parametrize("coalesce", [True, False])
def test_the_next_turn_is_sent_a_nanosecond_after_the_answer(coalesce: bool) -> None:
    """So it misses the iteration that begins with the answer, if one does."""
    turns = table(
        [0, 0, 0], [10] * 3, [2, 9, 1], parent=np.array([-1, -1, 0]), delay_ns=np.zeros(3, int)
    )
    result = run(toy_setup(turns, cost=flat_cost(MS), coalesce=coalesce))
    assert result.sent_ns.tolist() == [0, 0, 2 * MS + 1]
    assert result.scheduled_ns.tolist() == [0, 0, 3 * MS]


@pytest.mark.parametrize("coalesce", [True, False])
def test_an_iteration_that_ends_at_the_horizon_counts_and_a_later_one_does_not(
    coalesce: bool,
) -> None:
    for horizon_ns, num in ((10 * MS, 10), (10 * MS - 1, 9)):
        requests = table([0], [10], [20])
        setup = toy_setup(requests, cost=flat_cost(MS), coalesce=coalesce, horizon_ns=horizon_ns)
        assert len(run(setup).lanes[0].end_ns) == num
