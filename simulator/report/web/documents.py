"""The JSON that our commands print, read back and told apart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import ConfigError

SEARCH, RUN, VALIDATION = "search", "simulate", "validate"
KEYS = {
    SEARCH: {"objective", "metric", "plans", "counts"},
    VALIDATION: {"summary", "runs", "skipped"},
    RUN: {"duration", "completed", "mean_ttft_ms", "output_throughput"},
}
PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)  # those that a result may state
METRICS = {"TTFT": "ttft", "TPOT": "tpot", "ITL": "itl", "E2E": "e2el"}
Curve = list[tuple[float, float]]  # seconds, share that is shorter


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One result."""

    file: str
    kind: str
    data: Mapping[str, Any]


def read_document(path: str | Path) -> Document:
    """A result of `search`, `simulate` or `validate`, or what --save-result wrote.

    Raises:
        ConfigError: no file, no JSON, or JSON of something else.
    """
    file = Path(path)
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: expected JSON, as --json prints it ({error})") from None
    keys = set(data) if isinstance(data, dict) else set()
    for kind, needed in KEYS.items():
        if needed <= keys:
            return Document(file=file.name, kind=kind, data=data)
    got = f"keys {', '.join(sorted(keys)[:4])}" if keys else f"a {type(data).__name__}"
    raise ConfigError(
        f"{file}: expected what `headway search`, `simulate` or `validate` prints with --json "
        f"(got {got})"
    )


def distribution(metrics: Mapping[str, Any], metric: str) -> Curve:
    """Of one latency: all there is of a detailed result, else the percentiles that are stated."""
    values = _every(metrics, metric)
    if len(values):
        shares = np.concatenate((np.arange(0, 100), [99.5, 99.9, 100])) / 100
        found = np.quantile(values, shares)
        return list(zip(found.tolist(), shares.tolist(), strict=True))
    stated = {q: metrics.get(f"p{q}_{metric}_ms") for q in PERCENTILES}
    return [(value / 1e3, q / 100) for q, value in stated.items() if value is not None]


def is_detailed(metrics: Mapping[str, Any]) -> bool:
    """True of a result with an entry a request."""
    return "latencies" in metrics


def _every(metrics: Mapping[str, Any], metric: str) -> np.typing.NDArray[np.float64]:
    """Seconds of each completed request (of each gap, for ITL); empty where not kept."""
    if not is_detailed(metrics):
        return np.empty(0)
    done = np.array([not error for error in metrics["errors"]], dtype=bool)
    if metric == "itl":
        return np.concatenate([np.empty(0), *(np.array(gaps) for gaps in metrics["itls"])])
    ttft_s, e2e_s = np.array(metrics["ttfts"])[done], np.array(metrics["latencies"])[done]
    tokens = np.array(metrics["output_lens"])[done]
    if metric == "tpot":
        several = tokens > 1
        return np.asarray((e2e_s - ttft_s)[several] / (tokens[several] - 1), dtype=np.float64)
    return np.asarray(ttft_s if metric == "ttft" else e2e_s, dtype=np.float64)
