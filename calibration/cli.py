"""What `headway calibrate` does: import, fit, report. Called by `simulator.commands`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calibration.aiconfigurator import import_tables
from calibration.boost import Boosting
from calibration.curves import fit_and_write, held_out_misses, summary, write_card
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
    path, errors = fit_and_write(found, folder, how)
    return _document(found, str(folder)) | {"curves": str(path), "held_out": errors}


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
