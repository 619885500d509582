"""guidellm's benchmarks.json: several runs a file, of a sweep or of several rates.

The formats of guidellm 0.2 and 0.3 (src/guidellm/benchmark/benchmark.py) and of 0.4 to 0.8
(src/guidellm/benchmark/schemas). Traps: request latency is in seconds and everything else in ms;
its "time per output token" includes the first token; its "inter-token latency" is a request's mean
gap, weighted by the request's gaps. So the mean of that is the mean of all gaps (ITL), while its
percentiles are neither ITL's nor TPOT's. TPOT is taken from the requests, where all are there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simulator.bench_results.result import (
    STATISTICS,
    BenchResult,
    in_order,
    known,
    number,
    statistics_of,
    text,
    whole,
)
from simulator.errors import ConfigError

FILE = "benchmarks.json"
DONE = "successful"


def read(path: Path, document: Mapping[str, Any]) -> list[BenchResult]:
    """Every benchmark of a report."""
    version = text((document.get("metadata") or {}).get("guidellm_version"))
    runs: Sequence[Mapping[str, Any]] = document["benchmarks"]
    return [_run(path, number, run, version) for number, run in enumerate(runs, 1)]


def _run(path: Path, place: int, run: Mapping[str, Any], version: str | None) -> BenchResult:
    metrics = run["metrics"]
    totals = metrics.get("request_totals") or run["request_totals"]
    completed = whole(totals, DONE, path)
    requests = [r for r in (run.get("requests") or {}).get(DONE) or () if _counted(r)]
    everyone = requests if len(requests) == completed else []
    config = run.get("config") or {}
    model = (config.get("backend") or run.get("worker") or {}).get
    incomplete = whole(totals, "incomplete", path)
    return BenchResult(
        path=path,
        name=f"{path.stem}-{place}",
        tool="guidellm",
        tool_version=version,
        model=text(model("model")) or text(model("backend_model")),
        completed=completed,
        failed=whole(totals, "errored", path),
        duration_s=number(run, "duration", path),
        **_load(path, config or run["args"], completed),
        total_input_tokens=_total(path, metrics, "prompt_token_count"),
        total_output_tokens=_total(path, metrics, "output_token_count"),
        output_tokens_per_s=number(_done(metrics, "output_tokens_per_second"), "mean", path),
        **_requests(everyone),
        latencies_s=_latencies(path, metrics, everyone),
        notes=(f"{incomplete} requests were cut by the end of the benchmark",)
        if incomplete
        else (),
    )


def _load(path: Path, config: Mapping[str, Any], completed: int | None) -> dict[str, Any]:
    """How requests were sent. A limit no smaller than the number of requests never binds."""
    strategy = config["strategy"]
    kind = strategy["type_"]
    limit = whole(strategy, "max_concurrency", path)
    if limit is not None and completed is not None and limit >= completed:
        limit = None
    if kind in ("constant", "poisson"):
        return {
            "request_rate_per_s": number(strategy, "rate", path),
            "burstiness": 1.0 if kind == "poisson" else math.inf,
            "max_concurrency": limit,
        }
    if kind == "trace":
        return {"is_replay": True}
    if kind not in ("synchronous", "concurrent", "throughput"):
        raise ConfigError(f"{path}: strategy: expected a kind that is known (got {kind!r})")
    streams = {"synchronous": 1, "concurrent": whole(strategy, "streams", path)}
    return {"request_rate_per_s": math.inf, "max_concurrency": streams.get(kind, limit)}


def _done(metrics: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (metrics.get(name) or {}).get(DONE) or {}
    return found if found.get("count") != 0 else {}


def _total(path: Path, metrics: Mapping[str, Any], name: str) -> int | None:
    value = number(_done(metrics, name), "total_sum", path)
    return None if value is None else round(value)


def _counted(request: Mapping[str, Any]) -> bool:
    return bool(request.get("prompt_tokens")) and bool(request.get("output_tokens"))


def _requests(requests: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not requests:
        return {}
    columns = {
        "input_tokens": [r["prompt_tokens"] for r in requests],
        "output_tokens": [r["output_tokens"] for r in requests],
    }
    starts = [r.get("request_start_time", r.get("start_time")) for r in requests]  # 0.4 and 0.3
    return in_order(columns | ({"sent_s": starts} if None not in starts else {}))


def _latencies(
    path: Path, metrics: Mapping[str, Any], requests: Sequence[Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    gap_s = number(_done(metrics, "inter_token_latency_ms"), "mean", path)
    per_token = [r.get("inter_token_latency_ms") for r in requests if r["output_tokens"] > 1]
    tpot_s = np.array([ms for ms in per_token if ms is not None], dtype=np.float64) / 1e3
    found = {
        "ttft": _statistics(path, _done(metrics, "time_to_first_token_ms"), 1e-3),
        "tpot": statistics_of(tpot_s) if len(tpot_s) == len(per_token) else {},
        "itl": known({"mean": gap_s}, 1e-3),
        "e2e": _statistics(path, _done(metrics, "request_latency"), 1.0),
    }
    return {name: values for name, values in found.items() if values}


def _statistics(path: Path, summary: Mapping[str, Any], scale: float) -> dict[str, float]:
    ranked = summary.get("percentiles") or {}
    values = {name: number(ranked, name, path) for name in STATISTICS if name in ranked}
    median = number(summary, "median", path)
    return known({"mean": number(summary, "mean", path), "p50": median} | values, scale)
