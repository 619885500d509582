"""Units: text with a unit in, SI base numbers out. The only float-to-nanosecond conversion.

Python holds SI base units everywhere (`_s`, `_bytes`, `_flops`, `_per_s`); the engine clock alone
is an int of nanoseconds. k/M/G/T are decimal, Ki/Mi/Gi/Ti binary.
"""

from __future__ import annotations

import math
import re

from simulator.errors import ConfigError

_SCALES: dict[str, float] = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_SCALES |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_PREFIX = "Ki|Mi|Gi|Ti|k|K|M|G|T|P|"
_NUMBER = r"([+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?)"

# dimension -> (regex of the unit with an optional scale group, example for error messages)
_TIME = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}
_EXAMPLES = {
    "time": "200 ms",
    "bytes": "80 GB",
    "bytes/s": "3.35 TB/s",
    "flop/s": "989 TFLOP/s",
    "rate": "12 /s",
    "power": "700 W",
}
_UNIT_PATTERNS = {
    "bytes": rf"({_PREFIX})B",
    "bytes/s": rf"({_PREFIX})B/s",
    "flop/s": rf"({_PREFIX})(?:FLOP|OP)/s",
    "rate": r"()(?:req)?/s",
    "power": rf"({_PREFIX})W",
}


def parse(text: object, dimension: str, *, key: str) -> float:
    """Number in SI base units of `text` such as "80 GB"; `key` names the culprit in errors.

    Raises:
        ConfigError: no unit, wrong unit, NaN, infinity or a negative value.
    """
    expected = f"expected {dimension} with a unit, such as '{_EXAMPLES[dimension]}'"
    match = re.fullmatch(rf"\s*{_NUMBER}\s*(\S+)\s*", text) if isinstance(text, str) else None
    if match is None:
        raise ConfigError(f"{key}: {expected} (got {text!r})")
    scale = _unit_scale(match[2], dimension)
    if scale is None:
        raise ConfigError(f"{key}: {expected} (got {text!r})")
    value = float(match[1]) * scale
    if not math.isfinite(value) or value < 0:
        raise ConfigError(f"{key}: must be finite and >= 0 (got {text!r})")
    return value


def _unit_scale(unit: str, dimension: str) -> float | None:
    if dimension == "time":
        return _TIME.get(unit)
    match = re.fullmatch(_UNIT_PATTERNS[dimension], unit)
    return None if match is None else _SCALES[match[1]]


def to_ns(seconds: float) -> int:
    """Nearest integer nanosecond of a time in seconds."""
    return round(seconds * 1e9)


def show_time(seconds: float) -> str:
    """Three significant digits with the unit people read: '812 µs', '12.3 ms', '4.56 s'."""
    if math.isnan(seconds):
        return "–"
    for limit, scale, unit in ((1e-6, 1e9, "ns"), (1e-3, 1e6, "µs"), (1.0, 1e3, "ms")):
        if abs(seconds) < limit:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds:.3g} s" if abs(seconds) < 1000 else f"{seconds:,.0f} s"


def show_count(value: float) -> str:
    """Decimal scale for people: '12.3k', '4.56M', '671B'."""
    for scale, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.3g}"


def show_bytes(value: float) -> str:
    """Decimal bytes for people: '141 GB'."""
    for scale, suffix in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if abs(value) >= scale:
            return f"{value / scale:.3g} {suffix}"
    return f"{value:.0f} B"
