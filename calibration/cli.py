"""What `headway calibrate` does: import, fit, errors, report. Called by `simulator.commands`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calibration.aiconfigurator import import_tables
from calibration.boost import Boosting
from calibration.curves import fit_and_write, held_out_misses, summary, write_card
from calibration.errors import write_errors
from calibration.evaluate import beyond, errors_of
from calibration.fit import COMPACT, PRECISE
from calibration.tables import Tables, read_tables, write_tables
from simulator.catalog import load_gpu
from simulator.errors import ConfigError, unknown_name

IMPORTERS = ("aiconfigurator",)
FIGURE = "report.png"


def import_command(
    source: str, *, system: str, engine: str, out: str, root: str = ""
) -> dict[str, Any]:
    """Import a measured database into a folder, fit it, state the held-out error."""
    if source not in IMPORTERS:
        raise unknown_name("source of measurements", source, IMPORTERS)
    folder = _new_folder(out)
    found = import_tables(system, engine, Path(root) if root else None)
    write_tables(found, folder)
    # As `fit` will find them: rows in the file's order, times in its digits.
    return _fitted(read_tables(folder), folder, PRECISE)


def fit_command(folder: str, *, compact: bool = False, out: str = "") -> dict[str, Any]:
    """Fit the tables of a folder; curves.json goes there, or with its meta.yaml to `out`."""
    found = read_tables(Path(folder))
    document = _fitted(found, _new_folder(out or folder), COMPACT if compact else PRECISE)
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
    path, held_out = fit_and_write(found, folder, how)
    drawn, errors = write_errors(found, folder)
    written = {"curves": str(path), "held_out": held_out, "errors": str(drawn)}
    return _document(found, str(folder)) | written | _stated(errors)


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


def _document(found: Tables, folder: str) -> dict[str, Any]:
    return {
        "folder": folder,
        **found.provenance,
        "rows": {op: len(table) for op, table in found.ops.items()},
        "refused": dict(found.refused),
    }


def _new_folder(out: str) -> Path:
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out: expected a folder (got the file {out})")
    return folder
