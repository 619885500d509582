"""JSON-lines traces with prefix block ids: Mooncake and vLLM's timed_trace."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simulator.errors import ConfigError
from simulator.request import Ints, RequestTable
from simulator.workloads.assemble import trace_table
from simulator.workloads.bundled import resolve
from simulator.workloads.checks import (
    MAX_TOKENS,
    Floats,
    check_bool,
    check_int,
    check_number,
    shown,
    stream,
    to_ns_column,
)
from simulator.workloads.prefixes import Blocks, offsets_of
from simulator.workloads.reading import BadLines, decode_lines, read_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Mooncake:
    """Mooncake trace: timestamp in ms, one hash id for each 512 tokens of prompt."""

    file: str | Path
    spread_ticks: bool = True  # spread requests with one timestamp uniformly until the next
    hash_block_tokens: int = 512
    skip_bad_lines: bool = False

    def __post_init__(self) -> None:
        check_bool("workload.spread_ticks", self.spread_ticks)
        check_int("workload.hash_block_tokens", self.hash_block_tokens, low=1)
        check_bool("workload.skip_bad_lines", self.skip_bad_lines)

    def requests(self, seed: int) -> RequestTable:
        """The trace; `seed` places the requests that share a timestamp."""
        labels = ("timestamp", "input_length", "output_length", "hash_ids")
        rows = _read(self.file, labels, self.hash_block_tokens, self.skip_bad_lines)
        seconds = _since_first(rows.times, 1e-3)
        notes = rows.notes
        if self.spread_ticks:
            order = np.argsort(seconds, kind="stable")
            spread, shared = _spread(seconds[order], stream(seed, "workload.ticks"))
            seconds[order] = spread
            if shared:
                notes = (*notes, f"{shared} requests sharing a timestamp spread until the next")
        return rows.table(seconds, self.hash_block_tokens, notes)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedTrace:
    """The JSON lines of `vllm bench serve --dataset-name timed_trace`, with its options."""

    file: str | Path
    sec_multiplier: float = 1.0  # seconds in one unit of the timestamp
    chunk_hash_size: int = 16  # tokens for each hash id
    label_timestamp: str = "timestamp"
    label_input_length: str = "input_length"
    label_output_length: str = "output_length"
    label_hash_ids: str = "hash_ids"
    skip_bad_lines: bool = False

    def __post_init__(self) -> None:
        check_number("workload.sec_multiplier", self.sec_multiplier, above=True)
        check_int("workload.chunk_hash_size", self.chunk_hash_size, low=1)
        check_bool("workload.skip_bad_lines", self.skip_bad_lines)

    def requests(self, seed: int) -> RequestTable:
        """The trace; nothing is drawn, so `seed` has no effect."""
        labels = (
            self.label_timestamp,
            self.label_input_length,
            self.label_output_length,
            self.label_hash_ids,
        )
        rows = _read(self.file, labels, self.chunk_hash_size, self.skip_bad_lines)
        seconds = _since_first(rows.times, self.sec_multiplier)
        return rows.table(seconds, self.chunk_hash_size, rows.notes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rows:
    """Accepted lines."""

    path: Path
    times: list[float]  # in the file's unit
    prompt_tokens: Ints
    output_tokens: Ints
    blocks: Blocks | None
    notes: tuple[str, ...]

    def table(self, seconds: Floats, block_tokens: int, notes: tuple[str, ...]) -> RequestTable:
        """The requests at `seconds`."""
        return trace_table(
            name=self.path.name,
            arrival_ns=to_ns_column(seconds, f"{self.path.name}: timestamp"),
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            keep=np.ones(len(seconds), dtype=np.bool_),
            notes=notes,
            blocks=self.blocks,
            block_tokens=block_tokens,
        )


def _read(file: str | Path, labels: tuple[str, ...], block_tokens: int, skip: bool) -> _Rows:
    path = resolve(file)
    lines = decode_lines(path, read_bytes(path))
    bad = BadLines(path, skip=skip)
    times: list[float] = []
    lengths: list[tuple[int, int]] = []
    ids: list[int] = []
    counts: list[int] = []
    has_ids: bool | None = None  # decided by the first good line
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = _record(line, labels, block_tokens, has_ids)
        except ValueError as error:
            bad.refuse(number, str(error))
            continue
        time, prompt_tokens, output_tokens, hash_ids = record
        has_ids = hash_ids is not None
        times.append(time)
        lengths.append((prompt_tokens, output_tokens))
        ids.extend(hash_ids or ())
        counts.append(len(hash_ids or ()))
    notes = bad.finish()
    if not times:
        raise ConfigError(f"{path}: no requests left; {'; '.join(notes) or 'no lines'}")
    both = np.array(lengths, dtype=np.int64)
    offsets = offsets_of(np.array(counts, dtype=np.int64))
    blocks = Blocks(np.array(ids, dtype=np.int64), offsets) if has_ids else None
    return _Rows(
        path=path,
        times=times,
        prompt_tokens=both[:, 0],
        output_tokens=both[:, 1],
        blocks=blocks,
        notes=notes,
    )


def _record(
    line: str, labels: tuple[str, ...], block_tokens: int, has_ids: bool | None
) -> tuple[float, int, int, list[int] | None]:
    """Time, lengths and ids of one line; ValueError says what is wrong with it."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ValueError(f"must be a JSON object (got {shown(line)})")
    time_label, input_label, output_label, ids_label = labels
    time = record.get(time_label)
    if isinstance(time, bool) or not isinstance(time, int | float) or not 0 <= time < math.inf:
        raise ValueError(f"{time_label} must be a finite number >= 0 (got {shown(time)})")
    for label in (input_label, output_label):
        tokens = record.get(label)
        if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 1:
            raise ValueError(f"{label} must be an int >= 1 (got {shown(tokens)})")
        if tokens > MAX_TOKENS:
            raise ValueError(f"{label} must be an int <= {MAX_TOKENS} (got {shown(tokens)})")
    prompt_tokens, output_tokens = record[input_label], record[output_label]
    hash_ids = record.get(ids_label)
    if has_ids is not None and has_ids != (hash_ids is not None):
        raise ValueError(f"{ids_label} must be in every line or in none")
    if hash_ids is not None:
        check_hash_ids(ids_label, hash_ids, prompt_tokens, output_tokens, block_tokens)
    return time, prompt_tokens, output_tokens, hash_ids


def check_hash_ids(
    label: str, hash_ids: object, prompt_tokens: int, output_tokens: int, block_tokens: int
) -> None:
    """ValueError unless `hash_ids` are ints covering the prompt and at most the output."""
    if not isinstance(hash_ids, list) or not all(type(value) is int for value in hash_ids):
        raise ValueError(f"{label} must be a list of ints (got {shown(hash_ids)})")
    if hash_ids and not -(2**63) <= min(hash_ids) <= max(hash_ids) < 2**63:
        raise ValueError(f"{label} must be 64-bit ints (got {shown(hash_ids)})")
    needed = -(-prompt_tokens // block_tokens)
    if not needed <= len(hash_ids) <= -(-(prompt_tokens + output_tokens) // block_tokens):
        raise ValueError(
            f"{label} must hold {needed} ids, one for each {block_tokens} of "
            f"{prompt_tokens} prompt tokens (got {len(hash_ids)})"
        )


def _since_first(times: list[float], unit_s: float) -> Floats:
    """Seconds since the earliest time; subtracted first, as nanosecond epochs overflow a float."""
    first = min(times)
    return np.array([(time - first) * unit_s for time in times], dtype=np.float64)


def _spread(seconds: Floats, rng: np.random.Generator) -> tuple[Floats, int]:
    """Sorted times with those that coincide spread until the next, and how many those are.

    The last tick is taken to be as wide as the one before it.
    """
    ticks, counts = np.unique(seconds, return_counts=True)
    offsets = rng.random(len(seconds))  # one draw for each request, shared tick or not
    shared = counts > 1
    if len(ticks) < 2 or not shared.any():
        return seconds, 0
    widths = np.diff(ticks, append=2 * ticks[-1] - ticks[-2])
    member = np.repeat(shared, counts)
    spread = np.where(member, seconds + offsets * np.repeat(widths, counts), seconds)
    return np.sort(spread), int(counts[shared].sum())
