"""From simulated plans to an answer: the ranking, the heuristic to beat, the Pareto frontier."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from simulator.search.candidates import Candidate
from simulator.search.objective import GOODPUT, OBJECTIVES, holds_slo, order, value_of
from simulator.search.outcome import SIMULATED, PlanRecord
from simulator.search.spec import SearchSpec

PER_USER = "output_tokens_per_s_per_user"
PER_GPU = "output_tokens_per_s_per_gpu"


def ranked(spec: SearchSpec, records: Iterable[PlanRecord]) -> list[PlanRecord]:
    """Simulated plans best first, with their rank set; ties go to fewer GPUs, then simpler."""
    done = [record for record in records if record.status == SIMULATED]

    def key(record: PlanRecord) -> tuple[object, ...]:
        plan = record.candidate.plan
        score = order(record.metrics, spec.objective, spec.objective_statistic, spec.slo)
        simpler = (bool(record.candidate.variant), plan.pp, plan.tp, record.label)
        return (*score, plan.num_gpus, *simpler)

    done.sort(key=key)
    for place, record in enumerate(done, start=1):
        record.rank = place
    return done


def is_answer(spec: SearchSpec, record: PlanRecord) -> bool:
    """Whether the top of the ranking is worth recommending: it serves, and holds what it must."""
    score = order(record.metrics, spec.objective, spec.objective_statistic, spec.slo)
    _, missed, value, _ = score
    serves = bool(record.metrics.get("completed")) and math.isfinite(value)
    return serves and missed == 0 and not (value == 0 and spec.objective == GOODPUT)


def heuristic(spec: SearchSpec, candidates: Sequence[Candidate]) -> int | None:
    """Index of the plan people reach for: TP inside a node, PP across nodes, DP for the rest.

    The largest TP up to the GPUs of a node, then the fewest stages that fit, then as many replicas
    as there is room for; engine defaults, experts sliced like the rest.
    """
    node = max(group.gpus_per_node for group in spec.cluster.groups)
    best: tuple[tuple[int, ...], int] | None = None
    for index, candidate in enumerate(candidates):
        plan = candidate.plan
        if candidate.reason or plan.attention_dp > 1 or plan.tp > node:
            continue
        lost = spec.cluster.num_gpus - candidate.cluster.num_gpus
        variant = len(candidate.variant.split())
        key = (lost, variant, -plan.tp, plan.pp, plan.ep, -plan.dp, index)
        if best is None or key < best[0]:
            best = (key, index)
    return None if best is None else best[1]


def speedup(spec: SearchSpec, best: PlanRecord, other: PlanRecord) -> float | None:
    """How many times better `best` is than `other`; None where that has no meaning."""
    goal = OBJECTIVES[spec.objective]
    if other.status != SIMULATED or (goal.under_slo and not holds_slo(other.metrics, spec.slo)):
        return None
    values = [
        value_of(record.metrics, spec.objective, spec.objective_statistic)
        for record in (best, other)
    ]
    top, bottom = values if goal.larger_is_better else reversed(values)
    ratio = top / bottom if bottom > 0 else math.nan
    return ratio if math.isfinite(ratio) else None


def pareto(records: Iterable[PlanRecord]) -> list[PlanRecord]:
    """Plans no other beats in both tokens/s a user sees and tokens/s a GPU gives."""
    points = [
        (float(record.metrics[PER_USER]), float(record.metrics[PER_GPU]), record)
        for record in records
        if record.metrics.get(PER_USER) is not None and record.metrics.get(PER_GPU) is not None
    ]
    points.sort(key=lambda point: (-point[0], -point[1]))
    frontier: list[PlanRecord] = []
    most = -math.inf
    for _, per_gpu, record in points:
        if per_gpu > most:
            frontier.append(record)
            most = per_gpu
    return frontier[::-1]
