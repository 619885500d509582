"""Results of load generators as measured runs; profiles as files."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from simulator.bench_results import LATENCIES, STATISTICS, BenchResult, read_benches
from simulator.errors import ConfigError, unknown_name
from simulator.profiles import EngineProfile
from simulator.validation.rows import Row

# What a result may not state of its load and of its deployment, and a user may.
OF_THE_LOAD = (
    *("load_level", "arrival_kind", "request_rate_rps", "burstiness_gamma_shape"),
    *("max_concurrency", "distinct_prompts", "prompt_groups", "shared_prefix_tokens"),
)
STATABLE = (
    *("model_hf", "gpu", "n_gpus", "tp", "pp", "dp", "ep", "n_replicas", "engine"),
    *("engine_version", "weight_dtype", "kv_dtype", "max_num_batched_tokens", "max_num_seqs"),
    *("block_size", "kv_blocks_gpu", "max_model_len", "gpu_mem_util", "prefix_caching"),
    *("chunked_prefill", "cuda_graph", "deployment", "client", *OF_THE_LOAD),
)


def rows_of_results(
    paths: Iterable[str | Path], deployment: Mapping[str, str], folder: Path
) -> list[Row]:
    """A row for each run of each result file, as `row_of_result`.

    Raises:
        ConfigError: not such a result, or what must be known of its load is not stated.
    """
    rows: dict[str, Row] = {}
    for path in paths:
        for result in read_benches(path):
            place = sum(name.split(" ")[0] == result.name for name in rows)
            name = f"{result.name} ({place + 1})" if place else result.name
            rows[name] = row_of_result(result, deployment, folder, name)
    return list(rows.values())


def row_of_result(
    result: BenchResult, deployment: Mapping[str, str], folder: Path, name: str = ""
) -> Row:
    """A run from a result; lengths it states in detail are written as a workload to `folder`.

    `deployment` holds the columns a result does not know: gpu, tp, engine_version, ...

    Raises:
        ConfigError: an unknown column, or what must be known of its load is not stated.
    """
    name = name or result.name
    for column in deployment:
        if column not in STATABLE:
            raise unknown_name("column of a run", column, STATABLE)
    stated = {column: value for column, value in deployment.items() if value}
    remarks = list(result.notes)
    if result.engine is None and "engine" not in stated:
        remarks.append("engine not stated: vllm assumed")
    if result.input_tokens is None and None in (result.input_range, result.output_range):
        remarks.append("the length of each request not stated: the mean of all assumed")
    cells = {"run_id": name, "engine": result.engine or "vllm", "tp": str(result.tp or 1)}
    cells["remarks"] = "; ".join(remarks)
    for column, known in (("model_hf", result.model), ("engine_version", result.engine_version)):
        cells |= {column: known} if known else {}
    cells |= _load(result, "arrival_kind" in stated) | _lengths(result)
    if result.input_tokens is not None:
        cells |= _detail(result, folder / f"{name}.csv")
    for metric in LATENCIES:
        for statistic in STATISTICS:
            value_s = result.latency_s(metric, statistic)
            if value_s is not None:
                cells[f"{metric}_{statistic}_ms"] = str(value_s * 1e3)
    return Row({**cells, **stated})


def _load(result: BenchResult, is_stated: bool) -> dict[str, str]:
    """How the requests were sent, and what came of it."""
    rate, limit = result.request_rate_per_s, result.max_concurrency
    kind = "gamma" if result.is_open_loop else "closed" if limit else "burst"
    if rate is None and limit is None and not result.is_replay and not is_stated:
        raise ConfigError(
            f"{result.path}: states neither a request rate nor a concurrency; expected --set "
            "arrival_kind=closed and --set max_concurrency=N, or --set arrival_kind=file for the "
            "sending times in it"
        )
    if result.is_replay and result.sent_s is None and not is_stated:
        raise ConfigError(
            f"{result.path}: request_rate: expected a rate, or the times of each request (got the "
            "times of a trace, which are not in the file)"
        )
    return {
        "num_requests": str((result.completed or 0) + (result.failed or 0)),
        "request_rate_rps": str(rate) if rate and math.isfinite(rate) else "",
        "burstiness_gamma_shape": str(result.burstiness or 1.0),
        "max_concurrency": str(limit or ""),
        "arrival_kind": kind,
        "output_tok_s": str(result.output_tokens_per_s or ""),
    }


def _lengths(result: BenchResult) -> dict[str, str]:
    """Of requests whose lengths the file does not state one by one: between which, or the mean."""
    sides = {
        "input": (result.total_input_tokens, result.input_range),
        "output": (result.total_output_tokens, result.output_range),
    }
    found: dict[str, str] = {}
    for side, (total, between) in sides.items():
        if not total or not result.completed:
            raise ConfigError(
                f"{result.path}: {side} tokens: expected some in completed requests (got "
                f"{total} in {result.completed})"
            )
        found |= {f"{side}_len_kind": "constant", f"{side}_len_mean": str(total / result.completed)}
        if between:
            ends = {f"{side}_len_min": str(between[0]), f"{side}_len_max": str(between[1])}
            found |= {f"{side}_len_kind": "uniform", **ends}
    return found


def _detail(result: BenchResult, path: Path) -> dict[str, str]:
    """The lengths (and, where it states them, sending times) of each request."""
    columns = {
        "input_tokens": result.input_tokens,
        "output_tokens": result.output_tokens,
        "arrival_s": result.sent_s,
    }
    known = {name: column.tolist() for name, column in columns.items() if column is not None}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(known)
        writer.writerows(zip(*known.values(), strict=True))
    cells = {"workload_file": path.name, "input_len_kind": "file", "output_len_kind": "file"}
    is_timed = result.sent_s is not None and result.is_open_loop and not result.max_concurrency
    return cells | ({"arrival_kind": "file"} if is_timed else {})


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
