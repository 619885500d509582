"""What `headway calibrate` does to tables: import, fit, errors, report, transfer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from calibration import aiconfigurator, apex, vidur, vllm_forward
from calibration.boost import Boosting
from calibration.curves import fit_and_write, held_out_misses, summary, write_card
from calibration.errors import write_errors
from calibration.evaluate import FEWEST, beyond, errors_of
from calibration.fit import COMPACT, PRECISE, labels_of, rows_of
from calibration.tables import Tables, read_tables, write_tables
from calibration.transfer import (
    check_generation,
    errors_by_op,
    read_points,
    read_source,
    source_line,
    transfer,
    write_transfer,
)
from simulator.catalog import load_gpu, load_model
from simulator.errors import ConfigError, unknown_name
from simulator.spec import GpuSpec

FOREIGN: Mapping[str, Callable[[Path, GpuSpec], Tables]] = {
    "apex": apex.import_tables,
    "vidur": vidur.import_tables,
}
IMPORTERS = ("aiconfigurator", "apex", "vidur", "vllm-forward")
FIGURE = "report.png"
FEWEST_FITTED = 2 * FEWEST  # points of a curve: as many left out as fitted


def import_command(source: str, path: str = "", *, out: str, **options: str) -> dict[str, Any]:
    """Import measurements into a folder, fit what is enough, state the held-out error.

    `options`: system, engine and root of aiconfigurator; gpu of the others, which read `path`;
    model and tp of vllm-forward.
    """
    if source not in IMPORTERS:
        raise unknown_name("source of measurements", source, IMPORTERS)
    read = _reader(source, path, options)
    folder = _new_folder(_given(source, "--out", out))
    write_tables(read(), folder)
    # As `fit` will find them: rows in the file's order, times in its digits.
    return _fitted(read_tables(folder), folder, PRECISE)


def _reader(source: str, path: str, options: Mapping[str, str]) -> Callable[[], Tables]:
    """What reads the tables, its options checked."""

    def given(option: str) -> str:
        return _given(source, f"--{option}", options.get(option, ""))

    if source == "aiconfigurator":
        root = Path(options["root"]) if options.get("root") else None
        return partial(aiconfigurator.import_tables, given("system"), given("engine"), root)
    file, gpu = Path(_given(source, "PATH", path)), _bundled(load_gpu(given("gpu")))
    if source == "vllm-forward":
        shape, degree = load_model(given("model")), _degree(options.get("tp", ""))
        return partial(vllm_forward.import_tables, file, gpu, shape, degree)
    return partial(FOREIGN[source], file, gpu)


def transfer_command(
    source: str, *, to: str, points: Sequence[str] = (), out: str, across: bool = False
) -> dict[str, Any]:
    """Curves of one GPU on another's datasheet, corrected by points measured on that."""
    folder = _new_folder(_given("transfer", "--out", out))
    target = _bundled(load_gpu(_given("transfer", "--to", to)))
    origin = read_source(source)
    check_generation(origin, target, across=across)
    measured = [read_points(name, target) for name in points]
    found = transfer(origin, target, measured)
    path = write_transfer(found, measured, folder)
    return {
        "folder": out,
        "gpu": target.name,
        "from": origin.gpu.name,
        "source": source_line(found),
        "licence": str(origin.card["licence"]),
        "curves": str(path),
        "refused": dict(found.left),
        "ops": errors_by_op(found),
    }


def fit_command(folder: str, *, compact: bool = False, out: str = "") -> dict[str, Any]:
    """Fit the tables of a folder; curves.json goes there, or with its meta.yaml to `out`."""
    found = read_tables(Path(folder))
    document = _fitted(found, _new_folder(out or folder), COMPACT if compact else PRECISE)
    if "curves" not in document:
        few = ", ".join(f"{what} has {rows}" for what, rows in document["too_few"].items())
        raise ConfigError(f"{folder}: too few points, expected {FEWEST_FITTED} a curve: {few}")
    if out:
        write_card(found, document["held_out"], Path(out))
    return document


def errors_command(folder: str, *, out: str = "") -> dict[str, Any]:
    """Errors of prices, errors.json, from the tables of a folder; beside its curves, or to `out`.

    `fit` does it too; this is for curves that stay as they are.
    """
    found = read_tables(Path(folder))
    path, errors = write_errors(found, _new_folder(out or folder))
    return _document(found, folder) | {"errors": str(path), **_stated(errors)}


def report_command(folder: str) -> dict[str, Any]:
    """Held-out errors in range and beyond it, and a figure of them."""
    from calibration.report import save_figure

    found = read_tables(Path(folder))
    misses = held_out_misses(found)
    gpu = load_gpu(found.gpu)
    far = {
        op: {axis: errors_of([miss]).to_json() for axis, miss in beyond(op, table, gpu).items()}
        for op, table in found.ops.items()
    }
    path = Path(folder) / FIGURE
    save_figure(found, gpu, path)
    errors = {op: summary(by_curve) for op, by_curve in misses.items()}
    return _document(found, folder) | {
        "held_out": errors,
        "twice_beyond": far,
        "figure": str(path),
    }


def _fitted(found: Tables, folder: Path, how: Boosting) -> dict[str, Any]:
    """Curves of what has points enough; `too_few` counts the points of what has not."""
    enough, few = _enough(found)
    document = _document(found, str(folder)) | {"held_out": {}}
    if few:
        document["too_few"] = few
    if enough:
        fitted = replace(found, ops=enough)
        path, held_out = fit_and_write(fitted, folder, how)
        drawn, errors = write_errors(fitted, folder)
        document |= {"curves": str(path), "held_out": held_out, "errors": str(drawn)}
        document |= _stated(errors)
    return document


def _stated(errors: dict[str, Any]) -> dict[str, Any]:
    """What errors.json says of each op, without its rows."""
    left_out = {
        (f"{name}, roofline" if kind == "roofline" else name): {
            key: entry[key] for key in ("mape", "quantiles", "points", "families")
        }
        for kind in ("ops", "roofline")
        for name, entry in errors[kind].items()
    }
    return {"coverage_80": errors["coverage_80"], "left_out": left_out}


def _enough(found: Tables) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """Tables without the curves that are too short to be fitted and held against; those by name."""
    enough: dict[str, pd.DataFrame] = {}
    few: dict[str, int] = {}
    for op, table in found.ops.items():
        parts = {label: rows_of(op, table, label) for label in labels_of(op, table)}
        few |= {f"{op} {x}".strip(): len(p) for x, p in parts.items() if len(p) < FEWEST_FITTED}
        if kept := [part for part in parts.values() if len(part) >= FEWEST_FITTED]:
            enough[op] = pd.concat(kept).sort_index()
    return enough, few


def _document(found: Tables, folder: str) -> dict[str, Any]:
    return {
        "folder": folder,
        **found.provenance,
        "rows": {op: len(table) for op, table in found.ops.items()},
        "refused": dict(found.refused),
    }


def _given(who: str, option: str, value: str) -> str:
    if not value:
        raise ConfigError(f"calibrate {_action(who)}: expected {option} (got none)")
    return value


def _bundled(gpu: GpuSpec) -> GpuSpec:
    """Tables name their GPU, and are read with the bundled one of that name."""
    return load_gpu(gpu.name)


def _action(who: str) -> str:
    return f"import {who}" if who in IMPORTERS else who


def _degree(tp: str) -> int:
    if re.fullmatch("[1-9][0-9]{0,4}", tp or "1") is None:
        raise ConfigError(f"--tp: expected a whole number >= 1 (got {tp})")
    return int(tp or 1)


def _new_folder(out: str) -> Path:
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out: expected a folder (got the file {out})")
    return folder
