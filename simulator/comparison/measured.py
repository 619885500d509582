"""Measured results beside simulations: the one place that turns a file into a column of metrics.

A result is one run of a real server, or one that was saved. It shares no random numbers with a
simulation, so nothing pairs with it and no interval comes from it: it is compared by its values.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from simulator.bench_results import LATENCIES, BenchResult, read_bench
from simulator.comparison.metrics import METRICS, Metric, picked

SUFFIXES = (".json", ".jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One result as a column of a comparison."""

    name: str
    metrics: dict[str, float | None]  # by the keys of METRICS; None = not stated


def is_result(path: str) -> bool:
    """True of what is read as a result, of a file or of a folder; experiments are YAML."""
    return Path(path).suffix in SUFFIXES or Path(path).is_dir()


def read_measured(path: str) -> Measured:
    """The metrics that the result of a load generator, or of `--save-result`, states.

    Raises:
        ConfigError: no such file, or not such a result.
    """
    result = read_bench(path)
    found = {metric.key: _stated(result, metric) for metric in METRICS}
    own = _own_keys(path)
    return Measured(
        name=result.name, metrics={k: own.get(k) if v is None else v for k, v in found.items()}
    )


def _stated(result: BenchResult, metric: Metric) -> float | None:
    if metric.column in LATENCIES:
        seconds = result.latency_s(metric.column, metric.statistic)
        return None if seconds is None else 1e3 * seconds
    return result.output_tokens_per_s if metric.key == "output_throughput" else None


def _own_keys(path: str) -> dict[str, float | None]:
    """What a file of one object says under our names: goodput, and what `--save-result` adds."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a folder, or an object a line
        return {}
    return picked(data) if isinstance(data, dict) else {}
