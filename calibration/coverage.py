"""Do the intervals hold? Errors of half of the families against the measurements of the other half.

Points: the share of left-out points inside the 80 % interval of the others' errors. Layers: sums of
left-out points as one layer of a model runs them, four weight matrices at one octave of tokens with
attention and two all-reduces, against the interval of the same sums with drawn errors.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.costs.form_base import Array

Ints = NDArray[np.int64]
LEVEL = 0.8
ENDS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
# Points of each op in a layer that decodes and in one that prefills; those that were measured.
DECODES = {"gemm": 4, "moe": 1, "decode_attention": 1, "all_reduce": 2}
PREFILLS = {"gemm": 4, "moe": 1, "prefill_attention": 1, "all_reduce": 2}
HALVES, TRIALS, DRAWS = 8, 50, 200  # splits of the families; layers of each; draws of a layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Misses:
    """Left-out points of one op; arrays of equal length."""

    family: Ints
    octave: Ints  # of the op's axis; 0 where it has none
    measured_s: Array
    log_ratio: Array  # measured over priced


def coverage(fitted: Mapping[str, Misses]) -> dict[str, Any]:
    """Shares inside the 80 % interval, by op and of whole layers; each should be near 0.8."""
    splits = [
        {name: halves(name, misses, number) for name, misses in fitted.items()}
        for number in range(HALVES)
    ]
    return {
        "points": {
            name: round(float(np.mean([points(fitted[name], *x[name]) for x in splits])), 3)
            for name in fitted
        },
        "layers": round(float(np.mean([layers(fitted, x) for x in splits])), 3),
    }


def halves(name: str, misses: Misses, number: int) -> tuple[Ints, Ints]:
    """Points of half of the families and of the other half; of few families, halves of points."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), number])
    is_few = len(np.unique(misses.family)) < 4
    unit = np.arange(len(misses.family)) if is_few else misses.family
    some = rng.permutation(np.unique(unit))
    first = np.isin(unit, some[: len(some) // 2])
    return np.flatnonzero(first), np.flatnonzero(~first)


def points(misses: Misses, known: Ints, asked: Ints) -> float:
    """Share of the points asked for inside the interval of the known ones."""
    low, high = np.quantile(misses.log_ratio[known], ENDS)
    ratios = misses.log_ratio[asked]
    return float(((ratios >= low) & (ratios <= high)).mean())


def layers(fitted: Mapping[str, Misses], split: Mapping[str, tuple[Ints, Ints]]) -> float:
    """Share of made-up layers whose measured time lies in the interval of the drawn ones."""
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(TRIALS):
        measured, drawn = 0.0, np.zeros(DRAWS)
        for op, count in (PREFILLS if trial % 2 else DECODES).items():
            names = [name for name in fitted if name.split()[0] == op]
            if names:
                name = str(rng.choice(names))
                seconds, sums = _ops(fitted[name], *split[name], count, rng)
                measured, drawn = measured + seconds, drawn + sums
        low, high = np.quantile(drawn, ENDS)
        inside += bool(low <= measured <= high)
    return inside / TRIALS


def _ops(
    misses: Misses, known: Ints, asked: Ints, count: int, rng: np.random.Generator
) -> tuple[float, Array]:
    """Measured seconds of a few points at one octave, and as many draws of their prices."""
    octave = misses.octave[rng.choice(asked)]
    there = known[misses.octave[known] == octave]
    chosen = rng.choice(asked[misses.octave[asked] == octave], count)
    errors = misses.log_ratio[rng.choice(there if len(there) else known, (DRAWS, count))]
    priced = misses.measured_s[chosen] / np.exp(misses.log_ratio[chosen])
    return float(misses.measured_s[chosen].sum()), (priced * np.exp(errors)).sum(axis=1)
