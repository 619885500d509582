"""One arm against the baseline: how the two can be compared, and every metric's difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from simulator.comparison.intervals import (
    Floats,
    Interval,
    block_interval,
    longest_block,
    t_interval,
)
from simulator.comparison.measured import Measured
from simulator.comparison.metrics import METRICS, PERCENT, Metric
from simulator.comparison.outcome import (
    INFEASIBLE,
    MEASURED,
    PAIRED_REQUESTS,
    PAIRED_SEEDS,
    SAME,
    SIMULATED,
    UNPAIRED_REQUESTS,
    VALUES_ONLY,
    WELCH,
    Arm,
    Difference,
    verdict,
)
from simulator.comparison.replicates import Replicate
from simulator.config import Document

FEW_BLOCKS = 20  # fewer say little about their own spread


@dataclass(slots=True, kw_only=True)
class Side:
    """One arm while it runs, and what its simulations came to."""

    name: str
    document: Document | None = None
    measured: Measured | None = None
    reason: str = ""  # why it cannot run
    is_drawn: bool = False  # its requests differ from seed to seed
    found: dict[int, Replicate] = field(default_factory=dict)  # by seed

    @property
    def runs(self) -> bool:
        return self.document is not None and not self.reason


def pairing_of(base: Side, side: Side) -> tuple[str, str]:
    """How an arm is compared with the baseline, and why not more closely."""
    if side is base or side.reason:
        return "", ""
    if base.measured or side.measured:
        return VALUES_ONLY, "a measured run has requests of its own: values only"
    if base.is_drawn != side.is_drawn:
        which, whose = ("its", "the baseline's") if base.is_drawn else ("the baseline's", "its")
        why = f"{which} requests are fixed, {whose} differ from seed to seed: values only"
        return VALUES_ONLY, why
    differing = _differing(base, side)
    if not differing:
        return (PAIRED_SEEDS if base.is_drawn else PAIRED_REQUESTS), ""
    method = "Welch's t" if base.is_drawn else "blocks of each drawn apart"
    parts = ", ".join(differing)
    why = f"other requests than the baseline's ({parts} differ): compared unpaired ({method})"
    return (WELCH if base.is_drawn else UNPAIRED_REQUESTS), why


def _differing(base: Side, side: Side) -> list[str]:
    """Parts of the requests that are not the same under every seed."""
    pairs = [(base.found[seed].requests, side.found[seed].requests) for seed in base.found]
    return [part for part in pairs[0][0] if any(one[part] != two[part] for one, two in pairs)]


def arm_of(base: Side, side: Side, level: float) -> Arm:
    """An arm with its differences from the baseline, each interval at `level`."""
    pairing, reason = pairing_of(base, side)
    if side.reason:
        return Arm(name=side.name, kind=INFEASIBLE, reason=side.reason)
    each = _each(side)
    length = _block_requests(base, side, pairing)
    found = {
        metric.key: _difference(base, side, metric, pairing, level, length) for metric in METRICS
    }
    differences = {} if side is base else {k: d for k, d in found.items() if d is not None}
    return Arm(
        name=side.name,
        kind=MEASURED if side.measured else SIMULATED,
        reason=reason,
        pairing=pairing,
        values={key: _mean(values) for key, values in each.items()},
        each=each,
        differences=differences,
        notes=_notes(base, side, differences),
    )


def _each(side: Side) -> dict[str, list[float | None]]:
    """Every metric, replicate by replicate."""
    found = [side.measured] if side.measured else list(side.found.values())
    return {metric.key: [one.metrics[metric.key] for one in found] for metric in METRICS}


def _mean(values: Sequence[float | None]) -> float | None:
    """None where any is not defined, so that arms are compared over the same seeds."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known and len(known) == len(values) else None


def _difference(
    base: Side, side: Side, metric: Metric, pairing: str, level: float, length: int
) -> Difference | None:
    """One metric of an arm against the baseline; None where either does not have it."""
    first, second = (_each(one)[metric.key] for one in (base, side))
    before, after = _mean(first), _mean(second)
    if before is None or after is None:
        return None
    unit = metric.change_unit(before)
    is_relative, factor = unit == PERCENT, 1.0 if unit == "" else 100.0
    interval: Interval | None = None
    if pairing in (PAIRED_SEEDS, WELCH):
        one, two = (np.array(each, dtype=np.float64) for each in (first, second))
        paired = pairing == PAIRED_SEEDS
        interval = t_interval(one, two, level, paired=paired, relative=is_relative)
    elif pairing in (PAIRED_REQUESTS, UNPAIRED_REQUESTS) and metric.column:
        one, two = _column(base, metric), _column(side, metric)
        paired = pairing == PAIRED_REQUESTS
        interval = block_interval(
            one, two, metric.statistic, level, paired=paired, relative=is_relative, length=length
        )
    gap = after - before
    change = factor * gap / (abs(before) if is_relative else 1.0)
    if interval is None:
        word = SAME if gap == 0 and pairing == PAIRED_REQUESTS else ""
        return Difference(change=change, unit=unit, verdict=word)
    interval = interval.times(factor)
    return Difference(
        change=change, unit=unit, interval=interval, verdict=verdict(metric, interval)
    )


def _block_requests(base: Side, side: Side, pairing: str) -> int:
    """How many requests to resample together; 0 where seeds are compared."""
    if pairing not in (PAIRED_REQUESTS, UNPAIRED_REQUESTS):
        return 0
    metrics = {metric.column: metric for metric in METRICS if metric.column}
    columns = [(_column(base, metric), _column(side, metric)) for metric in metrics.values()]
    return longest_block(columns, paired=pairing == PAIRED_REQUESTS)


def _column(side: Side, metric: Metric) -> Floats:
    (found,) = side.found.values()
    return found.columns[metric.column]


def _notes(base: Side, side: Side, differences: Mapping[str, Difference]) -> tuple[str, ...]:
    """What a reader of the numbers must know."""
    notes = []
    lost = sum(found.lost for found in side.found.values())
    num = sum(found.num_requests for found in side.found.values())
    if lost:
        notes.append(f"{lost:,} of {num:,} requests did not complete: latencies are of the others")
    if side.found and base.found:
        first, second = (next(iter(one.found.values())).slo for one in (base, side))
        if first != second:
            notes.append("its SLOs are not the baseline's")
    lengths = {d.interval.block_requests for d in differences.values() if d.interval} - {0}
    if lengths and num // max(lengths) < FEW_BLOCKS:
        notes.append(
            f"{num:,} requests are but {num // max(lengths)} blocks of {max(lengths)} under one "
            "load: its intervals may be too narrow"
        )
    return tuple(notes)
