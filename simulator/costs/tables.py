"""Cost tables: the fitted curves of one GPU, asked in the simulator's own terms.

Times over tokens are taken at fixed knots and joined by straight lines, so that a price never falls
as tokens are added and does not depend on which other sizes were asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from simulator.costs.curve import Curve
from simulator.costs.form_base import Array, Points
from simulator.costs.forms import WEIGHTS, weight_points
from simulator.errors import OutsideCalibration
from simulator.spec import GpuSpec

# Tokens at which curves are evaluated: the small sizes of decode, tile edges, then 12 an octave
# up to 4,096 and 4 an octave beyond.
KNOTS: Array = np.unique(
    np.concatenate(
        [
            np.arange(1.0, 17.0),
            np.arange(24.0, 129.0, 8.0),
            np.rint(2.0 ** np.arange(7.0, 12.0, 1 / 12)),
            np.rint(2.0 ** np.arange(12.0, 24.1, 1 / 4)),
        ]
    )
)
PAYLOADS: Array = 2.0 ** np.arange(6.0, 40.0, 0.5)  # bytes
CURVES_OF: Mapping[str, tuple[str, ...]] = {  # curves that price a weight format, best first
    "bf16": ("bf16",),
    "fp16": ("bf16",),
    "fp8": ("fp8", "fp8_block"),
    "int8": ("int8",),
    "int4_g128": ("int4_g128",),
    "mxfp4": ("mxfp4",),
}
UNORDERED = ("window", "skew_percent")  # inputs that a larger value does not make harder
REACH = 2.0  # how far above its measured range a table of one's own is used unless asked for more


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CostTables:
    """Curves by (op, label), where they come from, and whether they may be stretched."""

    gpu: GpuSpec
    source: str  # one line
    curves: Mapping[tuple[str, str], Curve]
    extrapolate: bool  # far beyond the measured range too

    def curve(self, op: str, fmt: str = "") -> Curve | None:
        """The curve of an op in a weight format; None where it was not measured."""
        for label in CURVES_OF.get(fmt, (fmt,)):
            if (op, label) in self.curves:
                return self.curves[op, label]
        return None

    def gemm_s(self, fmt: str, tokens: Array, out_size: int, in_size: int) -> Array | None:
        """Seconds of [tokens, in_size] x [in_size, out_size]."""
        curve = self.curve("gemm", fmt)
        if curve is None:
            return None
        shape = (("out_size", out_size), ("in_size", in_size))
        return self._over(curve, "num_tokens", tokens, shape, KNOTS)

    def moe_s(
        self, fmt: str, tokens: Array, shape: Mapping[str, float], around: tuple[float, float]
    ) -> Array | None:
        """Seconds of all routed experts of a layer on one GPU, with as many rows on each GPU.

        `around`: seconds, and seconds a token, of passes that are priced apart.
        """
        curve = self.curve("moe", fmt)
        if curve is None:
            return None
        even = {**shape, "skew_percent": 0}
        return self._over(curve, "num_tokens", tokens, tuple(sorted(even.items())), KNOTS, around)

    def collective_s(self, kind: str, payload: Array, num_gpus: int) -> Array | None:
        """Seconds over GPUs of one node; None for kinds and group sizes nobody measured."""
        op, label = ("all_reduce", "graph") if kind == "all_reduce" else ("collective", kind)
        curve = self.curve(op, label)
        if curve is None or not curve.ranges["num_gpus"][0] <= num_gpus:
            return None
        if num_gpus > curve.ranges["num_gpus"][1]:
            return None
        return self._over(curve, "payload_bytes", payload, (("num_gpus", num_gpus),), PAYLOADS)

    def attention_s(self, op: str, points: Points) -> Array | None:
        """Seconds of `prefill_attention` or `decode_attention` at each point."""
        curve = self.curve(op)
        if curve is None:
            return None
        self.check(curve, points)
        return curve.time_s(points)

    def _over(
        self,
        curve: Curve,
        axis: str,
        values: Array,
        shape: tuple[tuple[str, float], ...],
        knots: Array,
        less: tuple[float, float] = (0.0, 0.0),
    ) -> Array:
        """Times along one axis at a fixed shape, `less` a line."""
        last = float(values.max())
        ends = {name: np.array([float(size)]) for name, size in shape}
        self.check(curve, ends | {axis: np.array([last])})
        num = min(len(knots), int(np.searchsorted(knots, last)) + 1)
        # A whole octave more, so that few lengths of the same curve are computed.
        num = min(len(knots), -(-num // 16) * 16)
        times = _at_knots(curve, axis, shape, num) - less[0] - less[1] * knots[:num]
        line: Array = np.interp(values, knots[:num], np.maximum.accumulate(times))
        return line

    def check(self, curve: Curve, points: Points) -> None:
        """Refuse a question far above what was measured, unless that was asked for.

        Raises:
            OutsideCalibration: an input more than `REACH` times its largest measured value.
        """
        if self.extrapolate:
            return
        for name, (_, high) in curve.ranges.items():
            asked = float(points[name].max())
            if asked > REACH * high and name not in UNORDERED:
                raise OutsideCalibration(
                    f"{curve.op} {curve.label}".strip()
                    + f": {name} {asked:g} is more than twice the largest measured, {high:g} "
                    f"({self.source}); engine.extrapolate: true uses the physical form"
                )


@lru_cache(maxsize=4096)
def _at_knots(curve: Curve, axis: str, shape: tuple[tuple[str, float], ...], num: int) -> Array:
    """Times at the first knots of an axis, never falling."""
    knots = (PAYLOADS if axis == "payload_bytes" else KNOTS)[:num]
    points = {name: np.full(num, float(size)) for name, size in shape} | {axis: knots}
    if curve.label in WEIGHTS:
        points |= weight_points(np.full(num, curve.label, dtype=object), curve.gpu)
    return np.maximum.accumulate(curve.time_s(points))
