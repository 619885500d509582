"""The highest request rate at which enough requests meet the SLOs, by bisection.

Every probe serves the same requests with the same gaps, divided by the rate scale (common random
numbers), so the answer moves with the rate and not with the draw. The search asks for one
simulation at a time and knows nothing about how it is run.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any

from simulator.search.objective import Metrics, holds_slo
from simulator.spec import Slo

# A probe yields the rate scale to simulate and is sent the metrics; what it returns is the result.
Probe = Generator[float, Metrics, dict[str, Any]]

RATE, SCALE = "goodput_rate_per_s", "goodput_rate_scale"
TOLERANCE = 0.02
MAX_PROBES = 24
SMALLEST_SCALE = 2.0**-20
LARGEST_STEP = 16.0  # brackets grow by 2, 4, 16, 16, ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Bracket:
    """Rate scales known to hold the SLOs and to miss them."""

    holds: float = 0.0
    misses: float = float("inf")

    @property
    def is_narrow(self) -> bool:
        return self.misses <= self.holds * (1 + TOLERANCE)

    def next_scale(self, step: float) -> float:
        """Where to look next: grow while one end is open, the geometric middle after that."""
        if self.holds == 0.0:
            return self.misses / step
        if self.misses == float("inf"):
            return self.holds * step
        return float((self.holds * self.misses) ** 0.5)


def at_the_given_rate() -> Probe:
    """One simulation of the workload as it is."""
    metrics = yield 1.0
    return dict(metrics)


def highest_rate(
    slo: Slo, offered_rate_per_s: float, num_gpus: int, beat_scale: float = 0.0
) -> Probe:
    """Bisect the request rate; the result is the metrics at the highest rate that holds.

    Adds goodput_rate_per_s, the same per GPU, `probes` ([rate, attainment] of each simulation) and
    `rate_is_bracketed`, false where the limit of simulations came before the tolerance.
    `beat_scale` is another plan's result: a miss there ends it, and the rate is None. Scales come
    from one grid of powers and means whatever the plan, so that equal plans get equal rates.
    """
    bracket, step, scale = Bracket(), 2.0, 1.0
    probes: list[list[float | None]] = []
    best: Metrics = {}
    if beat_scale:
        best = yield beat_scale
        probes.append([beat_scale * offered_rate_per_s, best.get("slo_attainment")])
        if not holds_slo(best, slo):
            return {RATE: None, "probes": probes}
    while len(probes) < MAX_PROBES and not bracket.is_narrow:
        holds = scale <= beat_scale
        if not holds:
            metrics = yield scale
            probes.append([scale * offered_rate_per_s, metrics.get("slo_attainment")])
            holds = holds_slo(metrics, slo)
            best = metrics if holds or not best else best
        bracket = replace(bracket, holds=scale) if holds else replace(bracket, misses=scale)
        if bracket.misses < SMALLEST_SCALE or bracket.holds > 1 / SMALLEST_SCALE:
            break  # not even served one by one, or even all at once
        scale = bracket.next_scale(step)
        step = min(step * step, LARGEST_STEP)
    rate = bracket.holds * offered_rate_per_s
    return {
        **best,
        RATE: rate,
        RATE + "_per_gpu": rate / num_gpus,
        SCALE: bracket.holds,
        "rate_is_bracketed": bracket.is_narrow or bracket.holds == 0.0,
        "probes": probes,
    }
