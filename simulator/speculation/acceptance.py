"""Acceptance models: how many drafted tokens the target accepts, drawn before they are needed.

Outcomes belong to positions of a request's output, not to iterations: `runs[p]` is how many
drafted tokens are accepted where a draft's first token stands at position p (0 is the prompt's
own first token, never drafted). Whatever the schedule, the batch or the draft length, the same
request then meets the same luck, so policies are compared on common random numbers.
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
Ints = NDArray[np.int64]
Runs = NDArray[np.int8]

STREAM = crc32(b"speculation.acceptance")
MATCHES = crc32(b"speculation.matches")
BLOCK = 128  # requests drawn at once
KEPT = 16  # blocks: those of requests that run together, mostly


class Source(Protocol):
    """The outcomes of one lane's requests."""

    has_limits: bool

    def outcomes(self, request: int) -> tuple[Runs, Runs | None]:
        """By output position: tokens accepted, and most tokens proposed (None = no limit)."""
        ...

    def finished(self, request: int) -> None:
        """A request has its last token: what it said may help the next."""
        ...


class Acceptance(Protocol):
    """A model of acceptance; frozen, `open` makes the state of one lane."""

    kind: ClassVar[str]
    needs_drafter: ClassVar[str]  # "" = any

    def open(self, drafter: Drafter, longest: int, seed: int, lengths: Ints) -> Source:
        """`longest`: tokens of a draft; `lengths`: [requests] output tokens."""
        ...


Draw = Callable[[np.random.Generator, Ints], tuple[Runs, Runs | None]]


class Drawn:
    """A source whose outcomes are drawn ahead, for a block of requests at once.

    `draw(rng, lengths)` gives the outcomes of all positions of requests of these lengths, one after
    another; every block has its own random stream, so who asks first changes nothing.
    """

    __slots__ = ("_blocks", "_draw", "_lengths", "_longest", "_match", "_seed", "has_limits")

    def __init__(
        self,
        draw: Draw,
        drafter: Drafter,
        longest: int,
        seed: int,
        lengths: Ints,
        has_limits: bool = False,
    ) -> None:
        self._draw = draw
        self._seed = seed
        self._match = drafter.match
        self._longest = longest
        self._lengths = lengths
        self._blocks: dict[int, tuple[Runs, Runs | None, list[int]]] = {}
        self.has_limits = has_limits or drafter.match < 1.0

    def outcomes(self, request: int) -> tuple[Runs, Runs | None]:
        number, within = divmod(request, BLOCK)
        block = self._blocks.get(number)
        if block is None:
            if len(self._blocks) == KEPT:
                del self._blocks[next(iter(self._blocks))]
            block = self._blocks[number] = self._make(number)
        runs, limits, edges = block
        first, last = edges[within], edges[within + 1]
        return runs[first:last], None if limits is None else limits[first:last]

    def _make(self, number: int) -> tuple[Runs, Runs | None, list[int]]:
        lengths = self._lengths[number * BLOCK : (number + 1) * BLOCK]
        edges = np.concatenate(([0], np.cumsum(lengths)))
        runs, limits = self._draw(np.random.default_rng([self._seed, STREAM, number]), lengths)
        if self._match < 1.0:
            rng = np.random.default_rng([self._seed, MATCHES, number])
            found = rng.random(len(runs)) < self._match
            matched = np.where(found, np.int8(self._longest), np.int8(0))
            limits = matched if limits is None else np.minimum(limits, matched)
        return runs, limits, edges.tolist()

    def finished(self, request: int) -> None:
        return None


def run_lengths(hits: Bools, longest: int) -> Runs:
    """Consecutive hits from each position on, at most `longest`; of all but the last `longest`."""
    size = len(hits)
    index = np.arange(size)
    next_miss = np.minimum.accumulate(np.where(hits, size, index)[::-1])[::-1]
    runs: Runs = np.minimum(next_miss - index, longest)[: size - longest].astype(np.int8)
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

    def open(self, drafter: Drafter, longest: int, seed: int, lengths: Ints) -> Source:
        hit = drafter.hit_rate(self.rate)

        def draw(rng: np.random.Generator, lengths: Ints) -> tuple[Runs, None]:
            hits = rng.random(int(lengths.sum()) + longest) < hit
            return run_lengths(hits, longest), None

        return Drawn(draw, drafter, longest, seed, lengths)


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

    def open(self, drafter: Drafter, longest: int, seed: int, lengths: Ints) -> Source:
        def draw(rng: np.random.Generator, lengths: Ints) -> tuple[Runs, None]:
            rates = np.full(len(lengths), self.mean)
            if 0.0 < self.mean < 1.0:
                weight = self.concentration
                rates = rng.beta(self.mean * weight, (1.0 - self.mean) * weight, len(lengths))
            quantile = NormalDist().inv_cdf
            hits = (min(max(drafter.hit_rate(x), 1e-12), 1.0 - 1e-12) for x in rates.tolist())
            bounds = np.repeat([quantile(hit) for hit in hits], lengths)
            bounds = np.append(bounds, np.full(longest, bounds[-1]))
            # One series through all requests of the block: what follows a request's end is hardly
            # ever looked at, and the next one has its own rate.
            luck = ar1(rng.standard_normal(len(bounds)), self.autocorrelation)
            return run_lengths(luck < bounds, longest), None

        return Drawn(draw, drafter, longest, seed, lengths)


def ar1(noise: Floats, correlation: float) -> Floats:
    """Stationary unit-variance AR(1) series z[t] = r z[t-1] + sqrt(1 - r^2) noise[t].

    By doubling: 1 + rL + r^2 L^2 + ... = (1 + rL)(1 + r^2 L^2)(1 + r^4 L^4)..., L the lag.
    """
    series: Floats = noise * (1.0 - correlation * correlation) ** 0.5
    series[0] = noise[0]
    lag, weight = 1, correlation
    while weight > 1e-17 and lag < len(series):
        series[lag:] = series[lag:] + weight * series[:-lag]
        lag, weight = 2 * lag, weight * weight
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

    def open(self, drafter: Drafter, longest: int, seed: int, lengths: Ints) -> Source:
        hits = [drafter.hit_rate(rate) for rate in self.rates]
        hits += [hits[-1]] * max(0, longest - len(hits))  # deeper ones are as the last stated

        def draw(rng: np.random.Generator, lengths: Ints) -> tuple[Runs, None]:
            num_tokens = int(lengths.sum())
            luck = rng.random(num_tokens + longest)
            runs = np.zeros(num_tokens, dtype=np.int8)
            alive = np.ones(num_tokens, dtype=np.bool_)
            for depth in range(longest):
                alive &= luck[depth : depth + num_tokens] < hits[depth]
                runs += alive
            return runs, None

        return Drawn(draw, drafter, longest, seed, lengths)


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

    def open(self, drafter: Drafter, longest: int, seed: int, lengths: Ints) -> Source:
        a, b = self.mean * self.concentration, (1.0 - self.mean) * self.concentration
        threshold = drafter.threshold

        def draw(rng: np.random.Generator, lengths: Ints) -> tuple[Runs, Runs | None]:
            sure = rng.beta(a, b, int(lengths.sum()) + longest)
            hits = rng.random(len(sure)) < sure
            limits = run_lengths(sure >= threshold, longest) if threshold else None
            return run_lengths(hits, longest), limits

        return Drawn(draw, drafter, longest, seed, lengths, has_limits=threshold > 0.0)
