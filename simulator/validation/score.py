"""Predicted against measured: the statistics a run states, their errors, and summaries of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from simulator.itl import statistics, token_log
from simulator.latency import request_times
from simulator.recorder import Result
from simulator.validation.rows import LOAD_LEVELS, METRICS

PERCENTILES = (50, 90, 95, 99)
SUMMARISED = tuple(
    f"{metric}_{statistic}"
    for statistic in ("mean", "p50", "p90", "p99")
    for metric in ("e2e", "ttft", "tpot", "itl")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One row, simulated."""

    run_id: str
    labels: Mapping[str, str]  # load_level, model, gpu, engine
    measured: Mapping[str, float]  # ms, tokens/s, blocks
    predicted: Mapping[str, float]
    notes: tuple[str, ...] = ()
    wall_s: float = 0.0

    @property
    def error(self) -> dict[str, float]:
        """Signed error of each statistic in per cent of the measured value."""
        return {
            name: 100 * (self.predicted[name] / value - 1)
            for name, value in self.measured.items()
            if name in self.predicted and value > 0
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """A whole runs.csv, simulated."""

    runs: tuple[Outcome, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)  # run_id: reason


def predicted_of(result: Result, scored: slice) -> dict[str, float]:
    """Statistics of the scored requests that completed, in ms and tokens/s."""
    log = token_log(result)
    times = request_times(result, log)
    done = np.zeros(len(result.table), dtype=bool)
    done[scored] = result.completed[scored]
    columns = {"ttft": times.ttft_s, "tpot": times.tpot_s, "e2e": times.e2e_s}
    found: dict[str, float] = {}
    for metric, column in columns.items():
        values = column[done]
        values = values[~np.isnan(values)] * 1e3
        found |= {f"{metric}_{k}": v for k, v in statistics(values, PERCENTILES).items()}
    mine = done[log.request]
    gaps, counts = type(log)(
        end_ns=log.end_ns, request=log.request[mine], first=log.first[mine], last=log.last[mine]
    ).gaps()
    found |= {f"itl_{k}": v for k, v in statistics(gaps / 1e6, PERCENTILES, counts).items()}
    sent, finish = result.sent_ns[done], result.finish_ns[done]
    if len(sent):
        span_s = (int(finish.max()) - int(sent.min())) / 1e9
        found["output_throughput"] = float(result.table.output_tokens[done].sum()) / span_s
    return {name: value for name, value in found.items() if math.isfinite(value)}


def mean_of(predictions: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each statistic over repeats with other seeds."""
    names = set(predictions[0]).intersection(*predictions[1:])
    return {n: float(np.mean([p[n] for p in predictions])) for n in predictions[0] if n in names}


def errors_of(outcomes: Iterable[Outcome], name: str) -> list[float]:
    """Signed errors (per cent) of one statistic, over the runs that state it."""
    return [run.error[name] for run in outcomes if name in run.error]


def summary_of(outcomes: Iterable[Outcome], name: str) -> dict[str, float | int | None]:
    """n, MAPE, median absolute error and bias (mean signed error) in per cent."""
    errors = np.array(errors_of(outcomes, name))
    if len(errors) == 0:
        return {"n": 0, "mape": None, "median_ape": None, "bias": None}
    return {
        "n": len(errors),
        "mape": float(np.abs(errors).mean()),
        "median_ape": float(np.median(np.abs(errors))),
        "bias": float(errors.mean()),
    }


def summaries(outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Every statistic's summary, in total and per load level."""

    def all_of(runs: Sequence[Outcome]) -> dict[str, object]:
        names = (*SUMMARISED, "output_throughput", "kv_blocks")
        return {name: summary_of(runs, name) for name in names}

    by_level = {
        level: all_of([run for run in outcomes if run.labels["load_level"] == level])
        for level in LOAD_LEVELS
    }
    return all_of(outcomes) | {"by_load": by_level}


__all__ = ["METRICS", "Outcome", "Validation", "mean_of", "predicted_of", "summaries", "summary_of"]
