"""A run as the metrics vLLM exports, in OpenMetrics text with timestamps of simulated time.

`promtool tsdb create-blocks-from openmetrics FILE` fills a Prometheus with it. Metric by metric,
rank by rank and in time order, as the format asks for; the clock starts at 0 s.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simulator.errors import ConfigError
from simulator.openmetrics.names import (
    COUNTERS,
    GAUGES,
    HISTOGRAMS,
    LABELS,
    SUCCESS,
    TOKEN_HISTOGRAMS,
)
from simulator.openmetrics.series import Distribution, Ints, RankSeries, rank_series
from simulator.recorder import Result
from simulator.save import replacing
from simulator.units import show_time, to_ns

SUFFIXES = (".prom", ".txt", ".om")
LINES = 100_000  # of a file, about 10 MB, unless an interval is asked for
MOST_LINES = 5_000_000
STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)  # and whole hours
REASON = "length"  # the workload says how long each answer is


@dataclass(frozen=True, slots=True)
class Written:
    """What is in the file."""

    interval_s: float
    num_moments: int
    num_ranks: int


def save_metrics(
    path: str | Path,
    result: Result,
    model: str,
    interval_s: float | None = None,
    most_tokens: int = 0,
) -> Written:
    """Write the metrics of each rank every so often, and at the end of the run.

    `most_tokens` of a context bounds the buckets of lengths; 0 = the longest request there is.

    Raises:
        ConfigError: an interval that makes more than `MOST_LINES` lines, or no place to write.
    """
    end_ns = max(result.end_ns, int(result.finish_ns.max()), int(result.sent_ns.max()), 0)
    lines = len(result.num_blocks) * _lines_a_moment()
    if interval_s is None:
        interval_s = _interval_s(end_ns / 1e9, LINES / lines)
    elif end_ns / 1e9 / interval_s * lines > MOST_LINES:
        least = math.ceil(end_ns / 1e9 * lines / MOST_LINES * 1e3) / 1e3
        raise ConfigError(
            f"--metrics-interval: expected at least {show_time(least)} of a run of "
            f"{show_time(end_ns / 1e9)} (got {show_time(interval_s)})"
        )
    step_ns = max(1, to_ns(interval_s))
    moments_ns = np.unique(np.append(np.arange(0, end_ns, step_ns, dtype=np.int64), end_ns))
    ranks = list(rank_series(result, moments_ns, most_tokens))
    with replacing(path, SUFFIXES) as place, place.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in _lines(ranks, moments_ns, model))
    return Written(interval_s, len(moments_ns), len(ranks))


def _lines_a_moment() -> int:
    """Of one rank, about."""
    buckets = sum(len(ends) + 3 for ends, _ in HISTOGRAMS.values()) + 20 * len(TOKEN_HISTOGRAMS)
    return len(GAUGES) + len(COUNTERS) + 1 + buckets


def _interval_s(duration_s: float, moments: float) -> float:
    """The smallest round interval that gives no more moments than that."""
    least = duration_s / max(1.0, moments)
    return next((float(s) for s in STEPS_S if s >= least), 3600.0 * math.ceil(least / 3600))


def _lines(ranks: Sequence[RankSeries], moments_ns: Ints, model: str) -> Iterator[str]:
    stamps = [f"{ns // 10**9}.{ns % 10**9:09d}" for ns in moments_ns.tolist()]
    name = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    labels = [f'{LABELS[0]}="{name}",{LABELS[1]}="{rank}"' for rank in range(len(ranks))]
    each = list(zip(labels, ranks, strict=True))
    for metric, text in GAUGES.items():
        yield from _head(metric, "gauge", text)
        for label, one in each:
            yield from _plain(f"{metric}{{{label}}}", one.gauges[metric].tolist(), stamps)
    for metric, text in COUNTERS.items():
        yield from _head(metric, "counter", text)
        for label, one in each:
            yield from _plain(f"{metric}_total{{{label}}}", one.counters[metric].tolist(), stamps)
    yield from _head(SUCCESS[0], "counter", SUCCESS[1])
    for label, one in each:
        start = f'{SUCCESS[0]}_total{{{label},finished_reason="{REASON}"}}'
        yield from _plain(start, one.success.tolist(), stamps)
    texts = {name: text for name, (_, text) in HISTOGRAMS.items()} | TOKEN_HISTOGRAMS
    for metric, text in texts.items():
        yield from _head(metric, "histogram", text)
        for label, one in each:
            yield from _histogram(metric, label, one.histograms[metric], stamps)
    yield "# EOF"


def _head(metric: str, kind: str, text: str) -> Iterator[str]:
    yield f"# TYPE vllm:{metric} {kind}"
    yield f"# HELP vllm:{metric} {text}"


def _plain(start: str, values: Sequence[float], stamps: Sequence[str]) -> Iterator[str]:
    for value, stamp in zip(values, stamps, strict=True):
        shown = value if isinstance(value, int) else f"{value:.10g}"
        yield f"vllm:{start} {shown} {stamp}"


def _histogram(
    metric: str, label: str, values: Distribution, stamps: Sequence[str]
) -> Iterator[str]:
    ends = [*map(str, values.ends), "+Inf"]
    starts = [f'vllm:{metric}_bucket{{{label},le="{end}"}}' for end in ends]
    for counts, total, stamp in zip(
        values.counts.tolist(), values.sums.tolist(), stamps, strict=True
    ):
        for start, count in zip(starts, counts, strict=True):
            yield f"{start} {count} {stamp}"
        yield f"vllm:{metric}_count{{{label}}} {counts[-1]} {stamp}"
        yield f"vllm:{metric}_sum{{{label}}} {total:.10g} {stamp}"
