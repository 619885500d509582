"""The gate: rows and formats no chip can produce are refused before anything is fitted to them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.columns import SCHEMAS, TIME
from simulator.costs.forms import FORMS, points_of
from simulator.spec import GpuSpec

# A format's floor over bf16's, and the least an eager launch takes: above both, the host was timed.
FLOOR_RATIO, EAGER_S = 4.0, 20e-6
SLOWER_RATIO = 1.5  # median time of a narrow format over bf16's at the same large points
LARGE_S = 50e-6  # points compared across formats take longer than this in bf16
WARM = 2.0  # tensors of up to so many L2 sizes are partly found there by the next replay
MOST_REFUSED = 0.05  # share of a format's rows faster than the roofline that condemns all of them


def gate(op: str, table: pd.DataFrame, gpu: GpuSpec, notes: dict[str, str]) -> pd.DataFrame:
    """The rows that may be fitted; `notes` says what was left out and why."""
    label = SCHEMAS[op].labels[0]
    floors = table.groupby(label)[TIME].quantile(0.01)
    kept = []
    for fmt, rows in table.groupby(label, sort=False):
        reason = _timed_eagerly(str(fmt), floors)
        reason = reason or _slower_than_wider(op, label, str(fmt), table, rows)
        if reason:
            notes[f"{op} {fmt}"] = f"all {len(rows)} rows: {reason}"
            continue
        fast = _beats_roofline(op, rows, gpu)
        if fast.mean() > MOST_REFUSED:
            notes[f"{op} {fmt}"] = f"all {len(rows)} rows: {fast.sum()} beat the roofline"
            continue
        if fast.any():
            notes[f"{op} {fmt}"] = f"{fast.sum()} of {len(rows)} rows: faster than the roofline"
        kept.append(rows[~fast])
    return pd.concat(kept, ignore_index=True) if kept else table.iloc[:0]


def _timed_eagerly(fmt: str, floors: pd.Series[float]) -> str:
    """Why a format was timed with its launches; empty where it was not."""
    if fmt == "eager":
        return "timed eagerly: launches of the host, not the kernel"
    if "bf16" not in floors or floors[fmt] <= max(EAGER_S, FLOOR_RATIO * floors["bf16"]):
        return ""
    return (
        f"timed eagerly: floor {floors[fmt] * 1e6:.1f} us against "
        f"{floors['bf16'] * 1e6:.1f} us in bf16"
    )


def _slower_than_wider(
    op: str, label: str, fmt: str, table: pd.DataFrame, rows: pd.DataFrame
) -> str:
    """Why a narrow format cannot be right: large sizes take half as long again as in bf16."""
    if label == "launch" or fmt in ("bf16", "mxfp4", "int4_g128", "int8_wo"):
        return ""  # weight-only formats pay for widening
    keys = list(SCHEMAS[op].key[1:])
    wide = table[(table[label] == "bf16") & (table[TIME] > LARGE_S)]
    both = rows.merge(wide, on=keys, suffixes=("", "_wide"))
    if len(both) < 100:
        return ""
    ratio = float((both[TIME] / both[f"{TIME}_wide"]).median())
    return f"median {ratio:.2f}x the bf16 time at large sizes" if ratio > SLOWER_RATIO else ""


def _beats_roofline(op: str, rows: pd.DataFrame, gpu: GpuSpec) -> NDArray[np.bool_]:
    """Rows under the least time; tensors that fit in L2 are not held to the memory's."""
    points = points_of(op, {name: rows[name] for name in rows.columns}, gpu)
    least = FORMS[op].bounds(points, gpu).least_s(WARM * gpu.l2_bytes)
    fast: NDArray[np.bool_] = rows[TIME].to_numpy() < least
    return fast
