"""One measured run as its file states it, and the accessors that read such files strictly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ConfigError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

LATENCIES = ("ttft", "tpot", "itl", "e2e")
PERCENTILES = (50, 90, 95, 99)
STATISTICS = ("mean", *(f"p{percent}" for percent in PERCENTILES))


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """A run of a load generator; None = its file does not say.

    Definitions are those of `vllm bench serve`: TPOT is a request's mean time a token after its
    first, ITL pools the gaps of all requests. A tool's statistic that is neither is left out.
    """

    path: Path
    name: str  # of the run, unlike the other runs of its file
    tool: str  # vllm, sglang, guidellm, aiperf
    tool_version: str | None = None
    engine: str | None = None  # what served: vllm, sglang, tensorrt-llm
    engine_version: str | None = None
    tp: int | None = None
    model: str | None = None
    completed: int | None = None
    failed: int | None = None
    duration_s: float | None = None
    request_rate_per_s: float | None = None  # offered; inf = all at once
    burstiness: float | None = None  # shape of the gamma gaps: 1 = Poisson, inf = constant gaps
    is_replay: bool = False  # of the arrivals of a trace
    max_concurrency: int | None = None  # of the client
    total_input_tokens: int | None = None  # of completed requests
    total_output_tokens: int | None = None
    output_tokens_per_s: float | None = None
    # Least and most tokens where lengths were drawn evenly between them; None = not stated.
    input_range: tuple[int, int] | None = None
    output_range: tuple[int, int] | None = None
    # One entry a completed request, in the order they were sent.
    input_tokens: Ints | None = None
    output_tokens: Ints | None = None
    sent_s: Floats | None = None  # after the first of them
    latencies_s: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what a reader of the numbers should know

    def latency_s(self, metric: str, statistic: str) -> float | None:
        """ "ttft", "tpot", "itl" or "e2e"; "mean", "p50", "p90", "p95" or "p99"."""
        return self.latencies_s.get(metric, {}).get(statistic)

    @property
    def is_open_loop(self) -> bool:
        """Whether requests were sent at a rate, whatever was in flight."""
        rate = self.request_rate_per_s
        return self.is_replay or (rate is not None and math.isfinite(rate))


def number(data: Mapping[str, Any], key: str, path: Path) -> float | None:
    """A number, or None where the key is missing or null; NaN is "not measured".

    Differences of times that came out just below 0, as of a client that did not stream, are 0.

    Raises:
        ConfigError: something else.
    """
    value = data.get(key)
    if value is None:
        return None
    if isinstance(value, str) and value.lower() in ("inf", "infinity"):
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{path}: {key}: expected a number (got {value!r})")
    if -1 < value < 0:
        return 0.0
    if value < 0:
        raise ConfigError(f"{path}: {key}: expected a number >= 0 (got {value!r})")
    return None if math.isnan(value) else float(value)


def whole(data: Mapping[str, Any], key: str, path: Path) -> int | None:
    """A whole number, as `number`."""
    value = number(data, key, path)
    if value is not None and value != int(value):
        raise ConfigError(f"{path}: {key}: expected a whole number (got {value!r})")
    return None if value is None else int(value)


def text(value: object) -> str | None:
    """A text with something in it."""
    return value if isinstance(value, str) and value not in ("", "None", "N/A") else None


def statistics_of(values_s: Floats) -> dict[str, float]:
    """Mean and percentiles (numpy's linear ones), of nothing: nothing."""
    if len(values_s) == 0:
        return {}
    ranked = np.percentile(values_s, PERCENTILES).tolist()
    return dict(zip(STATISTICS, [float(values_s.mean()), *ranked], strict=True))


def known(values: Mapping[str, float | None], scale: float) -> dict[str, float]:
    """Latencies in seconds without those that are not stated, or 0: tools write 0 for "none"."""
    return {name: value * scale for name, value in values.items() if value}


def in_order(columns: Mapping[str, Sequence[float]]) -> dict[str, NDArray[Any]]:
    """Arrays in the order of `sent_s`, which then starts at 0; in the order given without it."""
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    if "sent_s" not in arrays or len(arrays["sent_s"]) == 0:
        return arrays
    order = np.argsort(arrays["sent_s"], kind="stable")
    arrays = {name: values[order] for name, values in arrays.items()}
    arrays["sent_s"] = arrays["sent_s"] - arrays["sent_s"][0]
    return arrays
