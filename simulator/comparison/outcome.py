"""What a comparison found, for tables, figures and JSON."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from simulator.comparison.intervals import Interval
from simulator.comparison.metrics import HIGHER, METRICS, Metric

LEVEL = 0.95  # of all intervals of one metric together
SIMULATED, MEASURED, INFEASIBLE = "simulated", "measured", "infeasible"
# How an arm is compared with the baseline.
PAIRED_SEEDS, WELCH = "paired by seed", "unpaired over seeds"
PAIRED_REQUESTS, UNPAIRED_REQUESTS = "paired by request", "unpaired over requests"
VALUES_ONLY = "values only"
BETTER, WORSE, SAME, UNCLEAR = "better", "worse", "same", "unclear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One metric of one arm against the baseline; change and interval in `unit`."""

    change: float
    unit: str  # "%" of the baseline, "pt" of a share, "" = the metric's own
    interval: Interval | None = None
    verdict: str = ""  # "" = no interval

    def to_json(self) -> dict[str, Any]:
        interval = self.interval
        return {
            "change": self.change,
            "change_unit": self.unit,
            "low": interval.low if interval else None,
            "high": interval.high if interval else None,
            "significant": interval.excludes_zero if interval else None,
            "verdict": self.verdict or None,
            "times_narrower": interval.times_narrower if interval else None,
        }


KEYS = ("change", "change_unit", "low", "high", "significant", "verdict", "times_narrower")
NOTHING = dict.fromkeys(KEYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One experiment or measured result in a comparison."""

    name: str
    kind: str  # SIMULATED, MEASURED or INFEASIBLE
    reason: str = ""  # why it cannot run, or why it has no interval
    pairing: str = ""  # with the baseline; "" of the baseline itself and of what cannot run
    values: dict[str, float | None] = field(default_factory=dict)  # means over its replicates
    each: dict[str, list[float | None]] = field(default_factory=dict)  # replicate by replicate
    differences: dict[str, Difference] = field(default_factory=dict)  # of the metrics both have
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        def entry(key: str) -> dict[str, Any]:
            found = self.differences.get(key)
            more = found.to_json() if found else NOTHING
            return {"value": self.values.get(key), "replicates": self.each.get(key, []), **more}

        return {
            "name": self.name,
            "kind": self.kind,
            "reason": self.reason or None,
            "pairing": self.pairing or None,
            "notes": list(self.notes),
            "metrics": {metric.key: entry(metric.key) for metric in METRICS},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Arms against a baseline."""

    arms: tuple[Arm, ...]  # in the order given
    baseline: Arm  # the first that could run, or was measured
    seeds: tuple[int, ...]  # under which every simulated arm ran
    num_seeds: int  # asked for
    drawn: tuple[str, ...]  # parts of the baseline's requests that differ from seed to seed
    num_compared: int  # arms with intervals, over which those of a metric hold together
    interrupted: bool = False

    @property
    def others(self) -> list[Arm]:
        """What is compared with the baseline."""
        return [arm for arm in self.arms if arm is not self.baseline and arm.kind != INFEASIBLE]

    @property
    def metrics(self) -> list[Metric]:
        """Those that some arm has."""
        able = [self.baseline, *self.others]
        return [m for m in METRICS if any(arm.values.get(m.key) is not None for arm in able)]

    def narrowing(self) -> list[float]:
        """By how much pairing narrowed each interval, least first."""
        found = [d.interval for arm in self.others for d in arm.differences.values() if d.interval]
        times = [interval.times_narrower for interval in found]
        return sorted(x for x in times if x == x)  # not NaN

    def to_json(self) -> dict[str, Any]:
        times = self.narrowing()
        return {
            "level": LEVEL,
            "adjusted_over_arms": self.num_compared,
            "seeds": list(self.seeds),
            "drawn": list(self.drawn),
            "interrupted": self.interrupted,
            "baseline": self.baseline.name,
            "median_times_narrower": statistics.median(times) if times else None,
            "units": {metric.key: metric.unit or None for metric in METRICS},
            "better": {metric.key: metric.better or None for metric in METRICS},
            "arms": [arm.to_json() for arm in self.arms],
        }


def verdict(metric: Metric, interval: Interval) -> str:
    """What an interval says, in a word."""
    if not interval.excludes_zero:
        return SAME if interval.low == interval.high else UNCLEAR
    is_higher = interval.low > 0
    if not metric.better:
        return "higher" if is_higher else "lower"
    return BETTER if is_higher == (metric.better == HIGHER) else WORSE
