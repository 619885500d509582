"""What a run leaves: iterations.csv, requests.csv, the workload file and the row of runs.csv.

DIR/runs.csv                     one row a run, columns of the end-to-end collection
DIR/workloads/RUN.csv.gz         a row a request: lengths, arrival, measured times
DIR/RUN/config.json              the model's shape, as Hugging Face writes it
DIR/RUN/iterations.csv           a row an iteration
DIR/RUN/requests.csv             a row a request, with the iterations of its tokens
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.engine.executor import Limits, WarmUp
from calibration.engine.lane import Progress
from calibration.engine.replay import Iteration, Log
from calibration.engine.shapes import Shape
from calibration.engine.trace import Ints, Trace

Floats = NDArray[np.float64]
Cell = str | int | float
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}
METRICS = ("ttft", "tpot", "itl", "e2e")
_COLUMNS = """
run_id source_id tier model_hf arch params_b active_params_b weight_dtype kv_dtype gpu gpu_mem_gb
interconnect n_gpus deployment n_replicas n_prefill n_decode tp pp dp ep engine engine_version
max_num_batched_tokens max_num_seqs chunked_prefill prefix_caching prefix_hit block_size
gpu_mem_util max_model_len kv_blocks_gpu kv_cpu_offload cuda_graph assumed_settings client load_type
request_rate_rps burstiness_gamma_shape max_concurrency num_requests num_ok num_failed duration_s
seed ignore_eos input_len_dist input_len_mean output_len_dist output_len_mean input_len_kind
workload_file input_len_min input_len_max output_len_kind output_len_min output_len_max arrival_kind
distinct_prompts prompt_groups shared_prefix_tokens request_index_from request_index_to
ttft_mean_ms ttft_p50_ms ttft_p90_ms ttft_p95_ms ttft_p99_ms
tpot_mean_ms tpot_p50_ms tpot_p90_ms tpot_p95_ms tpot_p99_ms
itl_mean_ms itl_p50_ms itl_p90_ms itl_p95_ms itl_p99_ms
e2e_mean_ms e2e_p50_ms e2e_p90_ms e2e_p95_ms e2e_p99_ms
req_throughput_rps input_tok_s output_tok_s metric_origin load_level flags missing source_repo
source_commit source_path licence date
"""
RUN_COLUMNS = tuple(_COLUMNS.split())
ITERATION_COLUMNS = (
    "iteration", "start_ns", "end_ns", "device_ns", "idle_ns", "mode", "padded_seqs",
    "prefill_tokens", "prefill_seqs", "decode_seqs", "context_tokens", "longest_context", "chunks",
    "preempted", "waiting", "free_blocks",
)  # fmt: skip
# The collection's names of GPUs, and their memory in GB, by the names they call themselves.
GPUS: Mapping[str, tuple[str, int]] = {
    "NVIDIA A100-SXM4-40GB": ("A100-SXM4-40GB", 40),
    "NVIDIA A100-SXM4-80GB": ("A100-SXM4-80GB", 80),
    "NVIDIA H100 80GB HBM3": ("H100-SXM-80GB", 80),
    "NVIDIA H100 PCIe": ("H100-PCIe-80GB", 80),
    "NVIDIA H200": ("H200-SXM-141GB", 141),
    "NVIDIA B200": ("B200-180GB", 180),
    "NVIDIA L40S": ("L40S", 48),
    "NVIDIA GeForce RTX 4090": ("RTX4090", 24),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Everything about a run that the measurements do not say."""

    run_id: str
    shape: Shape
    trace: Trace
    limits: Limits
    gpu: str  # as it calls itself; "cpu"
    version: str
    seed: int
    max_model_len: int
    engine: str = "headway-check"
    memory_share: float = 0.9
    dtype: str = "bf16"
    cuda_graph: str = "default, decode batches only"
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Of each request, in ms, [num_requests]; NaN where it did not get so far."""

    queued: Floats
    ttft: Floats
    e2e: Floats
    tpot: Floats
    itl: Floats  # [all gaps of finished requests]

    @property
    def finished(self) -> NDArray[np.bool_]:
        return np.isfinite(self.e2e)


def times_of(trace: Trace, progress: Sequence[Progress], log: Sequence[Iteration]) -> Times:
    """A token exists when the iteration that made it has ended."""
    starts = np.array([row.start_ns for row in log], dtype=np.int64)
    ends = np.array([row.end_ns for row in log], dtype=np.int64)
    columns = np.full((3, len(trace)), np.nan)
    gaps = [np.empty(0)]
    for i, made in enumerate(progress):
        if made.first_iteration >= 0:
            columns[0, i] = starts[made.first_iteration] - trace.arrival_ns[i]
        if made.token_iterations:
            columns[1, i] = ends[made.token_iterations[0]] - trace.arrival_ns[i]
        if len(made.token_iterations) == trace.output_tokens[i]:
            columns[2, i] = ends[made.token_iterations[-1]] - trace.arrival_ns[i]
            gaps.append(np.diff(ends[made.token_iterations]))
    queued, ttft, e2e = columns / 1e6
    return Times(queued=queued, ttft=ttft, e2e=e2e, tpot=tpot_ms(trace, ttft, e2e),
                 itl=np.concatenate(gaps) / 1e6)  # fmt: skip


def tpot_ms(trace: Trace, ttft: Floats, e2e: Floats) -> Floats:
    """(finish - first token) / (output tokens - 1); NaN for a single token."""
    gaps = np.where(trace.output_tokens > 1, trace.output_tokens - 1.0, np.nan)
    tpot: Floats = (e2e - ttft) / gaps
    return tpot


def write_run(
    out: Path, about: Conditions, progress: Sequence[Progress], log: Log, warm_up: WarmUp
) -> dict[str, Cell]:
    """All files of a run, its row of runs.csv last: a run that has its row is complete."""
    folder = out / about.run_id
    times = times_of(about.trace, progress, log.iterations)
    write_config(folder, about.shape)
    write_csv(folder / "iterations.csv", ITERATION_COLUMNS, _iteration_rows(log.iterations))
    write_csv(
        folder / "requests.csv",
        ("index", "arrival_s", "input_tokens", "output_tokens", "queued_to_scheduled_ms",
         "ttft_ms", "e2e_ms", "preemptions", "token_iterations"),
        ((*row, made.preemptions, as_ranges(made.token_iterations))
         for row, made in zip(request_rows(about.trace, times), progress, strict=True)),
    )  # fmt: skip
    flags = [*about.flags, *_flags(log, warm_up)]
    row = run_row(about, times, log.iterations[-1].end_ns / 1e9, flags)
    write_row(out, about, times, row)
    return row


def write_row(out: Path, about: Conditions, times: Times, row: dict[str, Cell]) -> None:
    """The workload file, then the row."""
    header = ("index", "arrival_s", "input_tokens", "output_tokens", "queued_to_scheduled_ms",
              "ttft_ms", "e2e_ms", "error")  # fmt: skip
    rows = request_rows(about.trace, times)
    errors = (int(not done) for done in times.finished)
    write_csv(out / str(row["workload_file"]), header,
              ((*cells, error) for cells, error in zip(rows, errors, strict=True)))  # fmt: skip
    path = out / "runs.csv"
    known = read_rows(path) if path.exists() else []
    kept: list[Mapping[str, Cell]] = [r for r in known if r["run_id"] != about.run_id]
    write_csv(path, RUN_COLUMNS, ([r[c] for c in RUN_COLUMNS] for r in [*kept, row]))


def write_config(folder: Path, shape: Shape) -> None:
    """The model's config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(shape.hf_config(), indent=1) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")


def run_row(
    about: Conditions, times: Times, duration_s: float, flags: Sequence[str]
) -> dict[str, Cell]:
    """The row of runs.csv; times in ms."""
    shape, trace, limits, done = about.shape, about.trace, about.limits, times.finished
    gpu, memory_gb = GPUS.get(about.gpu, (about.gpu, 0))
    rate = len(trace) / max(float(trace.arrival_ns[-1]) / 1e9, 1e-9)  # a burst: without end
    row: dict[str, Cell] = dict.fromkeys(RUN_COLUMNS, "")
    row |= {
        "run_id": about.run_id, "source_id": "headway-check", "tier": "A",
        "model_hf": shape.model_hf or f"{about.run_id}/config.json",
        "arch": "moe" if shape.num_experts else "dense",
        "params_b": shape.num_params() / 1e9,
        "active_params_b": shape.num_params(active=True) / 1e9,
        "weight_dtype": about.dtype, "kv_dtype": about.dtype,
        "gpu": gpu, "gpu_mem_gb": memory_gb or "",
        "n_gpus": 1, "deployment": "colocated", "n_replicas": 1, "tp": 1, "pp": 1, "dp": 1, "ep": 1,
        "engine": about.engine, "engine_version": about.version,
        "max_num_batched_tokens": limits.max_num_tokens, "max_num_seqs": limits.max_num_seqs,
        "chunked_prefill": "true", "prefix_caching": "off", "prefix_hit": 0,
        "block_size": limits.block_tokens, "gpu_mem_util": about.memory_share,
        "max_model_len": about.max_model_len, "kv_blocks_gpu": limits.num_blocks,
        "kv_cpu_offload": "false", "cuda_graph": about.cuda_graph, "client": "in-process replay",
        "load_type": "open (arrival_s recorded)", "request_rate_rps": rate if rate < 1e9 else "",
        "num_requests": len(trace), "num_ok": int(done.sum()), "num_failed": int((~done).sum()),
        "duration_s": duration_s, "seed": about.seed, "ignore_eos": "forced lengths",
        "workload_file": f"workloads/{about.run_id}.csv.gz", "arrival_kind": "file",
        "distinct_prompts": len(trace), "shared_prefix_tokens": 0,
        "request_index_from": 0, "request_index_to": len(trace) - 1,
        "req_throughput_rps": int(done.sum()) / duration_s,
        "metric_origin": "engine timestamps; ttft = first token on the host - arrival",
        "load_level": load_level(times, rate), "flags": ";".join(flags), "source_repo": "headway",
        "source_path": about.run_id, "licence": "Apache-2.0",
        "date": datetime.now(UTC).date().isoformat(),
    }  # fmt: skip
    for name, tokens in (("input", trace.input_tokens), ("output", trace.output_tokens)):
        row |= _lengths(name, tokens) | {f"{name}_tok_s": int(tokens[done].sum()) / duration_s}
    for name in METRICS:
        row |= summary(name, getattr(times, name))
    return {c: f"{v:.6g}" if isinstance(v, float) else v for c, v in row.items()}


def _lengths(name: str, tokens: Ints) -> dict[str, Cell]:
    return {
        f"{name}_len_dist": "per-request file", f"{name}_len_kind": "file",
        f"{name}_len_mean": float(tokens.mean()), f"{name}_len_min": int(tokens.min()),
        f"{name}_len_max": int(tokens.max()),
    }  # fmt: skip


def summary(name: str, values: Floats) -> dict[str, Cell]:
    """Mean and percentiles of the finite values; empty where there are none."""
    known = values[np.isfinite(values)]
    if not len(known):
        return {}
    points = np.quantile(known, list(QUANTILES.values()))
    return {
        f"{name}_mean_ms": float(known.mean()),
        **{f"{name}_{q}_ms": float(v) for q, v in zip(QUANTILES, points, strict=True)},
    }


def load_level(times: Times, rate_per_s: float) -> str:
    """The collection's rule: by mean TTFT, then by requests in flight."""
    done = times.finished
    if not done.all() or times.ttft.mean() > 3000:
        return "saturated"
    in_flight = rate_per_s * times.e2e.mean() / 1e3
    return "low" if in_flight < 12 else "medium" if in_flight < 50 else "high"


def as_ranges(numbers: Sequence[int]) -> str:
    """Increasing numbers as "3-7;9": the iterations that gave a request its tokens."""
    if not numbers:
        return ""
    array = np.array(numbers)
    breaks = np.flatnonzero(np.diff(array) != 1) + 1
    parts = (part.tolist() for part in np.split(array, breaks))
    return ";".join(f"{p[0]}-{p[-1]}" if len(p) > 1 else str(p[0]) for p in parts)


def request_rows(trace: Trace, times: Times) -> list[tuple[Cell, ...]]:
    """index, arrival_s, lengths and times of each request."""
    return [
        (i, f"{trace.arrival_ns[i] / 1e9:.9g}", int(trace.input_tokens[i]),
         int(trace.output_tokens[i]),
         *("" if np.isnan(x[i]) else f"{x[i]:.6g}" for x in (times.queued, times.ttft, times.e2e)))
        for i in range(len(trace))
    ]  # fmt: skip


def _iteration_rows(log: Sequence[Iteration]) -> Iterable[tuple[Cell, ...]]:
    for number, row in enumerate(log):
        chunks = ";".join(f"{new}@{context}" for new, context in row.chunks)
        yield (
            number, row.start_ns, row.end_ns, row.device_ns, row.idle_ns, row.mode,
            row.padded_seqs, row.prefill_tokens, len(row.chunks), row.decode_seqs,
            row.context_tokens, row.longest_context, chunks, row.preempted, row.waiting,
            row.free_blocks,
        )  # fmt: skip


def _flags(log: Log, warm_up: WarmUp) -> list[str]:
    found = ["engine_side_timing", "random_weights", "synchronous_scheduling"]
    found += [f"compiled_during_run_{log.compiled}"] if log.compiled else []
    found += [] if log.is_complete else ["cut_by_budget"]
    found += ["no_cuda_graphs"] if warm_up.problem else []
    return found + ([] if warm_up.is_complete else ["warm_up_cut_by_budget"])


def read_rows(path: Path) -> list[dict[str, str]]:
    """Every row of a CSV with a header."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A whole file at once, plain or .gz; equal rows give equal bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    data = text.getvalue().encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    part.replace(path)
