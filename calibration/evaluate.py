"""Held-out error: fitted to a tenth of the points, the rest predicted; and twice beyond a range."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.boost import Boosting
from calibration.columns import SCHEMAS, TIME
from calibration.fit import PRECISE, fit_curve, labels_of, rows_of
from simulator.costs.curve import Curve
from simulator.costs.form_base import Array
from simulator.costs.forms import points_of
from simulator.spec import GpuSpec

Mask = NDArray[np.bool_]
SHARE = 0.1
SMALL = 500  # rows under which a random tenth would leave whole curves without a point
TURNS = 5  # tenths of a small table that are tried, as the error of one depends on its luck
FEWEST = 8  # points a curve can be fitted to
# Largest value fitted, by axis: points up to twice as far are predicted, farther ones ignored.
BEYOND: Mapping[str, Mapping[str, int]] = {
    "gemm": {"num_tokens": 16384, "out_size": 8192, "in_size": 8192},
    "prefill_attention": {"num_seqs": 128, "num_tokens": 8192},
    "decode_attention": {"num_seqs": 1024, "kv_tokens": 65536},
    "mla_prefill_block": {"num_seqs": 128, "num_tokens": 8192},
    "mla_decode_block": {"num_seqs": 512, "kv_tokens": 65536},
    "moe": {"num_tokens": 8192},
    "all_reduce": {"payload_bytes": 2**29},
    "collective": {"payload_bytes": 2**28},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Predicted over measured, less one, in percent."""

    mape: float
    p90_ape: float
    bias: float
    n: int

    def to_json(self) -> dict[str, float | int]:
        """Rounded to 0.01 %."""
        return {
            "mape": round(self.mape, 2),
            "p90_ape": round(self.p90_ape, 2),
            "bias": round(self.bias, 2),
            "n": self.n,
        }


def errors_of(misses: Iterable[Array]) -> Errors:
    """Of relative misses (0.05 = 5 % too long)."""
    miss = 100.0 * np.concatenate(list(misses))
    size = np.abs(miss)
    return Errors(
        mape=float(size.mean()),
        p90_ape=float(np.quantile(size, 0.9)),
        bias=float(miss.mean()),
        n=len(miss),
    )


def misses_of(curve: Curve, table: pd.DataFrame) -> Array:
    """Relative miss of each row; small tensors stay in L2 between replays of a table."""
    points = points_of(curve.op, {name: table[name] for name in table.columns}, curve.gpu)
    predicted = curve.time_s(points, l2_bytes=2.0 * curve.gpu.l2_bytes)
    miss: Array = predicted / table[TIME].to_numpy(dtype=np.float64) - 1.0
    return miss


def sample(
    op: str, label: str, table: pd.DataFrame, share: float = SHARE, turn: int = TURNS // 2
) -> Mask:
    """A share of the rows, the same at every call: random, of small tables spread evenly.

    `turn` (0 to `TURNS` - 1) shifts the even spread.
    """
    rng = np.random.default_rng([zlib.crc32(f"{op} {label}".encode()), len(table)])
    taken = np.zeros(len(table), dtype=np.bool_)
    number = min(len(table), max(FEWEST, round(share * len(table))))
    if len(table) < SMALL:
        order = np.lexsort([table[name] for name in reversed(SCHEMAS[op].key)])
        places = (np.arange(number) + (turn + 0.5) / TURNS) * len(table) / number
        taken[order[places.astype(int)]] = True
    else:
        taken[rng.permutation(len(table))[:number]] = True
    return taken


def samples(op: str, label: str, table: pd.DataFrame, share: float = SHARE) -> list[Mask]:
    """The one random share of a table, or every even spread of a small one."""
    turns = range(TURNS) if len(table) < SMALL else [TURNS // 2]
    return [sample(op, label, table, share, turn) for turn in turns]


def held_out(
    op: str,
    table: pd.DataFrame,
    gpu: GpuSpec,
    how: Boosting = PRECISE,
    share: float = SHARE,
) -> dict[str, Array]:
    """Misses on the rows left out, by curve, each fitted to a share of its rows."""
    misses = {}
    for label in labels_of(op, table):
        rows = rows_of(op, table, label)
        parts = []
        for taken in samples(op, label, rows, share):
            curve = fit_curve(op, label, rows[taken], gpu, how)
            parts.append(misses_of(curve, rows[~taken]))
        misses[label] = np.concatenate(parts)
    return misses


def beyond(
    op: str, table: pd.DataFrame, gpu: GpuSpec, how: Boosting = PRECISE, share: float = SHARE
) -> dict[str, Array]:
    """Misses up to twice beyond the fitted range, by axis; every curve together."""
    misses: dict[str, list[Array]] = {}
    for axis, limit in BEYOND[op].items():
        for label in labels_of(op, table):
            rows = rows_of(op, table, label)
            fitted, far = rows[rows[axis] <= limit], rows[rows[axis] > limit]
            far = far[far[axis] <= 2 * limit]
            for other, other_limit in BEYOND[op].items():
                far = far[far[other] <= other_limit] if other != axis else far
            if len(far) and len(fitted) >= FEWEST:
                for taken in samples(op, label, fitted, share):
                    curve = fit_curve(op, label, fitted[taken], gpu, how)
                    misses.setdefault(axis, []).append(misses_of(curve, far))
    return {axis: np.concatenate(parts) for axis, parts in misses.items()}
