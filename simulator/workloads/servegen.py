"""ServeGen client tables: each client's arrivals by window, its lengths by quantile.

A window holds exactly the number of requests its recorded rate says (times `rate_scale`); gaps
follow the recorded law, scaled to fill the window. Clients without length rows take those of
another client, drawn in proportion to the rates of that window (arXiv 2505.09999 has no joint
law of input and output, so the two are independent given the client).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simulator.errors import ConfigError
from simulator.request import Ints, RequestTable
from simulator.workloads.checks import (
    MAX_REQUESTS,
    MAX_TOKENS,
    Floats,
    check_bool,
    check_number,
    shown,
    stream,
    to_ns_column,
)
from simulator.workloads.reading import Columns, read_csv

RATE_WINDOW_S = 600
LENGTH_WINDOW_S = 21_600
_RATE_COLUMNS = ("client", "window_start_s", "rate_rps", "cv", "family", "shape", "scale_s")
_PERCENTILES = (1, 5, 10, 20, 30, 40, 50, 60, 70, 80, 90, 95, 99, 99.9)
_QUANTILE_COLUMNS = tuple(f"p{p:g}" for p in _PERCENTILES)
_FIELDS = ("input_tokens", "output_tokens")

# (client, length window) -> quantiles of input and of output
QuantileTable = dict[tuple[int, int], tuple[Floats, Floats]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeGen:
    """Requests of all clients between start_s and start_s + duration_s of the recorded day."""

    rates: str | Path
    lengths: str | Path
    start_s: float = 0.0
    duration_s: float = 600.0
    rate_scale: float = 1.0
    skip_bad_lines: bool = False

    def __post_init__(self) -> None:
        check_number("workload.start_s", self.start_s)
        check_number("workload.duration_s", self.duration_s, above=True)
        check_number("workload.rate_scale", self.rate_scale, above=True)
        check_bool("workload.skip_bad_lines", self.skip_bad_lines)

    def requests(self, seed: int) -> RequestTable:
        """Time 0 is start_s; every client and window has streams of its own."""
        windows = _read_windows(self.rates, self.skip_bad_lines)
        end_s = self.start_s + self.duration_s
        active = (windows.start_s + RATE_WINDOW_S > self.start_s) & (windows.start_s < end_s)
        chosen = np.flatnonzero(active).tolist()
        expected = float(windows.rates[active].sum()) * RATE_WINDOW_S * self.rate_scale
        if expected > MAX_REQUESTS:
            raise ConfigError(
                f"workload.rate_scale gives {expected:.3g} requests; use a shorter span"
            )
        quantiles, notes = _read_quantiles(self.lengths, self.skip_bad_lines)
        times: list[Floats] = []
        prompts: list[Ints] = []
        outputs: list[Ints] = []
        clients: list[Ints] = []
        for row in chosen:
            arrivals = windows.arrivals_s(row, self.rate_scale, seed)
            donors = _donors(windows, quantiles, row)
            client, start = int(windows.clients[row]), int(windows.start_s[row])
            rng = stream(seed, "workload.servegen.lengths", client, start)
            prompt_tokens, output_tokens = _draw_lengths(rng, donors, len(arrivals))
            inside = (arrivals >= self.start_s) & (arrivals < end_s)
            times.append(arrivals[inside] - self.start_s)
            prompts.append(prompt_tokens[inside])
            outputs.append(output_tokens[inside])
            clients.append(np.full(int(inside.sum()), client, dtype=np.int64))
        if not sum(map(len, times)):
            raise ConfigError(f"{windows.name}: no arrivals from {self.start_s:g} s to {end_s:g} s")
        arrival_ns = to_ns_column(np.concatenate(times), "arrival")
        order = np.argsort(arrival_ns, kind="stable")
        return RequestTable(
            arrival_ns=arrival_ns[order],
            prompt_tokens=np.concatenate(prompts)[order],
            output_tokens=np.concatenate(outputs)[order],
            client=np.concatenate(clients)[order],
            name=windows.name,
            notes=(*windows.notes, *notes),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Windows:
    """The rates table."""

    name: str
    clients: Ints
    start_s: Ints
    rates: Floats  # requests/s
    families: Sequence[str]
    shapes: Floats
    notes: tuple[str, ...]

    def arrivals_s(self, row: int, rate_scale: float, seed: int) -> Floats:
        """Arrivals of one client in one window."""
        start = int(self.start_s[row])
        rng = stream(seed, "workload.servegen.arrivals", int(self.clients[row]), start)
        count = int(self.rates[row] * RATE_WINDOW_S * rate_scale + rng.random())
        draw = rng.standard_gamma if self.families[row] == "Gamma" else rng.weibull
        elapsed = np.cumsum(draw(float(self.shapes[row]), count + 1))
        if not elapsed[-1] > 0:
            return np.full(count, float(start))
        arrivals: Floats = start + elapsed[:-1] / elapsed[-1] * RATE_WINDOW_S
        return arrivals


def _read_windows(file: str | Path, skip: bool) -> _Windows:
    columns = read_csv(file, _RATE_COLUMNS, skip_bad_lines=skip)
    clients = columns.ints("client", low=0)
    start_s = columns.ints("window_start_s", low=0)
    rates = columns.seconds("rate_rps")
    shapes = columns.seconds("shape")
    families = [family.strip() for family in columns.cells["family"]]
    for row, family in enumerate(families):
        if family not in ("Gamma", "Weibull"):
            reason = f"family must be Gamma or Weibull (got {shown(family)})"
            columns.bad.refuse(columns.lines[row], reason)
        if not shapes[row] > 0:
            columns.bad.refuse(columns.lines[row], f"shape must be > 0 (got {shapes[row]:g})")
    notes = columns.bad.finish()
    keep = np.flatnonzero(columns.keep())
    return _Windows(
        name=columns.path.name,
        clients=clients[keep],
        start_s=start_s[keep],
        rates=rates[keep],
        families=[families[row] for row in keep.tolist()],
        shapes=shapes[keep],
        notes=notes,
    )


def _read_quantiles(file: str | Path, skip: bool) -> tuple[QuantileTable, tuple[str, ...]]:
    required = ("client", "window_start_s", "field", *_QUANTILE_COLUMNS)
    columns = read_csv(file, required, skip_bad_lines=skip)
    clients = columns.ints("client", low=0)
    starts = columns.ints("window_start_s", low=0)
    quantiles = _quantile_rows(columns)
    notes = columns.bad.finish()
    halves: dict[tuple[int, int, str], Floats] = {}
    for row in np.flatnonzero(columns.keep()).tolist():
        field = columns.cells["field"][row].strip()
        halves[int(clients[row]), int(starts[row]), field] = quantiles[row]
    table: QuantileTable = {}
    for client, start, field in halves:
        both = [halves.get((client, start, name)) for name in _FIELDS]
        if field == _FIELDS[0] and both[0] is not None and both[1] is not None:
            table[client, start] = (both[0], both[1])
    if not table:
        raise ConfigError(f"{columns.path.name}: no client has both input and output quantiles")
    return table, notes


def _quantile_rows(columns: Columns) -> Floats:
    quantiles = np.stack([columns.seconds(name) for name in _QUANTILE_COLUMNS], axis=1)
    falling = (np.diff(quantiles, axis=1) < 0).any(axis=1) | (quantiles[:, -1] > MAX_TOKENS)
    for row, field in enumerate(columns.cells["field"]):
        if field.strip() not in _FIELDS:
            reason = f"field must be one of {', '.join(_FIELDS)} (got {shown(field)})"
            columns.bad.refuse(columns.lines[row], reason)
        elif falling[row]:
            reason = f"quantiles must not decrease nor exceed {MAX_TOKENS}"
            columns.bad.refuse(columns.lines[row], reason)
    return quantiles


def _donors(
    windows: _Windows, quantiles: QuantileTable, row: int
) -> list[tuple[float, tuple[Floats, Floats]]]:
    """Weight and quantiles of whoever lends lengths to the client of `row`: itself, or the pool."""
    start = int(windows.start_s[row])
    own = quantiles.get((int(windows.clients[row]), start - start % LENGTH_WINDOW_S))
    if own is not None:
        return [(1.0, own)]
    pool = []
    for other in np.flatnonzero(windows.start_s == start).tolist():
        lent = quantiles.get((int(windows.clients[other]), start - start % LENGTH_WINDOW_S))
        if lent is not None:
            pool.append((float(windows.rates[other]), lent))
    return pool or [(1.0, lent) for lent in quantiles.values()]


def _draw_lengths(
    rng: np.random.Generator, donors: list[tuple[float, tuple[Floats, Floats]]], count: int
) -> tuple[Ints, Ints]:
    """Inverse interpolation of the quantiles; flat beyond the outermost."""
    weights = np.cumsum([weight for weight, _ in donors])
    draws = rng.random((count, 3))
    donor = np.searchsorted(weights, draws[:, 0] * weights[-1], side="right")
    donor = np.minimum(donor, len(donors) - 1)
    lengths = np.empty((2, count), dtype=np.int64)
    levels = np.array(_PERCENTILES) / 100
    for index, (_, both) in enumerate(donors):
        mine = donor == index
        for side in range(2):
            tokens = np.interp(draws[mine, 1 + side], levels, both[side])
            lengths[side, mine] = np.maximum(1, np.rint(tokens))
    return lengths[0], lengths[1]
