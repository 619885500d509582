"""How far prices miss what was measured, as the sample that `simulate --uncertainty` draws from.

Whole shape families (a weight matrix, a head configuration, an expert layer) are left out, the
curve is fitted to the others, and every left-out point is priced as the engine prices it. The same
is done with the roofline, which prices whatever no table covers.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from calibration.boost import Boosting
from calibration.columns import SCHEMAS, TIME
from calibration.coverage import Ints, Misses, coverage
from calibration.evaluate import FEWEST, Mask, misses_of
from calibration.fit import COMPACT, fit_curve, labels_of, rows_of
from calibration.priced import priced_s
from calibration.tables import Tables
from simulator.catalog import load_gpu
from simulator.costs.error import AXES, ERRORS, FORMAT, STANDS_FOR, UNIT, Profile
from simulator.costs.form_base import Array
from simulator.costs.ops import Machine, machine_of
from simulator.costs.tables import CostTables
from simulator.spec import EngineSettings, GpuSpec, NodeGroup

FAMILIES: Mapping[str, tuple[str, ...]] = {
    "gemm": ("out_size", "in_size"),
    "prefill_attention": ("kv_format", "num_q_heads", "num_kv_heads", "head_dim"),
    "decode_attention": ("kv_format", "num_q_heads", "num_kv_heads", "head_dim"),
    "moe": (
        *("hidden_size", "ffn_size", "num_experts"),
        *("local_experts", "experts_per_token", "is_gated"),
    ),
    "all_reduce": ("num_gpus",),
    "collective": ("num_gpus",),
    "mla_prefill_block": ("format", "kv_format", "num_q_heads"),
    "mla_decode_block": ("format", "kv_format", "num_q_heads"),
}
# Points that serving asks for: (least, most) of a column. Attention's limits are those of the
# affine forms, see `simulator.costs.attention_fit`.
SERVED: Mapping[str, Mapping[str, tuple[float, float]]] = {
    "gemm": {"num_tokens": (1, 16384), "out_size": (1024, 1e9), "in_size": (1024, 1e9)},
    "prefill_attention": {
        "window": (0, 0),
        "context_tokens": (0, 0),
        "num_tokens": (32, 16384),
        "num_seqs": (1, 8),
    },
    "decode_attention": {"window": (0, 0), "kv_tokens": (128, 32768), "num_seqs": (1, 1024)},
    "moe": {"num_tokens": (1, 16384)},
    "all_reduce": {},
    "collective": {},
    "mla_prefill_block": {"num_tokens": (32, 16384), "num_seqs": (1, 8)},
    "mla_decode_block": {"kv_tokens": (128, 32768), "num_seqs": (1, 1024)},
}
MOST_TOKENS = {"prefill_attention": 16384.0, "decode_attention": 2.0**22}  # of a whole batch
FOLDS = 5
ENOUGH = 60  # families left out: further folds would only repeat the answer
MOST_ROWS = 64  # of a profile
QUANTILES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)


def write_errors(tables: Tables, folder: Path, how: Boosting = COMPACT) -> tuple[Path, Any]:
    """errors.json of one GPU beside its curves; the file, and what it states of each op."""
    gpu = load_gpu(tables.gpu)
    fitted = dict(fitted_misses(tables, gpu, how))
    roofline = dict(roofline_misses(tables, gpu))
    data = {
        "format": FORMAT,
        "gpu": gpu.name,
        "unit": UNIT,
        "source": tables.provenance["source"],
        "coverage_80": coverage(fitted),
        "ops": {name: profile_json(name, misses) for name, misses in fitted.items()},
        "roofline": {name: profile_json(name, misses) for name, misses in roofline.items()},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ERRORS
    path.write_text(_text(data), encoding="utf-8")
    return path, data


def fitted_misses(tables: Tables, gpu: GpuSpec, how: Boosting) -> Iterator[tuple[str, Misses]]:
    """Misses of the curves by "op label", on families (all-reduce: points) they never saw."""
    for op, table in tables.ops.items():
        for label in labels_of(op, table) if op in SCHEMAS else ():
            rows = rows_of(op, table, label).reset_index(drop=True)
            family = families_of(op, rows)
            parts = [
                _left_out(op, label, rows[~out], rows[out], gpu, how)
                for out in _folds(op, label, family, len(rows))
                if (~out).sum() >= FEWEST
            ]
            found = [part for part in parts if len(part)]
            if found:
                yield f"{op} {label}".strip(), misses_in(op, pd.concat(found, ignore_index=True))


def roofline_misses(tables: Tables, gpu: GpuSpec) -> Iterator[tuple[str, Misses]]:
    """Misses of the roofline with shares of peak, by op; every format together."""
    machine = bare_machine(gpu)
    for op, table in tables.ops.items():
        if op in STANDS_FOR:
            continue
        rows = served(op, table)
        found = rows.assign(priced_s=priced_s(op, rows, machine)).dropna(subset="priced_s")
        if len(found):
            yield op, misses_in(op, found)


def bare_machine(gpu: GpuSpec) -> Machine:
    """The GPU priced by its roofline."""
    settings = EngineSettings(max_num_batched_tokens=1, max_num_seqs=1, calibration="roofline")
    return machine_of(NodeGroup(num_nodes=1, gpus_per_node=8, gpu=gpu), settings)


def families_of(op: str, rows: pd.DataFrame) -> Ints:
    """Number of each row's shape family."""
    keys = [name for name in FAMILIES[op] if name in rows]
    return np.asarray(rows.groupby(keys, sort=True).ngroup(), dtype=np.int64)


def served(op: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows serving asks for; all of them where none is."""
    kept = np.ones(len(rows), dtype=np.bool_)
    for column, (least, most) in SERVED[op].items():
        kept &= rows[column].between(least, most).to_numpy()
    if op in MOST_TOKENS:
        each = "num_tokens" if op == "prefill_attention" else "kv_tokens"
        kept &= (rows["num_seqs"] * rows[each]).to_numpy() <= MOST_TOKENS[op]
    return rows[kept]


def _folds(op: str, label: str, family: Ints, rows: int) -> Iterator[Mask]:
    """Rows to leave out: whole families, until enough were; single rows of a handful of them."""
    rng = np.random.default_rng([zlib.crc32(f"{op} {label}".encode()), rows])
    unit = family if family.max() >= FOLDS else np.arange(rows)
    shuffled = rng.permutation(int(unit.max()) + 1)
    seen = 0
    for part in np.array_split(shuffled, FOLDS):
        yield np.isin(unit, part)
        seen += len(part)
        if unit is family and seen >= ENOUGH:
            return


def _left_out(
    op: str,
    label: str,
    fitted: pd.DataFrame,
    out: pd.DataFrame,
    gpu: GpuSpec,
    how: Boosting,
) -> pd.DataFrame:
    """Rows left out that serving asks for, with the price of a curve through the others."""
    out = served(op, out)
    if not len(out):
        return out
    curve = fit_curve(op, label, fitted, gpu, how)
    if not op.endswith("attention"):
        return out.assign(priced_s=out[TIME] * (1.0 + misses_of(curve, out)))
    tables = CostTables(gpu=gpu, source="", curves={(op, label): curve}, extrapolate=True)
    machine = replace(bare_machine(gpu), tables=tables)
    return out.assign(priced_s=priced_s(op, out, machine)).dropna(subset="priced_s")


def misses_in(op: str, rows: pd.DataFrame) -> Misses:
    """Of rows with a `priced_s`."""
    measured = rows[TIME].to_numpy(dtype=np.float64)
    axis = rows[AXES[op]].to_numpy(dtype=np.float64) if op in AXES else np.ones(len(rows))
    return Misses(
        family=families_of(op, rows),
        octave=np.floor(np.log2(axis)).astype(np.int64),
        measured_s=measured,
        log_ratio=np.log(measured / rows["priced_s"].to_numpy(dtype=np.float64)),
    )


def profile_of(op: str, misses: Misses, most_rows: int = MOST_ROWS) -> Profile:
    """A row a family, an octave of the axis a column, each a left-out point taken at random.

    An octave a family lacks repeats its nearest. Of ops without an axis each row is one point.
    """
    rng = np.random.default_rng([zlib.crc32(op.encode()), len(misses.log_ratio)])
    if op.split()[0] not in AXES:
        count = min(most_rows, len(misses.log_ratio))
        levels = (np.arange(count) + 0.5) / count
        return Profile(first_octave=0, rows=np.quantile(misses.log_ratio, levels)[:, None])
    order = rng.permutation(len(misses.log_ratio))
    first, last = int(misses.octave.min()), int(misses.octave.max())
    rows = np.full((int(misses.family.max()) + 1, last - first + 1), np.nan)
    rows[misses.family[order], misses.octave[order] - first] = misses.log_ratio[order]
    kept = rows[np.sort(rng.permutation(len(rows))[:most_rows])]
    return Profile(first_octave=first, rows=np.array([_filled(row) for row in kept]))


def _filled(row: Array) -> Array:
    known = np.flatnonzero(~np.isnan(row))
    nearest = known[np.abs(np.arange(len(row))[:, None] - known[None]).argmin(axis=1)]
    filled: Array = row[nearest]
    return filled


def profile_json(name: str, misses: Misses) -> dict[str, Any]:
    """A profile, with the quantiles of all its points for people."""
    size = np.abs(np.expm1(-misses.log_ratio))
    levels = np.quantile(misses.log_ratio, QUANTILES)
    return {
        "points": len(misses.log_ratio),
        "families": len(np.unique(misses.family)),
        "mape": round(100.0 * float(size.mean()), 2),
        "quantiles": {
            f"p{100 * q:g}": round(100.0 * float(level), 2)
            for q, level in zip(QUANTILES, levels, strict=True)
        },
        **profile_of(name, misses).to_json(),
    }


def _text(data: Mapping[str, Any]) -> str:
    """JSON with each row of a profile on its own line."""
    text = json.dumps(data, indent=1)
    joined: list[str] = []
    depth = 0
    for line in text.splitlines():
        if depth:
            space = "" if joined[-1].endswith("[") or line.strip().startswith("]") else " "
            joined[-1] += space + line.strip()
            depth -= line.strip().startswith("]")
        else:
            joined.append(line)
            depth = int(line.strip() == "[")
    return "\n".join(joined) + "\n"
