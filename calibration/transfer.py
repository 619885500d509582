"""A table measured on one GPU serves another of its generation.

What carries over is how close kernels come to their roofline, and their fixed times: the fitted
form keeps its shares of peak and its learned residual, and takes bandwidth, arithmetic, SMs, L2 and
links from the target's datasheet. A few points measured on the target correct what all of an op's
times are off by: the median logarithm of measured over predicted, counted n / (n + 3), as points
scatter by 10 % about a bias of 6 %. No corrected time is below the target's roofline.

Mean error, %, on aiconfigurator's tables (vLLM 0.24) with 0 / 1 / 5 / 20 points an op:

op         H200 to H100          H100 to H200         A100 to H100
GEMM        7.3  7.3  7.1  6.9    6.6  6.9  6.9  6.7   23.5  20.7  17.4  15.6
prefill    13.9 11.9 10.0  8.8   10.2  9.0  8.3  7.8   23.5  24.3  24.8  23.8
decode      7.1  6.5  6.2  5.8    5.1  4.9  4.8  4.6   43.1  39.8  36.2  33.7
MoE         6.5  6.7  6.8  6.6   10.6 10.5 10.5 10.1   51.6  45.6  39.2  34.5
all-reduce  3.4  3.6  3.6  3.5    3.4  3.5  3.4  3.4   21.2  16.8  12.1   9.8

So a generation is the limit unless asked for (H100 to L40S: 28-83 %), and no promise either: B200
to RTX PRO 6000, which has other tensor cores and GDDR memory, is 29-126 % off.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from calibration.columns import SCHEMAS, TIME
from calibration.curves import HEADLINE, write_curves
from calibration.evaluate import errors_of, misses_of
from calibration.fit import LABELS, rows_of
from calibration.gate import WARM
from calibration.tables import META, Tables, read_tables
from simulator.catalog import CONFIGS, gpu_names, load_gpu
from simulator.costs.collectives import has_peer_links
from simulator.costs.curve import Curve, curve_of
from simulator.costs.efficiency import GENERATIONS
from simulator.costs.fitted import CURVES, read_curves
from simulator.costs.form_base import Array
from simulator.costs.forms import FORMS, WEIGHTS, points_of
from simulator.errors import ConfigError, unknown_name
from simulator.spec import GpuSpec

PRIOR_POINTS = 3.0  # found right, that every op starts with: (10 % / 6 %)^2
CALIBRATED = CONFIGS / "calibrated"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The fitted curves of a GPU, as their files state them."""

    folder: Path
    gpu: GpuSpec
    curves: Mapping[str, Any]  # of curves.json
    card: Mapping[str, Any]  # of meta.yaml


@dataclass(slots=True, kw_only=True)
class Transfer:
    """Curves of the target, and what is known about them."""

    source: Source
    target: GpuSpec
    curves: list[Curve]
    left: dict[str, str]  # curve, or op of points: why it is not used
    engines: set[str] = field(default_factory=set)  # whose kernels the points are
    points: dict[str, int] = field(default_factory=dict)  # by op
    corrections: dict[str, float] = field(default_factory=dict)  # log of measured over predicted
    before: dict[str, Array] = field(default_factory=dict)  # relative misses by op
    after: dict[str, Array] = field(default_factory=dict)  # each point left out in turn


def read_source(name: str) -> Source:
    """Curves of a bundled GPU by its name, or of a folder that `fit` wrote.

    Raises:
        ConfigError: no such curves, or without provenance.
    """
    folder = Path(name)
    if not folder.is_dir():
        bundled = [gpu for gpu in gpu_names() if (CALIBRATED / gpu.lower() / CURVES).exists()]
        try:
            folder = CALIBRATED / load_gpu(name).name.lower()
        except ConfigError:
            raise unknown_name("folder or GPU with curves", name, bundled) from None
        if not folder.is_dir():
            raise unknown_name("folder or GPU with curves", name, bundled)
    curves = read_curves(folder / CURVES)
    path = folder / META
    try:
        card = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        card = None
    if not isinstance(card, dict):
        raise ConfigError(f"{path}: missing provenance of {folder / CURVES}")
    for key in ("engine", "version", "source", "licence"):
        if not card.get(key):
            raise ConfigError(f"{path}: {key}: missing provenance")
    return Source(folder=folder, gpu=load_gpu(str(curves["gpu"])), curves=curves, card=card)


def read_points(name: str, target: GpuSpec) -> Tables:
    """Points of the target: a folder of tables, or one table of such a folder.

    Raises:
        ConfigError: see `read_tables`; another GPU's points, missing provenance.
    """
    path = Path(name)
    if path.is_dir():
        return read_tables(path, gpu=target.name)
    if not path.is_file():
        raise ConfigError(f"--points: {path} does not exist")
    op = path.name.split(".")[0]
    if op not in SCHEMAS:
        raise unknown_name(f"op, by the name of {path}", op, SCHEMAS)
    found = read_tables(path.parent, gpu=target.name)
    if op not in found.ops:
        raise ConfigError(f"{path}: not among the tables of {path.parent / META}")
    return replace(found, ops={op: found.ops[op]})


def generation(gpu: GpuSpec) -> str:
    """The row of `GENERATIONS` a GPU belongs to, or its family where it has none."""
    family = gpu.family.lower()
    return next((name for name in GENERATIONS if family.startswith(name)), family)


def check_generation(source: Source, target: GpuSpec, *, across: bool) -> None:
    """Refuse what is known not to carry over.

    Raises:
        ConfigError: the same GPU, or another generation where that was not asked for.
    """
    if source.gpu.name == target.name:
        raise ConfigError(f"--to: {target.name} is the GPU of {source.folder} itself")
    old, new = generation(source.gpu), generation(target)
    if old != new and not across:
        raise ConfigError(
            f"--to: {target.name} is {new}, {source.gpu.name} {old}: shares of peak do not carry "
            "over (A100 to H100: 21-52 % off an op); --across-generations does it all the same"
        )


def transfer(source: Source, target: GpuSpec, points: Sequence[Tables]) -> Transfer:
    """The source's curves on the target's datasheet, corrected by the points."""
    curves, left = [], {}
    for entry in source.curves["curves"]:
        try:
            curve = curve_of(entry, target)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ConfigError(
                f"{source.folder / CURVES}: curves: not usable ({type(error).__name__}: {error})"
            ) from None
        why = _different(curve, source.gpu, target)
        if why:
            left[f"{curve.op} {curve.label}".strip()] = why
        else:
            curves.append(curve)
    found = Transfer(source=source, target=target, curves=curves, left=left)
    if points:
        _correct(found, points)
    return found


def _different(curve: Curve, source: GpuSpec, target: GpuSpec) -> str:
    """Why a curve's kernels are other ones on the target; empty where they are not."""
    if curve.op == "all_reduce":
        links = source.gpu_link, target.gpu_link
        if has_peer_links(links[0]) != has_peer_links(links[1]):
            return f"over {links[0].name}, here {links[1].name}"
    if curve.op in ("gemm", "moe"):
        compute = WEIGHTS[curve.label][1]
        if (compute in source.flops_per_s) != (compute in target.flops_per_s):
            return f"only one of both GPUs multiplies {compute}"
    return ""


def _correct(found: Transfer, points: Sequence[Tables]) -> None:
    """One correction an op, from every curve's points together."""
    found.engines = {tables.provenance["engine"] for tables in points}
    for op in [op for op in SCHEMAS if any(op in tables.ops for tables in points)]:
        table = pd.concat([tables.ops[op] for tables in points if op in tables.ops])
        missed, floor = _missed(found, op, table.drop_duplicates(list(SCHEMAS[op].key)))
        if not len(missed):
            continue
        found.points[op] = len(missed)
        found.corrections[op] = shrunk(-missed)
        found.before[op] = np.expm1(missed)
        if len(missed) > 1:
            rest = missed + left_out(-missed)
            found.after[op] = np.expm1(np.maximum(rest, floor))
    found.curves = [
        replace(curve, log_bias=curve.log_bias + found.corrections.get(curve.op, 0.0))
        for curve in found.curves
    ]


def _missed(found: Transfer, op: str, table: pd.DataFrame) -> tuple[Array, Array]:
    """Logarithms of predicted and of least time over measured; rows without a curve are counted."""
    curves = {curve.label: curve for curve in found.curves if curve.op == op}
    labels = sorted(table[LABELS[op]].unique()) if op in LABELS else [""]
    missed, floor = [np.zeros(0)], [np.zeros(0)]
    for label in labels:
        rows = rows_of(op, table, label)
        if label not in curves:
            found.left[f"points of {op} {label}".strip()] = f"{len(rows)} rows: no such curve"
            continue
        curve = curves[label]
        missed.append(np.log1p(misses_of(curve, rows)))
        points = points_of(op, {name: rows[name] for name in rows.columns}, found.target)
        least = FORMS[op].bounds(points, found.target).least_s(WARM * found.target.l2_bytes)
        floor.append(np.log(np.maximum(least, 1e-12) / rows[TIME].to_numpy(dtype=np.float64)))
    return np.concatenate(missed), np.concatenate(floor)


def shrunk(logs: Array) -> float:
    """The median, counted n / (n + 3)."""
    return float(np.median(logs)) * len(logs) / (len(logs) + PRIOR_POINTS) if len(logs) else 0.0


def left_out(logs: Array) -> Array:
    """`shrunk` of all but each one, of two or more: only three medians are possible."""
    order, half = np.argsort(logs, kind="stable"), len(logs) // 2
    ordered, answer = logs[order], np.empty(len(logs))
    answer[order[:half]] = shrunk(ordered[1:])
    answer[order[half]] = shrunk(np.delete(ordered, half))
    answer[order[half + 1 :]] = shrunk(ordered[:-1])
    return answer


def errors_by_op(found: Transfer) -> dict[str, dict[str, Any]]:
    """By op with points: their number, the correction in percent, errors before and after it.

    `after` predicts each point from the others, and is None for a single one.
    """
    return {
        op: {
            "points": number,
            "correction": round(100.0 * float(np.expm1(found.corrections[op])), 2),
            "before": errors_of([found.before[op]]).to_json(),
            "after": errors_of([found.after[op]]).to_json() if op in found.after else None,
        }
        for op, number in found.points.items()
    }


def source_line(found: Transfer) -> str:
    """One line for the head of every result: that nothing here is a table of this GPU."""
    source, card = found.source, found.source.card
    measured = str(card["source"]).split(",")[0]
    line = f"{found.target.name}: transferred from {source.gpu.name} ({measured}, {card['engine']}"
    line += " kernels) by datasheet ratios"
    old, new = generation(source.gpu), generation(found.target)
    if old != new:
        line += f", across generations ({old} to {new})"
    if not found.points:
        return f"{line}; nothing measured on it: error unknown"
    shown = []
    for op, errors in errors_by_op(found).items():
        stated, when = errors["after"] or errors["before"], "" if errors["after"] else " before"
        shown.append(f"{HEADLINE[op]} {stated['mape']:.1f} %{when}")
    number, others = sum(found.points.values()), sorted(found.engines - {str(card["engine"])})
    kernels = f" of {', '.join(others)} kernels" if others else ""
    told = f"corrected by {number} points{kernels}"
    return f"{line}, {told}; error on each left out: {', '.join(shown)}"


def write_transfer(found: Transfer, points: Sequence[Tables], folder: Path) -> Path:
    """curves.json, and meta.yaml that says what was measured and what was transferred."""
    errors = errors_by_op(found)
    path = write_curves(found.curves, source_line(found), errors, folder)
    kinds: dict[str, list[str]] = {}
    for curve in found.curves:
        kinds.setdefault(curve.op, []).append(curve.label or "every format")
    card = found.source.card
    meta = {
        "gpu": found.target.name,
        **{key: card[key] for key in ("engine", "version")},
        "source": f"transferred from {found.source.gpu.name}: {card['source']}",
        "licence": card["licence"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "note": "Curves of another GPU on this one's datasheet; not measurements of it.",
        "transferred": kinds,
        "measured": [
            {**tables.provenance, "rows": {op: len(table) for op, table in tables.ops.items()}}
            for tables in points
        ],
        "refused": dict(found.left),
        "held_out": errors,
    }
    text = yaml.safe_dump(meta, sort_keys=False, allow_unicode=True, width=100)
    (folder / META).write_text(text, encoding="utf-8")
    return path
