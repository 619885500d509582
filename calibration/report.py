"""The figure of a calibration: predicted over measured, and the share of the peaks reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calibration.columns import TIME
from calibration.evaluate import sample
from calibration.fit import fit_curve, labels_of, rows_of
from calibration.tables import Tables
from simulator.costs.form_base import Array
from simulator.costs.forms import FORMS, points_of
from simulator.spec import GpuSpec

MOST_DOTS = 4000


def save_figure(tables: Tables, gpu: GpuSpec, path: Path) -> None:
    """A column an op: predicted over measured of points left out, and share of the roofline."""
    from matplotlib.figure import Figure

    ops = list(tables.ops)
    figure = Figure(figsize=(4.2 * len(ops), 7.5), layout="constrained")
    axes = figure.subplots(2, len(ops), squeeze=False)
    for column, op in enumerate(ops):
        for label in labels_of(op, tables.ops[op]):
            rows = rows_of(op, tables.ops[op], label)
            taken = sample(op, label, rows)
            curve = fit_curve(op, label, rows[taken], gpu)
            rest = _some(rows[~taken])
            points = points_of(op, {name: rest[name] for name in rest.columns}, gpu)
            measured = rest[TIME].to_numpy(dtype=np.float64)
            predicted = curve.time_s(points, l2_bytes=2.0 * gpu.l2_bytes)
            least = FORMS[op].bounds(points, gpu).least_s(0.0)
            _dots(axes[0, column], measured, predicted / measured, label)
            _dots(axes[1, column], measured, least / measured, label)
        axes[0, column].set(title=op, ylim=(0.5, 2.0), yscale="log", ylabel="predicted / measured")
        axes[0, column].axhline(1.0, color="black", linewidth=0.8)
        axes[1, column].set(ylim=(0.0, 1.2), xlabel="measured, s", ylabel="share of the roofline")
    figure.suptitle(f"{tables.gpu}, {tables.provenance['engine']}: fitted to a tenth of the points")
    figure.savefig(path, dpi=110)


def _dots(axis: Any, x: Array, y: Array, label: str) -> None:
    axis.plot(x, y, ".", markersize=1.5, alpha=0.4, label=label or None)
    axis.set_xscale("log")
    if label:
        axis.legend(markerscale=6, fontsize="small")


def _some(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sample(MOST_DOTS, random_state=0) if len(rows) > MOST_DOTS else rows
