"""One fitted curve: a physical form with its parameters, and a learned residual inside its range.

Outside the measured range the residual keeps the value it has on the boundary, so that the curve
grows as the physical form does and is monotone where the form is. No time is below the roofline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from simulator.costs.boosted import NoResidual, Radial, Trees, residual_of
from simulator.costs.form_base import Array, Points
from simulator.costs.forms import FORMS
from simulator.spec import GpuSpec


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """Seconds of one op in one format on one GPU."""

    op: str
    label: str  # weight format; "" = the form covers every format
    gpu: GpuSpec
    parameters: Mapping[str, float]
    residual: Trees | Radial | NoResidual
    ranges: Mapping[str, tuple[float, float]]  # measured range of each input
    log_bias: float = 0.0  # correction of a curve that was measured on another GPU

    def time_s(self, points: Points, *, l2_bytes: float = 0.0) -> Array:
        """Seconds at each point; tensors under `l2_bytes` may beat the memory's rate."""
        form = FORMS[self.op]
        physical = form.time(self.parameters, points, self.gpu)
        learned = self.residual.predict(self.features(points)) + self.log_bias
        least = form.bounds(points, self.gpu).least_s(l2_bytes)
        seconds: Array = np.maximum(physical * np.exp(learned), least)
        return seconds

    def features(self, points: Points) -> Array:
        """What the residual sees: the points, held to the measured range. [points, features]"""
        inside = dict(points)
        for name, (low, high) in self.ranges.items():
            inside[name] = np.clip(points[name], low, high)
        return np.stack(FORMS[self.op].features(inside, self.gpu), axis=1)

    def to_json(self) -> dict[str, object]:
        """Six digits of every parameter."""
        bias = {"log_bias": float(f"{self.log_bias:.6g}")} if self.log_bias else {}
        return {
            "op": self.op,
            "label": self.label,
            "parameters": {name: float(f"{v:.6g}") for name, v in self.parameters.items()},
            "ranges": {name: list(ends) for name, ends in self.ranges.items()},
            "residual": self.residual.to_json(),
            **bias,
        }


def curve_of(data: Mapping[str, Any], gpu: GpuSpec) -> Curve:
    """The curve that `to_json` wrote; ValueError, TypeError or KeyError where it is not one."""
    form = FORMS[data["op"]]
    ranges = {name: (float(low), float(high)) for name, (low, high) in data["ranges"].items()}
    parameters = {name: float(data["parameters"][name]) for name in form.parameters}
    return Curve(
        op=data["op"],
        label=str(data["label"]),
        gpu=gpu,
        parameters=parameters,
        residual=residual_of(data["residual"]),
        ranges={name: ranges[name] for name in form.inputs},
        log_bias=float(data.get("log_bias", 0.0)),
    )
