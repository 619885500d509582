"""Results of `vllm bench serve` and SGLang's bench_serving as measured runs; profiles as files."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from simulator.errors import ConfigError
from simulator.profiles import EngineProfile
from simulator.validation.rows import Row

# Key of a result, and column of a run.
STATED = {
    "mean_{0}_ms": "{0}_mean_ms",
    "median_{0}_ms": "{0}_p50_ms",
    "p90_{0}_ms": "{0}_p90_ms",
    "p95_{0}_ms": "{0}_p95_ms",
    "p99_{0}_ms": "{0}_p99_ms",
}
METRICS = {"ttft": "ttft", "tpot": "tpot", "itl": "itl", "e2el": "e2e", "e2e_latency": "e2e"}


def row_of_result(path: Path, deployment: Mapping[str, str], folder: Path) -> Row:
    """A run from a result file; lengths it states in detail are written as a workload to `folder`.

    `deployment` holds the columns a result does not know: gpu, tp, engine_version, ...

    Raises:
        ConfigError: not such a result.
    """
    try:
        lines = path.read_text().splitlines()
        if path.suffix == ".jsonl" and len(lines) != 1:  # SGLang appends
            raise ConfigError(f"{path}: expected one result, one line (got {len(lines)} lines)")
        result = json.loads("\n".join(lines))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(result, dict) or "mean_ttft_ms" not in result:
        raise ConfigError(
            f"{path}: expected a result of `vllm bench serve` or of SGLang's bench_serving "
            "(no mean_ttft_ms)"
        )
    if result.get("request_rate") == "trace":
        raise ConfigError(f"{path}: request_rate: expected a rate (got the times of a trace)")
    try:
        cells = _load(result) | _latencies(result)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise ConfigError(f"{path}: {type(error).__name__}: {error}") from None
    if result.get("input_lens") and result.get("output_lens"):
        cells |= _detail(result, folder / f"{path.stem}.csv")
    model = {"model_hf": str(result["model_id"])} if result.get("model_id") else {}
    stated = {name: text for name, text in deployment.items() if text}
    engine = "sglang" if str(result.get("backend", "")).startswith("sglang") else "vllm"
    return Row({"run_id": path.stem, "engine": engine, "tp": "1", **model, **cells, **stated})


def _load(result: Mapping[str, Any]) -> dict[str, str]:
    completed = int(result.get("completed") or result["num_prompts"])
    count = int(result.get("num_prompts") or completed)
    limit, rate = result.get("max_concurrency"), result.get("request_rate", "inf")
    is_open = str(rate) not in ("inf", "Infinity", "None")
    return {
        "num_requests": str(count),
        "request_rate_rps": str(rate) if is_open else "",
        "burstiness_gamma_shape": str(result.get("burstiness") or 1.0),
        "max_concurrency": str(limit or ""),
        "arrival_kind": "gamma" if is_open else "closed" if limit else "burst",
        "input_len_kind": "constant",
        "input_len_mean": str(result["total_input_tokens"] / completed),
        "output_len_kind": "constant",
        "output_len_mean": str(result["total_output_tokens"] / completed),
        "output_tok_s": str(result.get("output_throughput") or ""),
    }


def _latencies(result: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for theirs, ours in METRICS.items():
        for key, column in STATED.items():
            if result.get(key.format(theirs)) is not None:
                found[column.format(ours)] = str(float(result[key.format(theirs)]))
    return found


def _detail(result: Mapping[str, Any], path: Path) -> dict[str, str]:
    """The lengths (and, where it states them, sending times) of each request."""
    starts = result.get("start_times") or []
    lengths = list(zip(result["input_lens"], result["output_lens"], strict=True))
    timed = len(starts) == len(lengths)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["input_tokens", "output_tokens", *(["arrival_s"] if timed else [])])
        order = sorted(range(len(lengths)), key=lambda i: starts[i]) if timed else None
        for i in order or range(len(lengths)):
            writer.writerow([*lengths[i], *([starts[i] - min(starts)] if timed else [])])
    is_closed = bool(result.get("max_concurrency"))
    cells = {"workload_file": path.name, "input_len_kind": "file", "output_len_kind": "file"}
    return cells | ({"arrival_kind": "file"} if timed and not is_closed else {})


def write_profile(
    path: Path, profile: EngineProfile, host: Mapping[str, float], source: str
) -> None:
    """The profile with other host times, as a file that `--profile` reads.

    Raises:
        ConfigError: the file cannot be written.
    """
    data: dict[str, Any] = {f.name: getattr(profile, f.name) for f in fields(profile)}
    data |= {
        "name": path.stem,
        "since": ".".join(str(part) for part in profile.since),
        "aliases": [path.stem],
        "limits": [list(limit) for limit in profile.limits],
        "host": {key: float(f"{value:.4g}") for key, value in {**profile.host, **host}.items()},
        "sources": {"host": source, "others": f"profile {profile.name}"},
    }
    try:
        path.write_text(yaml.safe_dump(data, sort_keys=False))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None
