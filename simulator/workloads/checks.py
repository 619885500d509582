"""Checks shared by the workloads: option values, named random streams, the clock in columns.

Every refusal is a ConfigError naming the key, what was expected and what was given.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ConfigError, unknown_name
from simulator.request import Ints
from simulator.units import parse

Floats = NDArray[np.float64]

MAX_TOKENS = 10**9  # of one request; a larger count is a broken trace
MAX_REQUESTS = 10**8
MAX_SECONDS = 9e9  # int64 nanoseconds end at 9.22e9 s


def stream(seed: int, name: str, *indices: int) -> np.random.Generator:
    """Random numbers of one named consumer: a new name never shifts an old one's draws."""
    check_int("seed", seed, low=0, high=2**63)
    return np.random.default_rng([seed, crc32(name.encode()), *indices])


def to_ns_column(seconds: Floats, key: str) -> Ints:
    """`units.to_ns` of a column.

    Raises:
        ConfigError: a time outside the engine clock's range.
    """
    if len(seconds) and not float(np.abs(seconds).max()) <= MAX_SECONDS:
        raise ConfigError(f"{key} must stay below {MAX_SECONDS:.0e} s (got {seconds.max():.3g} s)")
    return np.rint(seconds * 1e9).astype(np.int64)


def shown(value: object) -> str:
    """`repr`, shortened so that an error stays one line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def check_int(key: str, value: object, *, low: int, high: int = MAX_TOKENS) -> None:
    """Refuse anything but an int in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"{key} must be an int >= {low} (got {shown(value)})")
    if value > high:
        raise ConfigError(f"{key} must be an int <= {high} (got {shown(value)})")


def check_number(
    key: str,
    value: object,
    *,
    low: float = 0.0,
    above: bool = False,
    high: float = math.inf,
    allow_inf: bool = False,
) -> None:
    """Refuse anything but a number in [low, high], or (low, high] with `above`."""
    sign = ">" if above else ">="
    expected = f"{key} must be a {'' if allow_inf else 'finite '}number {sign} {low:g}"
    if math.isfinite(high):
        expected += f" and <= {high:g}"
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise ConfigError(f"{expected} (got {shown(value)})")
    if math.isinf(value) and not (allow_inf and value > 0):
        raise ConfigError(f"{expected} (got {shown(value)})")
    if value < low or (above and value == low) or value > high:
        raise ConfigError(f"{expected} (got {shown(value)})")


def check_bool(key: str, value: object) -> None:
    """Refuse anything but true and false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{key} must be true or false (got {shown(value)})")


def check_choice(key: str, value: object, known: Iterable[str]) -> str:
    """`value` where it is one of `known`; else an error that suggests the nearest."""
    names = list(known)
    if not isinstance(value, str):
        raise ConfigError(f"{key} must be one of {', '.join(names)} (got {shown(value)})")
    if value not in names:
        raise unknown_name(key, value, names)
    return value


def check_keys(key: str, value: object, known: Iterable[str]) -> dict[str, object]:
    """`value` as a dict where it is a mapping of known keys only."""
    names = list(known)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key} must be a mapping (got {shown(value)})")
    for name in value:
        if name not in names:
            raise unknown_name(f"{key} key", str(name), names)
    return {str(name): item for name, item in value.items()}


def rate_per_s(key: str, value: object, *, bare: bool = False) -> float:
    """Requests per second of text such as "12 /s", of "inf" and, with `bare`, of numbers."""
    if value == "inf":
        return math.inf
    if isinstance(value, str):
        rate = parse(value, "rate", key=key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not bare and not math.isinf(value):
            parse(value, "rate", key=key)
        rate = float(value)
    else:
        rate = parse(value, "rate", key=key)
    if not rate > 0:
        raise ConfigError(f"{key} must be > 0 (got {shown(value)})")
    return rate
