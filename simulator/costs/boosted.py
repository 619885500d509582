"""Learned residuals: what a physical form misses, as a logarithm, from its features.

Two kinds, both evaluated in numpy: boosted oblivious trees (every node of a level asks the same
question, so a tree is one table look-up) for dense grids, and radial basis functions for tables of
a few dozen points. Both serialise to short text.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.costs.form_base import Array

CHUNK = 4096  # rows evaluated together


class Residual(Protocol):
    """Logarithm of measured over physical time."""

    def predict(self, features: Array) -> Array:
        """Of each row of [rows, features]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Trees:
    """Oblivious trees; the answer is the sum of one leaf of each."""

    feature: NDArray[np.int64]  # [trees, depth]
    threshold: Array  # [trees, depth]; a row goes right where its feature is above
    leaf: Array  # [trees, 2**depth]

    def predict(self, features: Array) -> Array:
        num_trees, depth = self.feature.shape
        weights = 1 << np.arange(depth - 1, -1, -1)
        which = np.arange(num_trees)
        total = np.zeros(len(features))
        for start in range(0, len(features), CHUNK):
            rows = features[start : start + CHUNK]
            # [rows, trees]: one level at a time, so that no [rows, trees, depth] array is built.
            index = np.zeros((len(rows), num_trees), dtype=np.int64)
            for level in range(depth):
                right = rows[:, self.feature[:, level]] > self.threshold[:, level]
                index += right * weights[level]
            total[start : start + CHUNK] = self.leaf[which, index].sum(axis=1)
        return total

    def to_json(self) -> dict[str, object]:
        """Leaves as int8 of a scale a tree: 0.4 % of the tree's largest leaf."""
        scale = np.maximum(np.abs(self.leaf).max(axis=1) / 127.0, 1e-12)
        leaves = np.rint(self.leaf / scale[:, None]).astype(np.int8)
        return {
            "kind": "trees",
            "shape": list(self.feature.shape),
            "feature": _pack(self.feature.astype(np.uint8)),
            "threshold": _pack(self.threshold.astype("<f4")),
            "scale": _pack(scale.astype("<f4")),
            "leaf": _pack(leaves),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Radial:
    """Gaussians around the measured points; fades to the physical form away from them."""

    centre: Array  # [points, features]
    weight: Array  # [points]
    width: float

    def predict(self, features: Array) -> Array:
        gap = features[:, None, :] - self.centre[None]
        near = np.exp(-(gap**2).sum(axis=2) / (2.0 * self.width**2))
        answer: Array = near @ self.weight
        return answer

    def to_json(self) -> dict[str, object]:
        return {
            "kind": "radial",
            "shape": list(self.centre.shape),
            "centre": _pack(self.centre.astype("<f4")),
            "weight": _pack(self.weight.astype("<f4")),
            "width": self.width,
        }


@dataclass(frozen=True, slots=True)
class NoResidual:
    """The physical form as it is."""

    def predict(self, features: Array) -> Array:
        return np.zeros(len(features))

    def to_json(self) -> dict[str, object]:
        return {"kind": "none"}


def residual_of(data: Mapping[str, Any]) -> Trees | Radial | NoResidual:
    """The residual that `to_json` wrote; ValueError or KeyError where it is not one."""
    if data["kind"] == "none":
        return NoResidual()
    rows, columns = data["shape"]
    if data["kind"] == "radial":
        return Radial(
            centre=_unpack(data["centre"], "<f4", (rows, columns)),
            weight=_unpack(data["weight"], "<f4", (rows,)),
            width=float(data["width"]),
        )
    if data["kind"] != "trees":
        raise ValueError(f"unknown kind of residual {data['kind']!r}")
    scale = _unpack(data["scale"], "<f4", (rows,))
    return Trees(
        feature=_unpack(data["feature"], "|u1", (rows, columns)).astype(np.int64),
        threshold=_unpack(data["threshold"], "<f4", (rows, columns)),
        leaf=_unpack(data["leaf"], "|i1", (rows, 2**columns)) * scale[:, None],
    )


def _pack(values: NDArray[Any]) -> str:
    return base64.b85encode(zlib.compress(np.ascontiguousarray(values).tobytes(), 9)).decode()


def _unpack(text: str, dtype: str, shape: Sequence[int]) -> Array:
    raw = zlib.decompress(base64.b85decode(text))
    return np.frombuffer(raw, dtype=dtype).reshape(shape).astype(np.float64)
