"""Changes that make sense for every workload: a time window, another rate, the first requests."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from simulator.errors import ConfigError
from simulator.request import Beams, Ints, RequestTable
from simulator.units import to_ns
from simulator.workloads.checks import MAX_SECONDS, check_int, check_number, stream
from simulator.workloads.prefixes import Blocks


def transform(
    table: RequestTable,
    *,
    rate_scale: float = 1.0,
    start_s: float = 0.0,
    end_s: float = math.inf,
    max_requests: int = 0,
) -> RequestTable:
    """Requests of a window, at another rate, at most so many of them.

    Keeps arrivals in [start_s, end_s), re-based to start_s, then the first `max_requests` of them
    (0 = all), and divides their gaps by `rate_scale`. Think times of sessions are not scaled. A
    turn whose predecessor is cut becomes a first turn.

    Raises:
        ConfigError: an option out of range, or nothing left.
    """
    check_number("rate_scale", rate_scale, above=True)
    check_number("start_s", start_s, high=MAX_SECONDS)
    check_number("end_s", end_s, low=start_s, above=True, allow_inf=True)
    check_int("max_requests", max_requests, low=0)
    index = _inside(table, start_s, end_s)
    if max_requests:
        index = index[:max_requests]
    arrival_ns = table.arrival_ns[index] - to_ns(start_s)
    if rate_scale != 1.0:
        scaled = arrival_ns / rate_scale
        if not scaled[-1] <= MAX_SECONDS * 1e9:
            raise ConfigError(f"rate_scale must keep arrivals below {MAX_SECONDS:.0e} s")
        arrival_ns = np.rint(scaled).astype(np.int64)
    notes = list(table.notes)
    if start_s or end_s <= MAX_SECONDS:
        notes.append(f"window from {start_s:g} s to {end_s:g} s")
    if rate_scale != 1.0:
        notes.append(f"arrival rate times {rate_scale:g}")
    if 0 < max_requests == len(index):
        notes.append(f"first {max_requests} requests")
    return replace(_take(table, index), arrival_ns=arrival_ns, notes=tuple(notes))


SAMPLE_LENGTHS = ("equal", "drawn")
MOST_SAMPLES = 1024  # of one request


def sampled(
    table: RequestTable,
    seed: int,
    *,
    n: int = 1,
    lengths: str = "equal",
    beam_width: int = 0,
    beam_persistence: float = 0.0,
) -> RequestTable:
    """Every request answered `n` times, or by a search with so many beams; 1 and 0 change nothing.

    A table that states the answers of each request keeps them. `lengths`: the answers to a prompt
    are as long as the workload says, or the others as long as that of a request drawn from it.

    Raises:
        ConfigError: an option out of range, or several that exclude each other.
    """
    check_int("n", n, low=1, high=MOST_SAMPLES)
    check_int("beam_width", beam_width, low=0, high=MOST_SAMPLES)
    if lengths not in SAMPLE_LENGTHS:
        raise ConfigError(f"sample_lengths must be equal or drawn (got {lengths!r})")
    beams = Beams(persistence=beam_persistence, seed=seed)
    if beam_width > 1 and (n > 1 or lengths != "equal" or table.num_samples is not None):
        raise ConfigError("beam_width goes without n and sample_lengths: all beams are returned")
    if beam_persistence and beam_width < 2:
        raise ConfigError("beam_persistence needs a beam_width >= 2")
    if n > 1 and table.num_samples is not None:
        raise ConfigError(f"n is stated by {table.name} for each request")
    width = max(n, beam_width)
    counts = table.num_samples
    if width > 1:
        counts = np.full(len(table), width, dtype=np.int64)
    if counts is None or int(counts.max()) < 2:
        return replace(table, num_samples=None)
    if beam_width > 1:
        return replace(table, num_samples=counts, beams=beams)
    if lengths == "equal":
        return replace(table, num_samples=counts)
    first = np.cumsum(counts) - counts
    tokens = stream(seed, "workload.samples").choice(table.output_tokens, int(counts.sum()))
    tokens[first] = table.output_tokens
    longest = np.maximum.reduceat(tokens, first)
    return replace(table, num_samples=counts, sample_tokens=tokens, output_tokens=longest)


def _inside(table: RequestTable, start_s: float, end_s: float) -> Ints:
    """Requests that arrive in [start_s, end_s)."""
    inside = table.arrival_ns >= to_ns(start_s)
    if end_s <= MAX_SECONDS:
        inside &= table.arrival_ns < to_ns(end_s)
    index = np.flatnonzero(inside)
    if not len(index):
        raise ConfigError(
            f"{table.name}: no requests from {start_s:g} s to {end_s:g} s "
            f"(the last arrives at {table.arrival_ns[-1] / 1e9:g} s)"
        )
    return index


def _take(table: RequestTable, index: Ints) -> RequestTable:
    """The requests at `index`, an increasing selection."""
    if len(index) == len(table):
        return table
    parent = table.parent
    if parent is not None:
        place = np.full(len(table) + 1, -1, dtype=np.int64)  # the extra entry serves parent -1
        place[index] = np.arange(len(index))
        parent = place[parent[index]]
    blocks = None
    if table.hash_ids is not None and table.hash_offsets is not None:
        blocks = Blocks(table.hash_ids, table.hash_offsets).take(index)
    return replace(
        table,
        arrival_ns=table.arrival_ns[index],
        prompt_tokens=table.prompt_tokens[index],
        output_tokens=table.output_tokens[index],
        num_samples=_rows(table.num_samples, index),
        priority=_rows(table.priority, index),
        client=_rows(table.client, index),
        session=_rows(table.session, index),
        parent=parent,
        delay_ns=_rows(table.delay_ns, index),
        hash_ids=None if blocks is None else blocks.ids,
        hash_offsets=None if blocks is None else blocks.offsets,
    )


def _rows(column: Ints | None, index: Ints) -> Ints | None:
    return None if column is None else column[index]
