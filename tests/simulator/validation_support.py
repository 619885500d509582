"""Rows of measured runs made by the simulator itself, so that what was measured is known."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from simulator.validation.rows import Row
from simulator.validation.runner import outcome_of
from simulator.validation.scenario import Choices

CELLS = {
    "run_id": "small",
    "model_hf": "meta-llama/Llama-3.1-8B-Instruct",
    "weight_dtype": "bf16",
    "kv_dtype": "bf16",
    "gpu": "H100-SXM-80GB",
    "n_gpus": "1",
    "deployment": "colocated",
    "tp": "1",
    "engine": "vllm",
    "engine_version": "0.15.1",
    "max_num_batched_tokens": "2048",
    "max_num_seqs": "64",
    "num_requests": "60",
    "request_rate_rps": "6",
    "arrival_kind": "poisson",
    "input_len_kind": "uniform",
    "input_len_mean": "300",
    "input_len_min": "100",
    "input_len_max": "500",
    "output_len_kind": "constant",
    "output_len_mean": "40",
    "load_level": "low",
}


def row(**cells: str) -> Row:
    return Row({**CELLS, **cells})


def measured_by(run: Row, folder: Path, **host: float) -> Row:
    """The run with the measurements a server with these host times would have given."""
    made = outcome_of(run, Choices(folder=folder, host=host)).predicted
    cells = {f"{name}_ms": f"{value:.6f}" for name, value in made.items()}
    return Row({**run.cells, **cells, "output_tok_s": f"{made['output_throughput']:.6f}"})


def write_runs(path: Path, rows: Sequence[Row | Mapping[str, str]]) -> Path:
    cells = [r.cells if isinstance(r, Row) else r for r in rows]
    names = list(dict.fromkeys(name for one in cells for name in one))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(cells)
    return path
