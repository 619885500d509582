"""The highest request rate that still meets a condition, and the latencies papers ask it of."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from simulator.recorder import Result


def highest_rate(holds: Callable[[float], bool], start: float, steps: int = 7) -> float:
    """Bisection on a logarithmic scale, from a bracket found by doubling or halving `start`.

    Accurate to a factor 2 ** (1 / 2**steps): 0.5 % with 7 steps; 0 where nothing holds at all.
    """
    low, high = (start, start * 2) if holds(start) else (start / 2, start)
    for _ in range(20):
        if low == start or holds(low):
            break
        low, high = low / 2, low
    else:
        return 0.0
    while low == start and high < start * 2**20 and holds(high):
        start = low = high
        high *= 2
    for _ in range(steps):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def normalised_latency_s(result: Result) -> NDArray[np.float64]:
    """End-to-end latency over output tokens of each completed request, seconds a token."""
    done = result.completed
    latency = (result.finish_ns - result.sent_ns)[done] / 1e9
    normalised: NDArray[np.float64] = latency / result.table.output_tokens[done]
    return normalised
