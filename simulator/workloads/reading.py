"""Trace files as text: opening, decompressing, refusing lines by number, typed columns.

A refused line is reported as `trace.csv:17: GeneratedTokens must be an int >= 1 (got 'abc')`.
Strict readers raise at the end of the file with the first such line and the count of the others;
`skip_bad_lines` turns them into a note.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ConfigError
from simulator.request import Ints
from simulator.workloads.bundled import resolve
from simulator.workloads.checks import MAX_SECONDS, MAX_TOKENS, Floats, shown

GZIP_MAGIC = b"\x1f\x8b"


def read_bytes(path: Path, limit: int = -1) -> bytes:
    """Contents of `path`, decompressed where it is gzip; at most `limit` bytes where that is >= 0.

    Raises:
        ConfigError: missing, not a regular file, unreadable, damaged gzip, or empty.
    """
    if path.is_dir():
        raise ConfigError(f"{path}: is a directory; expected a trace file")
    if not path.is_file():
        raise ConfigError(f"{path}: is not a regular file")
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == GZIP_MAGIC
            raw.seek(0)
            data = gzip.GzipFile(fileobj=raw).read(limit) if packed else raw.read(limit)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ConfigError(f"{path}: damaged or truncated gzip file ({error})") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    if not data.strip():
        raise ConfigError(f"{path}: is empty; expected a trace")
    return data


def decode_lines(path: Path, data: bytes) -> list[str]:
    """Lines of UTF-8 text, with or without a byte-order mark, with any line ends."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: is not UTF-8 text ({error.reason})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


class BadLines:
    """Refused lines of one file; the first reason of each line is kept."""

    __slots__ = ("path", "reasons", "skip", "unit")

    def __init__(self, path: Path, *, skip: bool, unit: str = "line") -> None:
        self.path = path
        self.skip = skip
        self.unit = unit
        self.reasons: dict[int, str] = {}

    def refuse(self, line: int, reason: str) -> None:
        """Refuse `line`."""
        self.reasons.setdefault(line, reason)

    def finish(self) -> tuple[str, ...]:
        """Notes about skipped lines.

        Raises:
            ConfigError: a line was refused and lines are not to be skipped.
        """
        if not self.reasons:
            return ()
        line = min(self.reasons)
        others = len(self.reasons) - 1
        first = f"{self.path.name}:{line}: {self.reasons[line]}"
        if self.skip:
            return (f"{others + 1} bad {self.unit}(s) skipped, the first: {first}",)
        more = f"; {others} further bad {self.unit}(s)" if others else ""
        raise ConfigError(f"{first}{more} (skip_bad_lines: true leaves them out)")


class Columns:
    """Typed columns of a CSV file; refused rows hold a placeholder until `keep` drops them."""

    __slots__ = ("bad", "cells", "lines", "path")

    def __init__(
        self, path: Path, cells: dict[str, Sequence[str]], lines: Sequence[int], bad: BadLines
    ) -> None:
        self.path = path
        self.cells = cells
        self.lines = lines
        self.bad = bad

    def ints(self, key: str, *, low: int = 1, high: int = MAX_TOKENS) -> Ints:
        """Column of ints in [low, high]."""
        cells = self.cells[key]
        expected = f"{key} must be an int >= {low}"
        try:
            values = np.array(list(map(_strict_int, cells)), dtype=np.int64)
        except (ValueError, OverflowError):
            slow = [
                min(max(value, -1), 2**62)
                for value in self._slow(key, cells, _strict_int, expected)
            ]
            values = np.array(slow, dtype=np.int64)
        return check_range(values, key, low, high, self.lines, self.bad, cells)

    def seconds(self, key: str) -> Floats:
        """Column of finite times >= 0."""
        cells = self.cells[key]
        expected = f"{key} must be a finite number of seconds >= 0"
        try:
            values = np.array(list(map(float, cells)))
        except ValueError:
            values = np.array(self._slow(key, cells, float, expected), dtype=np.float64)
        refused = ~((values >= 0) & (values <= MAX_SECONDS))
        for row in np.flatnonzero(refused).tolist():
            self.bad.refuse(self.lines[row], f"{expected} (got {shown(cells[row])})")
        return np.where(refused, 0.0, values)

    def labels(self, key: str) -> Ints:
        """Column of ids: ints as they are, any other text numbered by first appearance."""
        return number_labels(self.cells[key])

    def keep(self) -> NDArray[np.bool_]:
        """Which rows no column refused."""
        refused = self.bad.reasons
        if not refused:
            return np.ones(len(self.lines), dtype=np.bool_)
        return np.array([line not in refused for line in self.lines], dtype=np.bool_)

    def _slow(
        self, key: str, cells: Sequence[str], convert: Callable[[str], float], expected: str
    ) -> list[float]:
        """One value at a time, so that each that fails is named; 1 stands in for it."""
        values: list[float] = []
        for row, cell in enumerate(cells):
            try:
                values.append(convert(cell))
            except ValueError:
                self.bad.refuse(self.lines[row], f"{expected} (got {shown(cell)})")
                values.append(1)
        return values


def number_labels(cells: Sequence[object]) -> Ints:
    """Ids of `cells`: ints as they are, anything else numbered by first appearance."""
    try:
        return np.array([int(str(cell)) for cell in cells], dtype=np.int64)
    except (ValueError, OverflowError):
        numbers: dict[object, int] = {}
        return np.array([numbers.setdefault(cell, len(numbers)) for cell in cells], dtype=np.int64)


def check_range(
    values: Ints,
    key: str,
    low: int,
    high: int,
    lines: Sequence[int],
    bad: BadLines,
    cells: Sequence[object],
) -> Ints:
    """`values` with every row outside [low, high] refused and replaced by `low`."""
    if not len(values) or (int(values.min()) >= low and int(values.max()) <= high):
        return values
    for row in np.flatnonzero((values < low) | (values > high)).tolist():
        bound = f"must be an int >= {low}" if values[row] < low else f"must be an int <= {high}"
        bad.refuse(lines[row], f"{key} {bound} (got {shown(cells[row])})")
    return np.clip(values, low, high)


def _strict_int(cell: str) -> int:
    if "_" in cell:
        raise ValueError(cell)
    return int(cell)


def read_csv(file: str | Path, required: Iterable[str], *, skip_bad_lines: bool) -> Columns:
    """Columns of a CSV file with a header line; names are matched without regard to case."""
    path = resolve(file)
    numbers, widths, cells = _split(path, decode_lines(path, read_bytes(path)))
    width = widths[0]
    header = _header(path, cells[:width], numbers[0], list(required))
    bad = BadLines(path, skip=skip_bad_lines)
    if widths.count(width) < len(widths):
        starts = [0, *accumulate(widths)]
        for number, found in zip(numbers, widths, strict=True):
            if found != width:
                bad.refuse(number, f"expected {width} columns (got {found})")
        good = [row for row, found in enumerate(widths) if found == width]
        cells = [cell for row in good for cell in cells[starts[row] : starts[row + 1]]]
        numbers = [numbers[row] for row in good]
    if len(numbers) == 1:
        bad.finish()
        raise ConfigError(f"{path}: the trace has a header but no requests")
    columns: dict[str, Sequence[str]] = {
        name: cells[width + place :: width] for place, name in enumerate(header)
    }
    return Columns(path, columns, numbers[1:], bad)


def _header(path: Path, cells: list[str], line: int, required: list[str]) -> list[str]:
    """Column names, those required in their usual spelling."""
    found = [cell.strip() for cell in cells]
    lowered = [name.lower() for name in found]
    missing = [name for name in required if name.lower() not in lowered]
    if missing:
        raise ConfigError(f"{path.name}:{line}: no column {', '.join(missing)} in {shown(found)}")
    if len(set(lowered)) != len(lowered):
        raise ConfigError(f"{path.name}:{line}: a column name appears twice in {shown(found)}")
    spelling = {name.lower(): name for name in required}
    return [spelling.get(name.lower(), name) for name in found]


def _split(path: Path, lines: list[str]) -> tuple[list[int], list[int], list[str]]:
    """Number and width of every line that is not blank, and all their cells end to end.

    One flat list instead of a list a line: 1M lines of three columns take 1.1 s, not 4.1.
    """
    if not any('"' in line for line in lines):
        numbers = [number for number, line in enumerate(lines, start=1) if line.strip()]
        kept = [line for line in lines if line.strip()]
        return numbers, [line.count(",") + 1 for line in kept], ",".join(kept).split(",")
    reader = csv.reader(io.StringIO("\n".join(lines)), strict=True)
    rows: list[list[str]] = []
    numbers = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
                numbers.append(reader.line_num)
    except csv.Error as error:
        raise ConfigError(f"{path.name}:{reader.line_num}: is not CSV ({error})") from None
    return numbers, [len(row) for row in rows], [cell for row in rows for cell in row]
