"""What a physical form is: least times, a few parameters with a meaning, and features.

A form prices points, equal-length float arrays by input name. The features are what a learned
residual may look at: logarithms of sizes, and how full the last wave of thread blocks is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.spec import GpuSpec

Array = NDArray[np.float64]
Points = Mapping[str, Array]
Parameters = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class FormBounds:
    """Least seconds at 100 % of each peak, and the bytes of every tensor touched."""

    compute_s: Array
    memory_s: Array
    moved_bytes: Array

    def least_s(self, l2_bytes: float) -> Array:
        """The roofline; tensors that fit in `l2_bytes` are not held to the memory's rate."""
        cold = np.where(self.moved_bytes < l2_bytes, 0.0, self.memory_s)
        least: Array = np.maximum(self.compute_s, cold)
        return least


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """Where the search for a parameter starts, and the range it may take."""

    start: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OpForm:
    """The physical form of one op."""

    inputs: tuple[str, ...]
    parameters: Mapping[str, Parameter]
    time: Callable[[Parameters, Points, GpuSpec], Array]
    features: Callable[[Points, GpuSpec], list[Array]]
    bounds: Callable[[Points, GpuSpec], FormBounds]


def p_norm(a: Array, b: Array, norm: float) -> Array:
    """(a^p + b^p)^(1/p): their maximum, rounded where they are close."""
    larger, smaller = np.maximum(a, b), np.minimum(a, b)
    ratio = smaller / np.maximum(larger, 1e-300)
    rounded: Array = larger * np.power(1.0 + np.power(ratio, norm), 1.0 / norm)
    return rounded


def tiles(size: Array, tile: float) -> Array:
    """Whole tiles that cover a size."""
    covered: Array = np.ceil(size / tile)
    return covered


def wave_fill(blocks: Array, num_sms: int) -> Array:
    """Share of the SMs busy on average over the waves of so many thread blocks."""
    fill: Array = blocks / (tiles(blocks, num_sms) * num_sms)
    return fill
