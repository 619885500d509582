"""`vllm bench serve` and SGLang's bench_serving: a flat JSON object a run, times in ms.

The formats of vLLM 0.33.0 (vllm/benchmarks/serve.py) and SGLang 0.5.23
(python/sglang/benchmark/serving.py), which appends one line a run to its --output-file. Older
versions write fewer keys. vLLM's `latencies` are there without --save-detailed too, and give the
end-to-end latency that it states only when asked (--percentile-metrics e2el).
"""

from __future__ import annotations

from collections.abc import Mapping
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

METRICS = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2el": "e2e", "e2e_latency": "e2e"}
KEYS = {"median": "p50", **{name: name for name in STATISTICS}}
ENGINES = {
    "vllm": "vllm",
    "sglang": "sglang",
    "trt": "tensorrt-llm",
    "tensorrt-llm": "tensorrt-llm",
}


def is_result(document: Mapping[str, Any]) -> bool:
    """Whether it is such a run, of requests that generate."""
    return "completed" in document and any(f"mean_{name}_ms" in document for name in METRICS)


def read(path: Path, place: int, document: Mapping[str, Any]) -> BenchResult:
    """The run of one JSON object, the `place`-th of its file."""
    # SGLang takes the model from the server, and writes all the server says of itself.
    server = document.get("server_info") or {}
    is_sglang = "model_id" not in document and "dataset_name" in document
    completed = whole(document, "completed", path)
    rate = document.get("request_rate")
    is_replay = rate == "trace"
    return BenchResult(
        path=path,
        name=f"{path.stem}-{place + 1}",
        tool="sglang" if is_sglang else "vllm",
        engine=_engine(document),
        engine_version=text(server.get("version")),
        tp=whole(server, "tp_size", path),
        model=text(document.get("model_id")) or text(server.get("model_path")),
        completed=completed,
        failed=_failed(document, path),
        duration_s=number(document, "duration", path),
        request_rate_per_s=None if is_replay else number(document, "request_rate", path),
        # SGLang has no such option: its gaps are exponential.
        burstiness=1.0 if is_sglang else number(document, "burstiness", path),
        is_replay=is_replay,
        max_concurrency=whole(document, "max_concurrency", path),
        total_input_tokens=whole(document, "total_input_tokens", path),
        total_output_tokens=whole(document, "total_output_tokens", path),
        output_tokens_per_s=number(document, "output_throughput", path),
        input_range=_range(path, document, "input") if is_sglang else None,
        output_range=_range(path, document, "output") if is_sglang else None,
        **_requests(path, document),
        latencies_s=_latencies(path, document, completed),
    )


def _engine(document: Mapping[str, Any]) -> str | None:
    """The engine a backend is named after; "openai" names none."""
    backend = str(document.get("backend") or document.get("endpoint_type") or "")
    return next((engine for name, engine in ENGINES.items() if backend.startswith(name)), None)


def _failed(document: Mapping[str, Any], path: Path) -> int | None:
    errors = document.get("errors")
    if document.get("failed") is None and isinstance(errors, list):
        return sum(bool(error) for error in errors)
    return whole(document, "failed", path)


def _range(path: Path, document: Mapping[str, Any], side: str) -> tuple[int, int] | None:
    """What SGLang's random data sets draw from: L r to L, where r = 0 means 1 to L."""
    most = whole(document, f"random_{side}_len", path)
    ratio = number(document, "random_range_ratio", path)
    if document["dataset_name"] not in ("random", "random-ids") or not most or ratio is None:
        return None
    return max(int(most * ratio), 1), most


def _requests(path: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """Columns of the completed requests, of a result saved in detail."""
    lengths = document.get("input_lens"), document.get("output_lens")
    if not all(isinstance(column, list) and column for column in lengths):
        return {}
    given = dict(zip(("input_tokens", "output_tokens"), lengths, strict=True))
    if document.get("start_times"):
        given["sent_s"] = document["start_times"]
    count = len(given["input_tokens"] or ())
    errors = document.get("errors") or [""] * count
    for name, column in (*given.items(), ("errors", errors)):
        if len(column or ()) != count:
            raise ConfigError(f"{path}: {name}: expected {count} entries (got {len(column or ())})")
    kept = [i for i in range(count) if not errors[i]]
    return in_order({name: [column[i] for i in kept] for name, column in given.items() if column})


def _latencies(
    path: Path, document: Mapping[str, Any], completed: int | None
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for theirs, ours in METRICS.items():
        stated = {name: number(document, f"{key}_{theirs}_ms", path) for key, name in KEYS.items()}
        median = number(document, f"median_{theirs}_ms", path)
        values = known(stated | ({"p50": median} if median else {}), 1e-3)
        if values:
            found[ours] = values
    every = document.get("latencies")
    if "e2e" not in found and isinstance(every, list) and len(every) == completed:
        found["e2e"] = statistics_of(np.asarray(every, dtype=np.float64))
    return found
