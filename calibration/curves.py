"""Write fitted curves: `curves.json`, what the simulator reads, with the errors it states."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from calibration.boost import Boosting
from calibration.columns import SCHEMAS
from calibration.evaluate import Errors, errors_of, held_out
from calibration.fit import PRECISE, fit_tables
from calibration.tables import META, Tables
from simulator.catalog import load_gpu
from simulator.costs.curve import Curve
from simulator.costs.fitted import CURVES, FORMAT
from simulator.costs.form_base import Array

HEADLINE = {"gemm": "GEMM", "decode_attention": "decode", "prefill_attention": "prefill"}
HEADLINE |= {"mla_decode_block": "MLA decode", "mla_prefill_block": "MLA prefill"}
HEADLINE |= {"moe": "MoE", "all_reduce": "all-reduce", "collective": "NCCL"}


def fit_and_write(
    tables: Tables, folder: Path, how: Boosting = PRECISE
) -> tuple[Path, dict[str, Any]]:
    """Fit every point, state the error of a fit to a tenth of them; the file, and the errors."""
    gpu = load_gpu(tables.gpu)
    errors = held_out_errors(tables, how)
    curves = fit_tables(tables.ops, gpu, how)
    path = write_curves(curves, source_line(tables, errors), errors, folder)
    return path, errors


def write_card(tables: Tables, errors: Mapping[str, Any], folder: Path) -> Path:
    """meta.yaml of curves that travel without their measurements."""
    card = {
        **tables.provenance,
        "note": "Fitted curves only; the measurements are not redistributed here.",
        "rows": {op: len(table) for op, table in tables.ops.items()},
        "refused": dict(tables.refused),
        "held_out": dict(errors),
    }
    path = folder / META
    path.write_text(yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=100))
    return path


def held_out_misses(tables: Tables, how: Boosting = PRECISE) -> dict[str, dict[str, Array]]:
    """Misses on the points left out, by op and curve."""
    gpu = load_gpu(tables.gpu)
    return {op: held_out(op, table, gpu, how) for op, table in tables.ops.items() if op in SCHEMAS}


def held_out_errors(tables: Tables, how: Boosting = PRECISE) -> dict[str, Any]:
    """By op: errors of all its curves together, and of each by its format."""
    return {op: summary(misses) for op, misses in held_out_misses(tables, how).items()}


def summary(misses: Mapping[str, Array]) -> dict[str, Any]:
    """Errors of an op's curves together, and `by_format` where there are several."""
    found: dict[str, Any] = errors_of(misses.values()).to_json()
    if len(misses) > 1:
        by_format: dict[str, Errors] = {name: errors_of([part]) for name, part in misses.items()}
        found["by_format"] = {name: errors.to_json() for name, errors in by_format.items()}
    return found


def source_line(tables: Tables, errors: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for the head of every result: what was measured, by whom, and how well it fits."""
    stated = tables.provenance
    shown = [f"{HEADLINE[op]} {found['mape']:.1f} %" for op, found in errors.items()]
    source = stated["source"].split(",")[0]
    return (
        f"{tables.gpu}: curves fitted to {source} ({stated['engine']} kernels); "
        f"held-out error {', '.join(shown)}"
    )


def write_curves(
    curves: Sequence[Curve], source: str, errors: Mapping[str, object], folder: Path
) -> Path:
    """curves.json of one GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {
        "format": FORMAT,
        "gpu": curves[0].gpu.name,
        "source": source,
        "held_out": errors,
        "curves": [curve.to_json() for curve in curves],
    }
    path = folder / CURVES
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return path
