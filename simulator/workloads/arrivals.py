"""Arrival processes of synthetic load, written in YAML as `{process: gamma, rate: 12 /s, cv: 2}`.

Gaps are drawn with mean 1 and then scaled: a run at another rate sees the same gaps, stretched.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from simulator.errors import ConfigError
from simulator.workloads.checks import (
    MAX_REQUESTS,
    Floats,
    check_choice,
    check_keys,
    check_number,
    rate_per_s,
    shown,
)

ArrivalSpec = Mapping[str, object]
PROCESSES = ("poisson", "gamma", "weibull", "constant", "burst")
# Relative hourly rates from 0 h: BurstGPT (maximum 1), and a consumer model's shape.
PROFILES: dict[str, tuple[float, ...]] = {
    "burstgpt": (
        *(0.52, 0.50, 0.32, 0.29, 0.20, 0.19, 0.11, 0.09, 0.10, 0.23, 0.49, 0.72),
        *(0.97, 0.84, 1.00, 0.78, 0.82, 0.75, 0.66, 0.87, 0.75, 0.65, 0.63, 0.57),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals:
    """A renewal process, its rate optionally following a periodic profile."""

    process: str = "poisson"
    rate_per_s: float = math.inf  # mean over a period of the profile; unused by "burst"
    cv: float = 1.0  # of the gaps; gamma and weibull only
    profile: tuple[float, ...] = ()  # relative rate of equal parts of a period; () = steady
    period_s: float = 86_400.0

    def times_s(
        self, rng: np.random.Generator, *, num_requests: int = 0, duration_s: float = 0.0
    ) -> Floats:
        """The first `num_requests` arrivals, or those before `duration_s`, or what comes first."""
        if self.process == "burst":
            return np.zeros(num_requests)
        if not duration_s:
            return self._warp(np.cumsum(self._gaps(rng, num_requests)) / self.rate_per_s)
        times = np.zeros(0)
        last = 0.0
        chunk = max(16, min(MAX_REQUESTS, math.ceil(self.rate_per_s * duration_s * 1.1)))
        while True:
            unit = last + np.cumsum(self._gaps(rng, chunk))
            last = float(unit[-1])
            times = np.concatenate([times, self._warp(unit / self.rate_per_s)])
            if times[-1] >= duration_s or 0 < num_requests <= len(times):
                break
            if len(times) > MAX_REQUESTS:
                raise ConfigError(f"the arrival process gives more than {MAX_REQUESTS} requests")
        times = times[times < duration_s]
        return times[:num_requests] if num_requests else times

    def _gaps(self, rng: np.random.Generator, count: int) -> Floats:
        return unit_gaps(rng, self.process, self.cv, count)

    def _warp(self, times: Floats) -> Floats:
        """Times at which the profile has let through as much as a steady rate at `times`."""
        if not self.profile:
            return times
        weights = np.array(self.profile) / math.fsum(self.profile)
        passed = np.concatenate([[0.0], np.cumsum(weights)])
        passed[-1] = 1.0
        periods, within = np.divmod(times / self.period_s, 1.0)
        edges = np.linspace(0.0, 1.0, len(weights) + 1)
        warped: Floats = (periods + np.interp(within, passed, edges)) * self.period_s
        return warped


def unit_gaps(rng: np.random.Generator, process: str, cv: float, count: int) -> Floats:
    """Gaps of mean 1; `cv` matters for gamma and weibull."""
    if process == "poisson":
        return rng.standard_exponential(count)
    if process == "gamma":
        shape = 1 / cv**2
        return rng.standard_gamma(shape, count) / shape
    if process == "weibull":
        shape = weibull_shape(cv)
        return rng.weibull(shape, count) / math.gamma(1 + 1 / shape)
    return np.ones(count)


def weibull_shape(cv: float) -> float:
    """Shape k of the Weibull law with this CV: cv**2 + 1 = gamma(1 + 2/k) / gamma(1 + 1/k)**2."""
    target = math.log1p(cv**2)
    low, high = 0.05, 200.0
    for _ in range(80):  # bisection: the left side falls as k grows
        middle = math.sqrt(low * high)
        if math.lgamma(1 + 2 / middle) - 2 * math.lgamma(1 + 1 / middle) > target:
            low = middle
        else:
            high = middle
    return high


def parse_arrivals(key: str, value: ArrivalSpec) -> Arrivals:
    """The arrival process written as `value`.

    Raises:
        ConfigError: not a mapping of known keys, or a value outside its range.
    """
    options = check_keys(key, value, ("process", "rate", "cv", "profile", "period_s"))
    process = check_choice(f"{key}.process", options.get("process", "poisson"), PROCESSES)
    if process == "burst":
        if set(options) - {"process"}:
            raise ConfigError(
                f"{key}: process 'burst' sends everything at 0 and takes no other key"
            )
        return Arrivals(process=process)
    if "rate" not in options:
        raise ConfigError(f"{key}: process '{process}' needs the key 'rate', such as '12 /s'")
    rate = rate_per_s(f"{key}.rate", options["rate"])
    if math.isinf(rate):
        raise ConfigError(f"{key}.rate must be finite; use process: burst (got inf)")
    cv = options.get("cv", 1.0)
    if "cv" in options and process not in ("gamma", "weibull"):
        raise ConfigError(f"{key}.cv is for gamma and weibull, not '{process}' (got {shown(cv)})")
    check_number(f"{key}.cv", cv, low=0.02, high=100)
    period_s = options.get("period_s", 86_400.0)
    check_number(f"{key}.period_s", period_s, above=True)
    return Arrivals(
        process=process,
        rate_per_s=rate,
        cv=float(str(cv)),
        profile=_parse_profile(f"{key}.profile", options.get("profile", ())),
        period_s=float(str(period_s)),
    )


def _parse_profile(key: str, value: object) -> tuple[float, ...]:
    if isinstance(value, str):
        return PROFILES[check_choice(key, value, PROFILES)]
    if not isinstance(value, Sequence):
        raise ConfigError(f"{key} must be a list of relative rates (got {shown(value)})")
    for part in value:
        check_number(key, part, above=True)
    return tuple(float(part) for part in value)
