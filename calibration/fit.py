"""Fit a curve: the physical form's parameters by robust least squares, then what it misses.

Both are fitted to logarithms of time, so that an error of 5 % counts alike at 5 us and at 50 ms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import least_squares

from calibration.boost import Boosting, boost
from calibration.columns import SCHEMAS, TIME
from simulator.costs.boosted import NoResidual, Radial
from simulator.costs.curve import Curve
from simulator.costs.form_base import Array, Points
from simulator.costs.forms import FORMS, points_of
from simulator.spec import GpuSpec

PRECISE = Boosting()
COMPACT = Boosting(trees=260, rate=0.16)  # the embedded curves: 40 kB each
LABELS = {"gemm": "format", "moe": "format", "all_reduce": "launch", "collective": "kind"}
RADIAL = ("all_reduce", "collective")  # tables of a few dozen points on two axes
OUTLIER = 3.0  # a miss of 1/3 in log counts half, a miss of 3 hardly more than one of 1
PRIOR = 0.1  # a parameter e times its start weighs as much as one point 10 % off
FORM_ROWS = 6000  # rows are plenty for seven parameters
DEEPER = {"decode_attention": 1}  # splits over KV switch with several inputs at once
MOST_ROWS = 24_000  # trees learn little from more
RADIAL_WIDTH, RADIAL_RIDGE = 1.5, 0.05


def labels_of(op: str, table: pd.DataFrame) -> list[str]:
    """The curves of a table: one a weight format or kind of launch, or one for all."""
    return sorted(table[LABELS[op]].unique()) if op in LABELS else [""]


def rows_of(op: str, table: pd.DataFrame, label: str) -> pd.DataFrame:
    """A curve's rows."""
    return table[table[LABELS[op]] == label] if op in LABELS else table


def fit_curve(
    op: str, label: str, table: pd.DataFrame, gpu: GpuSpec, how: Boosting = PRECISE
) -> Curve:
    """The curve of one op and format through the rows of a table."""
    whole = table
    if len(table) > MOST_ROWS:
        table = table.sample(MOST_ROWS, random_state=0)
    points = points_of(op, {name: table[name] for name in table.columns}, gpu)
    times = table[TIME].to_numpy(dtype=np.float64)
    parameters = fit_parameters(op, points, times, gpu)
    ranges = {n: (float(whole[n].min()), float(whole[n].max())) for n in FORMS[op].inputs}
    physical = FORMS[op].time(parameters, points, gpu)
    bare = Curve(
        op=op,
        label=label,
        gpu=gpu,
        parameters=parameters,
        residual=NoResidual(),
        ranges=ranges,
    )
    features, missed = bare.features(points), np.log(times / physical)
    how = replace(how, depth=how.depth + DEEPER.get(op, 0))
    residual = fit_radial(features, missed) if op in RADIAL else boost(features, missed, how)
    return Curve(
        op=op, label=label, gpu=gpu, parameters=parameters, residual=residual, ranges=ranges
    )


def fit_parameters(op: str, points: Points, times: Array, gpu: GpuSpec) -> Mapping[str, float]:
    """Parameters within their ranges; misses of a few points do not bend them."""
    form = FORMS[op]
    names = list(form.parameters)
    low = np.log([form.parameters[name].low for name in names])
    high = np.log([form.parameters[name].high for name in names])
    start = np.log([form.parameters[name].start for name in names])
    every = max(1, len(times) // FORM_ROWS)
    some = {name: values[::every] for name, values in points.items()}
    wanted = np.log(times[::every])

    def misses(logs: Array) -> Array:
        values = dict(zip(names, np.exp(logs), strict=True))
        miss = np.log(form.time(values, some, gpu)) - wanted
        return np.concatenate([np.arctan(OUTLIER * miss) / OUTLIER, PRIOR * (logs - start)])

    # The fastest of several algorithms has local minima: a few starts between the ranges' ends.
    starts = [start, *(np.clip(start + shift, low, high) for shift in (-0.5, 0.5))]
    tried: list[Any] = [
        least_squares(misses, begin, bounds=(low, high), max_nfev=60)
        for begin in (starts if op in RADIAL else starts[:1])
    ]
    best = min(tried, key=lambda found: float(found.cost))
    return {name: float(np.exp(value)) for name, value in zip(names, best.x, strict=True)}


def fit_radial(features: Array, target: Array) -> Radial:
    """Gaussians at the points, by ridge regression."""
    gaps = ((features[:, None] - features[None]) ** 2).sum(axis=2)
    near = np.exp(-gaps / (2.0 * RADIAL_WIDTH**2))
    weight = np.linalg.solve(near + RADIAL_RIDGE * np.eye(len(target)), target)
    return Radial(centre=features, weight=weight, width=RADIAL_WIDTH)


def fit_tables(
    ops: Mapping[str, pd.DataFrame], gpu: GpuSpec, how: Boosting = PRECISE
) -> list[Curve]:
    """Every curve of every op of one GPU."""
    return [
        fit_curve(op, label, rows_of(op, table, label), gpu, how)
        for op, table in ops.items()
        if op in SCHEMAS
        for label in labels_of(op, table)
    ]
