"""What "better" means: objectives, their constraints and the order they put plans in."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from simulator.spec import Slo
from simulator.units import show_time

Metrics = Mapping[str, Any]  # of one simulation, JSON-safe: None where a metric is undefined

E2E, TTFT, TPOT, GOODPUT = "e2e", "ttft", "tpot", "goodput"
COST, ENERGY, GPUS = "cost", "energy", "gpus"
LATENCY_OBJECTIVES = (E2E, TTFT, TPOT)
STATISTICS = {"mean": "mean", "p50": "median", "p90": "p90", "p99": "p99"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """One thing to minimise or maximise, read from the metrics of a plan."""

    metric: str  # {} = the statistic
    unit: str
    title: str
    larger_is_better: bool = False
    under_slo: bool = False  # plans that miss the SLOs rank behind every plan that holds them


OBJECTIVES: dict[str, Objective] = {
    E2E: Objective(metric="{}_e2el_ms", unit="ms", title="E2E latency"),
    TTFT: Objective(metric="{}_ttft_ms", unit="ms", title="TTFT"),
    TPOT: Objective(metric="{}_tpot_ms", unit="ms", title="TPOT"),
    GOODPUT: Objective(
        metric="goodput_rate_per_s",
        unit="requests/s",
        title="request rate under the SLOs",
        larger_is_better=True,
    ),
    COST: Objective(
        metric="usd_per_million_output_tokens",
        unit="$/M output tokens",
        title="cost",
        under_slo=True,
    ),
    ENERGY: Objective(
        metric="energy_j_per_output_token", unit="J/output token", title="energy", under_slo=True
    ),
    GPUS: Objective(metric="num_gpus", unit="GPUs", title="GPUs", under_slo=True),
}


def metric_name(objective: str, statistic: str) -> str:
    """Key of the objective in a plan's metrics."""
    return OBJECTIVES[objective].metric.format(STATISTICS[statistic])


def value_of(metrics: Metrics, objective: str, statistic: str) -> float:
    """The objective's value; NaN where it is undefined."""
    value = metrics.get(metric_name(objective, statistic))
    return math.nan if value is None else float(value)


def holds_slo(metrics: Metrics, slo: Slo) -> bool:
    """True where enough requests meet every target, or there is no target."""
    attainment = metrics.get("slo_attainment")
    return not slo.is_set or (attainment is not None and attainment >= slo.attainment)


def show_objective(value: float, objective: str) -> str:
    """For people, with its unit."""
    unit = OBJECTIVES[objective].unit
    return show_time(value / 1000) if unit == "ms" else f"{value:.3g} {unit}"


def order(metrics: Metrics, objective: str, statistic: str, slo: Slo) -> tuple[float, ...]:
    """Sort key, best first: serves everything, holds the SLOs where asked, value, E2E."""
    goal = OBJECTIVES[objective]
    value = value_of(metrics, objective, statistic)
    unserved = float(metrics.get("failed") or 0) + float(metrics.get("unfinished") or 0)
    missed = 0.0
    if goal.under_slo and not holds_slo(metrics, slo):
        missed = 1.0 - float(metrics.get("slo_attainment") or 0.0)
    if math.isnan(value):
        value = math.inf
    elif goal.larger_is_better:
        value = -value
    mean_e2e = metrics.get("mean_e2el_ms")
    return (unserved, missed, value, math.inf if mean_e2e is None else float(mean_e2e))
