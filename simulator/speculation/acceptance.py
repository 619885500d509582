"""Acceptance models: how many drafted tokens the target accepts, drawn before they are needed.

Outcomes belong to positions of a request's output, not to iterations: `runs[p]` is how many
drafted tokens are accepted where a draft's first token stands at position p (0 is the prompt's
own first token, never drafted). Whatever the schedule, the batch or the draft length, the same
request then meets the same luck, so policies are compared on common random numbers. Each request
has its own stream of the one seed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar, Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ConfigError
from simulator.speculation.drafters import Drafter

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Runs = NDArray[np.int8]

STREAM = crc32(b"speculation.acceptance")
MATCHES = crc32(b"speculation.matches")


class Source(Protocol):
    """The outcomes of one lane's requests."""

    has_limits: bool

    def outcomes(self, request: int, num_tokens: int) -> tuple[Runs, Runs | None]:
        """By output position: tokens accepted, and most tokens proposed (None = no limit)."""
        ...

    def finished(self, request: int) -> None:
        """A request has its last token: what it said may help the next."""
        ...


class Acceptance(Protocol):
    """A model of acceptance; frozen, `open` makes the state of one lane."""

    kind: ClassVar[str]
    needs_drafter: ClassVar[str]  # "" = any

    def open(self, drafter: Drafter, longest: int, seed: int) -> Source: ...


Draw = Callable[[np.random.Generator, int], tuple[Runs, Runs | None]]


class Drawn:
    """A source whose requests are independent: one random stream each."""

    __slots__ = ("_draw", "_longest", "_match", "_seed", "has_limits")

    def __init__(
        self, draw: Draw, drafter: Drafter, longest: int, seed: int, has_limits: bool = False
    ) -> None:
        self._draw = draw
        self._seed = seed
        self._match = drafter.match
        self._longest = longest
        self.has_limits = has_limits or drafter.match < 1.0

    def outcomes(self, request: int, num_tokens: int) -> tuple[Runs, Runs | None]:
        runs, limits = self._draw(np.random.default_rng([self._seed, STREAM, request]), num_tokens)
        if self._match < 1.0:
            rng = np.random.default_rng([self._seed, MATCHES, request])
            found = rng.random(num_tokens) < self._match
            matched = np.where(found, np.int8(self._longest), np.int8(0))
            limits = matched if limits is None else np.minimum(limits, matched)
        return runs, limits

    def finished(self, request: int) -> None:
        return None


def run_lengths(hits: Bools, num_tokens: int, longest: int) -> Runs:
    """Consecutive hits from each of the first positions on, at most `longest`."""
    size = len(hits)
    index = np.arange(size)
    next_miss = np.minimum.accumulate(np.where(hits, size, index)[::-1])[::-1]
    runs: Runs = np.minimum(next_miss - index, longest)[:num_tokens].astype(np.int8)
    return runs


def check_share(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise ConfigError(f"speculation.acceptance.{name}: expected a number 0 to 1 (got {value})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometric:
    """Every drafted token is accepted with the same probability, independently."""

    kind: ClassVar[str] = "geometric"
    needs_drafter: ClassVar[str] = ""
    rate: float = 0.7  # of a draft's most likely token

    def __post_init__(self) -> None:
        check_share("rate", self.rate)

    def open(self, drafter: Drafter, longest: int, seed: int) -> Source:
        hit = drafter.hit_rate(self.rate)

        def draw(rng: np.random.Generator, num_tokens: int) -> tuple[Runs, None]:
            hits = rng.random(num_tokens + longest) < hit
            return run_lengths(hits, num_tokens, longest), None

        return Drawn(draw, drafter, longest, seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beta:
    """Each request has its own rate, and luck that lasts: easy and hard stretches of text.

    Rate of a request ~ Beta(mean * concentration, (1 - mean) * concentration). Within a request a
    token is accepted where a stationary Gaussian AR(1) series of this autocorrelation lies below
    the rate's quantile, so that the marginal probability is exactly the rate.
    """

    kind: ClassVar[str] = "beta"
    needs_drafter: ClassVar[str] = ""
    mean: float = 0.7
    concentration: float = 10.0  # 0 = every request accepts all or nothing; large = all alike
    autocorrelation: float = 0.0  # of neighbouring tokens' luck

    def __post_init__(self) -> None:
        check_share("mean", self.mean)
        if not self.concentration > 0:
            raise ConfigError(
                f"speculation.acceptance.concentration: expected a number > 0 "
                f"(got {self.concentration})"
            )
        if not 0.0 <= self.autocorrelation < 1.0:
            raise ConfigError(
                "speculation.acceptance.autocorrelation: expected a number from 0 to below 1 "
                f"(got {self.autocorrelation})"
            )

    def open(self, drafter: Drafter, longest: int, seed: int) -> Source:
        quantile = NormalDist().inv_cdf

        def draw(rng: np.random.Generator, num_tokens: int) -> tuple[Runs, None]:
            rate = self.mean
            if 0.0 < self.mean < 1.0:
                weight = self.concentration
                rate = float(rng.beta(self.mean * weight, (1.0 - self.mean) * weight))
            hit = min(max(drafter.hit_rate(rate), 1e-12), 1.0 - 1e-12)
            luck = ar1(rng.standard_normal(num_tokens + longest), self.autocorrelation)
            return run_lengths(luck < quantile(hit), num_tokens, longest), None

        return Drawn(draw, drafter, longest, seed)


def ar1(noise: Floats, correlation: float) -> Floats:
    """Stationary unit-variance AR(1) series z[t] = r z[t-1] + sqrt(1 - r^2) noise[t]."""
    if correlation == 0.0:
        return noise
    from scipy.signal import lfilter

    scale = (1.0 - correlation * correlation) ** 0.5
    start = correlation * noise[0]  # z[0] = noise[0]
    rest, _ = lfilter([scale], [1.0, -correlation], noise[1:], zi=np.array([start]))
    series: Floats = np.concatenate((noise[:1], rest))
    return series


@dataclass(frozen=True, slots=True, kw_only=True)
class PerPosition:
    """The probability depends on how far ahead a token is drafted, as measured by vLLM's metrics.

    `rates[j]` is the chance that token j of a draft is accepted given that all before it were.
    """

    kind: ClassVar[str] = "per_position"
    needs_drafter: ClassVar[str] = ""
    rates: tuple[float, ...] = (0.75, 0.65, 0.6, 0.55)

    def __post_init__(self) -> None:
        if not self.rates:
            raise ConfigError("speculation.acceptance.rates: expected at least one number (got [])")
        for rate in self.rates:
            check_share("rates", rate)

    def open(self, drafter: Drafter, longest: int, seed: int) -> Source:
        hits = [drafter.hit_rate(rate) for rate in self.rates]
        hits += [hits[-1]] * max(0, longest - len(hits))  # deeper ones are as the last stated

        def draw(rng: np.random.Generator, num_tokens: int) -> tuple[Runs, None]:
            luck = rng.random(num_tokens + longest)
            runs = np.zeros(num_tokens, dtype=np.int8)
            alive = np.ones(num_tokens, dtype=np.bool_)
            for depth in range(longest):
                alive &= luck[depth : depth + num_tokens] < hits[depth]
                runs += alive
            return runs, None

        return Drawn(draw, drafter, longest, seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Confidence:
    """The drafter knows how sure it is: each token has a confidence, and is accepted that often.

    Confidences ~ Beta(mean * concentration, (1 - mean) * concentration), independent a token, and
    calibrated. A drafter with a threshold stops before the first token below it (Kangaroo).
    """

    kind: ClassVar[str] = "confidence"
    needs_drafter: ClassVar[str] = ""
    mean: float = 0.7
    concentration: float = 1.5  # small = nearly sure or nearly lost, as language models are

    def __post_init__(self) -> None:
        if not 0.0 < self.mean < 1.0 or not self.concentration > 0.0:
            raise ConfigError(
                "speculation.acceptance: expected a mean between 0 and 1 and a concentration > 0 "
                f"(got {self.mean} and {self.concentration})"
            )

    def open(self, drafter: Drafter, longest: int, seed: int) -> Source:
        a, b = self.mean * self.concentration, (1.0 - self.mean) * self.concentration
        threshold = drafter.threshold

        def draw(rng: np.random.Generator, num_tokens: int) -> tuple[Runs, Runs | None]:
            sure = rng.beta(a, b, num_tokens + longest)
            hits = rng.random(num_tokens + longest) < sure
            runs = run_lengths(hits, num_tokens, longest)
            limits = run_lengths(sure >= threshold, num_tokens, longest) if threshold else None
            return runs, limits

        return Drawn(draw, drafter, longest, seed, has_limits=threshold > 0.0)
