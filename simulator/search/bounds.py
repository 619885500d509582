"""What a plan cannot beat, from its prices alone: sound limits, for pruning without simulating.

A request is never faster than alone on an idle replica at the cheapest price of each look-up, and a
replica never does a request's work cheaper than at the cheapest price a token. Waiting, batching
and preemption only add. Host time and collectives are inside the prices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.costs.compiled import TICKS_PER_S, CompiledCost, StageCost
from simulator.costs.roofline import compile_cost
from simulator.energy import price_per_hour
from simulator.request import RequestTable
from simulator.search.candidates import Candidate
from simulator.search.objective import COST, E2E, ENERGY, GOODPUT, GPUS, TPOT, TTFT
from simulator.search.spec import SearchSpec
from simulator.search.trial import experiment_of

Floats = NDArray[np.float64]
ROUNDING_S = 1e-9  # the engine rounds each stage of an iteration down to whole ns
SMALLEST_WAVE = 4
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Floor:
    """Least times of each request under one plan, seconds."""

    ttft_s: Floats
    decode_s: Floats  # first token to last
    stage_s: Floats  # [num_stages, num_requests] work of a request on one attention rank

    def merged(self, other: Floor) -> Floor:
        """The floor of a plan that runs on two kinds of GPU."""
        return Floor(
            ttft_s=np.minimum(self.ttft_s, other.ttft_s),
            decode_s=np.minimum(self.decode_s, other.decode_s),
            stage_s=np.minimum(self.stage_s, other.stage_s),
        )


def bound_of(spec: SearchSpec, candidate: Candidate) -> float:
    """The best value of the objective this plan could have; infinite where nothing is known.

    A lower bound, or where larger is better an upper one.
    """
    if spec.objective == GPUS:
        return float(candidate.plan.num_gpus)
    floor = floor_of(spec, candidate)
    if spec.objective == GOODPUT:
        return _rate_bound(spec, candidate, floor)
    if spec.objective in (COST, ENERGY):
        return _spending_bound(spec, candidate, floor)
    return _latency_bound(spec, floor)


def floor_of(spec: SearchSpec, candidate: Candidate) -> Floor:
    """Least times of every request of the workload, whichever group serves it."""
    assert candidate.settings is not None
    floor: Floor | None = None
    for group in candidate.cluster.groups:
        cost = compile_cost(candidate.model, candidate.plan, group, candidate.settings)
        cached = candidate.settings.prefix_caching and spec.workload.hash_ids is not None
        cached = cached or getattr(spec.scheduler, "reuse", False)
        mine = _floor(cost, spec.workload, cached)
        floor = mine if floor is None else floor.merged(mine)
    assert floor is not None
    return floor


def _floor(cost: CompiledCost, table: RequestTable, cached: bool) -> Floor:
    """`cached`: any prompt may be found in the prefix cache but for its last token."""
    prompt = np.ones(len(table)) if cached else table.prompt_tokens.astype(np.float64)
    gaps = table.output_tokens.astype(np.float64) - 1
    context = gaps * table.prompt_tokens + gaps * (gaps - 1) / 2  # summed over the decodes
    logits, host = min(cost.logits[1:]), min(cost.host[1:])
    ttft_s, decode_s = np.zeros(len(table)), np.zeros(len(table))
    stage_s = []
    for index, stage in enumerate(cost.stages):
        once = host if index == 0 else 0
        once += logits if index == len(cost.stages) - 1 else 0
        per_token = _per_token(stage)
        prefill, base, slope = _attention(stage, prompt, cached, per_token)
        alone = np.maximum(min(stage.linear[1:]), per_token * prompt) + prefill + once
        each = min(stage.linear[1:]) + base + once
        ttft_s += alone / TICKS_PER_S - ROUNDING_S
        decode_s += (gaps * each + slope * context) / TICKS_PER_S - gaps * ROUNDING_S
        stage_s.append((per_token * (prompt + gaps) + slope * context) / TICKS_PER_S)
    return Floor(
        ttft_s=np.maximum(ttft_s, 0.0),
        decode_s=np.maximum(decode_s, 0.0),
        stage_s=np.array(stage_s) * (1 - 1e-6),
    )


def _per_token(stage: StageCost) -> float:
    """Least price of one token's pass through the linear layers, in the best batch."""
    return float((np.array(stage.linear[1:]) / np.arange(1, len(stage.linear))).min())


def _attention(
    stage: StageCost, prompt: Floats, cached: bool, per_token: float
) -> tuple[Floats, float, float]:
    """Least attention of a prefill, and of a decode: its base and its price a context token.

    A token after a preemption comes from a recompute, or from cached context, instead.
    """
    prefill, base, slope = np.zeros(len(prompt)), 0.0, 0.0
    for cost in stage.attention:
        prefill += cost.prefill_base + cost.prefill_per_token * prompt
        base += min(*cost.decode_base[1:], cost.prefill_base)
        if cost.window == 0:
            prefill += cost.prefill_per_pair * prompt * (prompt + 1) / 2
            again = cost.prefill_per_context_token if cached else per_token
            slope += min(*cost.decode_per_token[1:], again)
    return prefill, base, slope


def _latency_bound(spec: SearchSpec, floor: Floor) -> float:
    """The objective's statistic of the least times, in its unit (ms)."""
    gaps = spec.workload.output_tokens - 1
    if spec.objective == TTFT:
        times = floor.ttft_s
    elif spec.objective == TPOT:
        times = floor.decode_s[gaps > 0] / gaps[gaps > 0]
    else:
        assert spec.objective == E2E
        times = floor.ttft_s + floor.decode_s
    if len(times) == 0:
        return math.inf
    statistic = spec.objective_statistic
    if statistic == "mean":
        return float(times.mean()) * 1000
    return float(np.percentile(times, PERCENTILES[statistic])) * 1000


def _rate_bound(spec: SearchSpec, candidate: Candidate, floor: Floor) -> float:
    """Requests a second that can meet the SLOs: 0 if too few do alone, else by the work they are.

    The requests that meet them are at least a share `attainment` and end within their latest
    deadline, so the work of the cheapest such share fits between the first arrival and there.
    """
    slo, table = spec.slo, spec.workload
    gaps = table.output_tokens - 1
    deadline_s = np.minimum(slo.ttft_s + _times(gaps, slo.tpot_s), slo.e2e_s)
    meets = floor.ttft_s <= slo.ttft_s
    meets &= floor.decode_s <= _times(gaps, slo.tpot_s)
    meets &= floor.ttft_s + floor.decode_s <= slo.e2e_s
    needed = max(1, math.ceil(slo.attainment * len(table) - 1e-9))
    if int(meets.sum()) < needed:
        return 0.0
    ranks = candidate.plan.dp * candidate.plan.attention_dp
    work_s = max(float(np.sort(row)[:needed].sum()) for row in floor.stage_s) / ranks
    spare_s = work_s - float(deadline_s.max())
    if not spare_s > 0:
        return math.inf
    return spec.offered_rate_per_s * table.duration_s / spare_s


def _times(gaps: NDArray[np.int64], tpot_s: float) -> Floats:
    """Time the tokens after the first may take; unlimited without a target."""
    if math.isinf(tpot_s):
        return np.full(len(gaps), math.inf)
    return gaps.astype(np.float64) * tpot_s


def _spending_bound(spec: SearchSpec, candidate: Candidate, floor: Floor) -> float:
    """Rent, or idle energy, of the shortest possible run a million, or one, output tokens."""
    table = spec.workload
    if not table.is_open_loop:
        return 0.0
    arrival_s = (table.arrival_ns - table.arrival_ns[0]) / 1e9
    least_s = float((arrival_s + floor.ttft_s + floor.decode_s).max())
    output_tokens = float(table.answer_tokens.sum())
    if spec.objective == COST:
        price = price_per_hour(experiment_of(spec, candidate, table))
        return price / 3600 * least_s * 1e6 / output_tokens
    idle_w = min(group.gpu.idle_w for group in candidate.cluster.groups)
    return idle_w * candidate.plan.num_gpus * least_s / output_tokens


def waves(first: Sequence[int], others: Sequence[int]) -> Iterator[list[int]]:
    """Plans in waves of growing size: `first` and a few of the others, then the others in order.

    What one wave finds prunes the next, so waves must not depend on the machine or on who ends
    first.
    """
    start, size = 0, max(0, SMALLEST_WAVE - len(first))
    yield [*first, *others[:size]]
    while start + size < len(others):
        start, size = start + size, max(SMALLEST_WAVE, 2 * size)
        yield list(others[start : start + size])
