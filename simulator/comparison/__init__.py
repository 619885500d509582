"""Experiments side by side: common random numbers, paired differences, intervals.

`compare` runs them and finds the differences; `intervals` has the statistics, `measured` the one
seam for results of real servers.
"""

from __future__ import annotations

from simulator.comparison.compare import MOST_SEEDS, NUM_SEEDS, compare
from simulator.comparison.measured import Measured, is_result, read_measured
from simulator.comparison.outcome import Arm, Comparison, Difference

__all__ = [
    "MOST_SEEDS",
    "NUM_SEEDS",
    "Arm",
    "Comparison",
    "Difference",
    "Measured",
    "compare",
    "is_result",
    "read_measured",
]
