"""The metrics of a comparison: their keys in a summary, their units, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from simulator.comparison.intervals import MEAN, P99, SUM, Floats
from simulator.experiment import Experiment
from simulator.itl import token_log
from simulator.latency import request_times, slo_met
from simulator.recorder import Result

LOWER, HIGHER = "lower", "higher"
PERCENT, POINTS = "%", "pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One row of a comparison."""

    key: str  # of `metrics.summarise`, and of a result of vllm bench serve where it has it
    title: str
    unit: str  # ms, share, $, or "" for a count or a rate
    better: str = ""  # LOWER, HIGHER; "" = neither
    column: str = ""  # of `request_columns` that it is a statistic of; "" = of the run as a whole
    statistic: str = ""

    def change_unit(self, base: float) -> str:
        """How a change from `base` is told: points of a share, % where that is defined, or as is.

        Of counts a percentage says little: most baselines have none.
        """
        if self.unit == "share":
            return POINTS
        return "" if base == 0 or self.statistic == SUM else PERCENT


def _latency(column: str, title: str, statistic: str, key: str = "") -> Metric:
    return Metric(
        key=f"{statistic}_{key or column}_ms",
        title=f"{title} {statistic}",
        unit="ms",
        better=LOWER,
        column=column,
        statistic=statistic,
    )


METRICS = (
    _latency("ttft", "TTFT", MEAN),
    _latency("ttft", "TTFT", P99),
    _latency("tpot", "TPOT", MEAN),
    _latency("tpot", "TPOT", P99),
    _latency("e2e", "E2E", MEAN, "e2el"),
    Metric(key="output_throughput", title="tokens/s", unit="", better=HIGHER),
    Metric(key="request_goodput", title="goodput /s", unit="", better=HIGHER),
    Metric(
        key="slo_attainment",
        title="SLO met",
        unit="share",
        better=HIGHER,
        column="met",
        statistic=MEAN,
    ),
    Metric(key="usd_per_million_output_tokens", title="$ / M out", unit="$", better=LOWER),
    Metric(key="mean_kv_utilisation", title="KV used", unit="share"),
    Metric(
        key="preemptions",
        title="preemptions",
        unit="",
        better=LOWER,
        column="preemptions",
        statistic=SUM,
    ),
)


def picked(summary: Mapping[str, object]) -> dict[str, float | None]:
    """The metrics of a summary; None where it has none, or no number."""
    return {metric.key: _number(summary.get(metric.key)) for metric in METRICS}


def request_columns(experiment: Experiment, result: Result) -> dict[str, Floats]:
    """What the metrics are statistics of, an entry a request in order of arrival.

    ttft, tpot, e2e: ms, NaN where the request did not complete; met: 1 where it met every SLO;
    preemptions: how often.
    """
    times, done = request_times(result, token_log(result)), result.completed
    latencies = {"ttft": times.ttft_s, "tpot": times.tpot_s, "e2e": times.e2e_s}
    return {
        **{name: np.where(done, 1e3 * seconds, np.nan) for name, seconds in latencies.items()},
        "met": slo_met(result, times, experiment.slo)["all"].astype(np.float64),
        "preemptions": result.preemptions.astype(np.float64),
    }


def _number(value: object) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) else None
