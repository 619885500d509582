"""The gate: rows and formats no chip can produce are refused before anything is fitted to them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.columns import KERNEL, SCHEMAS, TIME
from simulator.costs.forms import FORMS, points_of
from simulator.spec import GpuSpec

# A format's floor over bf16's, and the least an eager launch takes: above both, the host was timed.
FLOOR_RATIO, EAGER_S = 4.0, 20e-6
SLOWER_RATIO = 1.5  # median time of a narrow format over bf16's at the same large points
LARGE_S = 50e-6  # points compared across formats take longer than this in bf16
WARM = 2.0  # tensors of up to so many L2 sizes are partly found there by the next replay
MOST_REFUSED = 0.05  # share of a format's rows faster than the roofline that condemns all of them
# A smaller problem can be padded to a larger one. A point this much slower than a larger one ran a
# kernel its autotuner chose badly, by chance: TRT-LLM's bf16 experts take 17 % more or less, on
# average, at power laws 1.01 and 1.2, which are the same work (4 % in vLLM).
MISTUNED = 1.25
LARGER: Mapping[str, tuple[str, ...]] = {
    "moe": ("num_tokens", "ffn_size", "local_experts"),
    "decode_attention": ("num_seqs", "kv_tokens"),
    "prefill_attention": ("num_seqs", "num_tokens"),
    "mla_decode_block": ("num_seqs", "kv_tokens"),
    "mla_prefill_block": ("num_seqs", "num_tokens"),
}


BADLY_TUNED = f"over {MISTUNED}x the time of a larger problem, so badly tuned"


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
        slow = _slower_than_larger(op, rows) & ~fast
        reasons = [
            f"{wrong.sum()} of {len(rows)} rows: {why}"
            for wrong, why in ((fast, "faster than the roofline"), (slow, BADLY_TUNED))
            if wrong.any()
        ]
        if reasons:
            notes[f"{op} {fmt}"] = "; ".join(reasons)
        kept.append(rows[~fast & ~slow])
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


def _slower_than_larger(op: str, rows: pd.DataFrame) -> NDArray[np.bool_]:
    """Rows more than `MISTUNED` times slower than one of the same kernel at least as large."""
    axes = LARGER.get(op, ())
    least = rows[TIME]
    # Least over everything larger along one axis at a time; twice, as grids have holes.
    for axis in axes * 2:
        order = rows.sort_values(axis, ascending=False).index
        others = [rows.loc[order, key] for key in (KERNEL, *SCHEMAS[op].key) if key != axis]
        least = least.loc[order].groupby(others).cummin().loc[rows.index]
    slow: NDArray[np.bool_] = rows[TIME].to_numpy() > MISTUNED * least.to_numpy()
    return slow
