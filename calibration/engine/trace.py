"""Arrivals and lengths to replay, drawn or from a CSV of arrival_s, input_tokens, output_tokens.

Any workload file of the end-to-end collection has these columns, and so has the one a run writes.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
COLUMNS = ("arrival_s", "input_tokens", "output_tokens")


class CannotServe(ValueError):
    """Input that cannot be served, in one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in arrival order; every column is [num_requests]."""

    name: str
    arrival_ns: Ints
    input_tokens: Ints
    output_tokens: Ints

    def __len__(self) -> int:
        return len(self.arrival_ns)

    @property
    def longest(self) -> int:
        """Most tokens of one request."""
        return int((self.input_tokens + self.output_tokens).max())

    def first(self, num: int) -> Trace:
        """The first `num` requests."""
        return replace(
            self,
            arrival_ns=self.arrival_ns[:num],
            input_tokens=self.input_tokens[:num],
            output_tokens=self.output_tokens[:num],
        )

    def before(self, seconds: float) -> Trace:
        """The requests that arrive before that; at least one."""
        return self.first(max(1, int(np.searchsorted(self.arrival_ns, seconds * 1e9))))

    def at_rate(self, rate_per_s: float) -> Trace:
        """The same requests, the gaps scaled so that so many arrive a second on average."""
        span_s = float(self.arrival_ns[-1]) / 1e9
        if span_s == 0:
            raise CannotServe(f"{self.name}: all requests arrive at once: no rate to scale")
        scale = len(self) / rate_per_s / span_s
        return replace(self, arrival_ns=np.rint(self.arrival_ns * scale).astype(np.int64))


def synthetic(num: int, rate_per_s: float, input_len: int, output_len: int, seed: int) -> Trace:
    """Poisson arrivals, the first at 0; lengths uniform between half and one and a half a mean."""
    rng = np.random.default_rng([seed, zlib.crc32(b"engine-check.trace")])
    gaps_s = rng.exponential(1 / rate_per_s, num)
    gaps_s[0] = 0.0
    lengths = [
        rng.integers(max(1, mean // 2), mean + mean // 2 + 1, num)
        for mean in (input_len, output_len)
    ]
    return Trace(
        name=f"synthetic-{num}x{input_len}-{output_len}-seed{seed}",
        arrival_ns=np.rint(np.cumsum(gaps_s) * 1e9).astype(np.int64),
        input_tokens=lengths[0],
        output_tokens=lengths[1],
    )


def read_trace(path: Path) -> Trace:
    """A trace from a CSV, plain or .gz; its first request arrives at 0.

    Raises:
        CannotServe: no file, no column, no row, or a value that no request has.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, UnicodeDecodeError, EOFError) as error:
        raise CannotServe(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    rows = list(csv.DictReader(io.StringIO(text)))
    if not rows:
        raise CannotServe(f"{path}: expected a header and at least one request")
    missing = [name for name in COLUMNS if name not in rows[0]]
    if missing:
        raise CannotServe(f"{path}: no column {missing[0]!r}, only {', '.join(map(str, rows[0]))}")
    columns = {name: _numbers(path, name, [row[name] for row in rows]) for name in COLUMNS}
    arrival_s = columns["arrival_s"] - columns["arrival_s"][0]
    if (np.diff(arrival_s) < 0).any():
        raise CannotServe(f"{path}: arrival_s must not decrease")
    for name in COLUMNS[1:]:
        if (columns[name] < 1).any():
            raise CannotServe(f"{path}: {name} must be >= 1 in every row")
    return Trace(
        name=path.name.removesuffix(".gz").removesuffix(".csv"),
        arrival_ns=np.rint(arrival_s * 1e9).astype(np.int64),
        input_tokens=columns["input_tokens"].astype(np.int64),
        output_tokens=columns["output_tokens"].astype(np.int64),
    )


def _numbers(path: Path, name: str, cells: list[str]) -> NDArray[np.float64]:
    for number, cell in enumerate(cells, 2):
        try:
            if np.isfinite(float(cell)):
                continue
        except (TypeError, ValueError):
            pass
        raise CannotServe(f"{path}:{number}: {name}: expected a number (got {cell!r})")
    return np.array(cells, dtype=np.float64)
