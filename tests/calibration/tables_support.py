"""Small synthetic tables with a known answer, shared by the calibration tests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from calibration.columns import KERNEL, SCHEMAS, TIME
from calibration.tables import Tables, write_tables
from simulator.catalog import load_gpu
from simulator.costs.forms import FORMS, points_of

H200 = load_gpu("H200-SXM")
PROVENANCE = {
    "gpu": "H200-SXM",
    "engine": "none",
    "version": "1",
    "source": "synthetic",
    "licence": "Apache-2.0",
    "date": "2026-01-01",
}
GEMM_TRUTH = {
    "floor_s": 3e-6,
    "ramp_s": 1.5e-6,
    "k_s": 3e-10,
    "tile": 0.2,
    "compute": 0.7,
    "memory": 0.8,
    "norm": 3.0,
}
SIZES = (256, 1024, 2048, 4096, 8192, 16384)
TOKENS = (1, 8, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


def gemm_rows() -> pd.DataFrame:
    """A grid of shapes without times."""
    grid = [(m, n, k) for m in TOKENS for n in SIZES for k in SIZES]
    table = pd.DataFrame(grid, columns=["num_tokens", "out_size", "in_size"])
    return table.assign(format="bf16", **{KERNEL: "synthetic"})


def timed(op: str, rows: pd.DataFrame, truth: dict[str, float], noise: float = 0.0) -> pd.DataFrame:
    """The rows with the form's own times, off by a known noise."""
    points = points_of(op, {name: rows[name] for name in rows.columns}, H200)
    seconds = FORMS[op].time(truth, points, H200)
    shake = np.random.default_rng(7).normal(0.0, noise, len(rows)) if noise else 0.0
    return rows.assign(**{TIME: seconds * np.exp(shake)})[list(SCHEMAS[op].columns)]


def gemm_folder(folder: Path) -> Path:
    """A folder with one synthetic GEMM table."""
    table = timed("gemm", gemm_rows(), GEMM_TRUTH)
    write_tables(Tables(provenance=PROVENANCE, ops={"gemm": table}), folder)
    return folder
