"""Distributions of token counts, written in YAML as an int or as `{kind: uniform, low: 1, ...}`.

Every draw is an int in [low, high]; kinds that are continuous are rounded, then clipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Protocol

import numpy as np

from simulator.errors import ConfigError
from simulator.request import Ints
from simulator.workloads.checks import (
    MAX_TOKENS,
    Floats,
    check_choice,
    check_int,
    check_keys,
    check_number,
    shown,
)

LengthSpec = int | Mapping[str, object]
MAX_ZIPF_VALUES = 10**7  # its table is one entry a value


class Lengths(Protocol):
    """A distribution of token counts."""

    def draw(self, rng: np.random.Generator, count: int) -> Ints: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """Always `value`."""

    value: int

    def __post_init__(self) -> None:
        check_int("value", self.value, low=0)

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        return np.full(count, self.value, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """Every int in [low, high] alike."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _check_bounds(self.low, self.high)

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        return rng.integers(self.low, self.high + 1, size=count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Normal:
    """Normal, clipped."""

    mean: float
    std: float
    low: int = 1
    high: int = MAX_TOKENS

    def __post_init__(self) -> None:
        check_number("mean", self.mean)
        check_number("std", self.std)
        _check_bounds(self.low, self.high)

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        return _clip(rng.normal(self.mean, self.std, count), self.low, self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogNormal:
    """Log-normal, clipped: `median` tokens, `sigma` of the natural logarithm."""

    median: float
    sigma: float
    low: int = 1
    high: int = MAX_TOKENS

    def __post_init__(self) -> None:
        check_number("median", self.median, above=True)
        check_number("sigma", self.sigma, high=20)
        _check_bounds(self.low, self.high)

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        return _clip(rng.lognormal(math.log(self.median), self.sigma, count), self.low, self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exponential:
    """Exponential, clipped; the mean is that before clipping."""

    mean: float
    low: int = 1
    high: int = MAX_TOKENS

    def __post_init__(self) -> None:
        check_number("mean", self.mean, above=True)
        _check_bounds(self.low, self.high)

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        return _clip(rng.exponential(self.mean, count), self.low, self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pareto:
    """Pareto truncated to [low, high], tail index `alpha`; drawn by inversion."""

    low: int
    alpha: float
    high: int = MAX_TOKENS

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, above=True)
        _check_bounds(self.low, self.high, least=1)

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        tail = (self.low / self.high) ** self.alpha
        values = self.low * (1 - rng.random(count) * (1 - tail)) ** (-1 / self.alpha)
        return _clip(values, self.low, self.high)


@dataclass(frozen=True, slots=True, kw_only=True)
class Zipf:
    """P(k) proportional to k**-theta on the ints in [low, high]."""

    theta: float
    low: int
    high: int

    def __post_init__(self) -> None:
        check_number("theta", self.theta)
        _check_bounds(self.low, self.high, least=1)
        check_int("high - low", self.high - self.low, low=0, high=MAX_ZIPF_VALUES)

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        weights = (np.arange(self.low, self.high + 1) / self.low) ** -self.theta
        return self.low + _pick(rng, weights, count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Empirical:
    """One of `values`, each as likely as its weight (equal where none are given)."""

    values: Sequence[int]
    weights: Sequence[float] = ()

    def __post_init__(self) -> None:
        _check_list("values", self.values)
        for value in self.values:
            check_int("values", value, low=0)
        if self.weights:
            _check_list("weights", self.weights, length=len(self.values))
            for weight in self.weights:
                check_number("weights", weight)
            check_number("the sum of weights", float(sum(self.weights)), above=True)

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        weights = np.array(self.weights or [1.0] * len(self.values), dtype=np.float64)
        return np.array(self.values, dtype=np.int64)[_pick(rng, weights, count)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantiles:
    """Linear interpolation of `tokens` at probabilities `p`; flat beyond the outermost."""

    p: Sequence[float]
    tokens: Sequence[float]

    def __post_init__(self) -> None:
        _check_list("p", self.p)
        _check_list("tokens", self.tokens, length=len(self.p))
        for probability, tokens in zip(self.p, self.tokens, strict=True):
            check_number("p", probability, high=1)
            check_number("tokens", tokens, high=MAX_TOKENS)
        for name, values in (("p", self.p), ("tokens", self.tokens)):
            if list(values) != sorted(values):
                raise ConfigError(f"{name} must not decrease (got {shown(list(values))})")

    def draw(self, rng: np.random.Generator, count: int) -> Ints:
        return _clip(np.interp(rng.random(count), self.p, self.tokens), 1, MAX_TOKENS)


LENGTHS: dict[str, type[Lengths]] = {
    "constant": Constant,
    "uniform": Uniform,
    "normal": Normal,
    "lognormal": LogNormal,
    "exponential": Exponential,
    "pareto": Pareto,
    "zipf": Zipf,
    "empirical": Empirical,
    "quantiles": Quantiles,
}


def parse_lengths(key: str, value: LengthSpec) -> Lengths:
    """The distribution written as `value`.

    Raises:
        ConfigError: neither an int >= 0 nor a mapping with a known kind and its keys.
    """
    if isinstance(value, int) and not isinstance(value, bool):
        check_int(key, value, low=0)
        return Constant(value=value)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} must be an int >= 0 or {{kind: ...}} (got {shown(value)})")
    kind = check_choice(f"{key}.kind", value.get("kind"), LENGTHS)
    chosen = LENGTHS[kind]
    known = {item.name: item for item in fields(chosen)}  # type: ignore[arg-type]
    options = check_keys(key, value, ["kind", *known])
    del options["kind"]
    for name, item in known.items():
        if item.default is MISSING and name not in options:
            raise ConfigError(f"{key}: kind '{kind}' needs the key '{name}'")
    try:
        return chosen(**options)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None


def _check_bounds(low: int, high: int, least: int = 0) -> None:
    check_int("low", low, low=least)
    check_int("high", high, low=low)


def _check_list(name: str, values: object, length: int = 0) -> None:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ConfigError(f"{name} must be a list that is not empty (got {shown(values)})")
    if length and len(values) != length:
        raise ConfigError(f"{name} must have {length} entries (got {len(values)})")


def _clip(values: Floats, low: int, high: int) -> Ints:
    return np.rint(np.clip(values, low, high)).astype(np.int64)


def _pick(rng: np.random.Generator, weights: Floats, count: int) -> Ints:
    cumulative = np.cumsum(weights)
    picked = np.searchsorted(cumulative, rng.random(count) * cumulative[-1], side="right")
    clipped: Ints = np.minimum(picked, len(weights) - 1)
    return clipped
