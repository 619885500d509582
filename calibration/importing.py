"""What every importer of foreign measurements shares: reading their CSV, counting, the gate.

Nothing is dropped in silence. A row that none of our ops represents is counted with its reason, a
point measured again is merged into the median, a row no chip can produce is refused by the gate,
and times in another unit than the format's own are an error.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from calibration.columns import KERNEL, SCHEMAS, TIME
from calibration.gate import gate
from calibration.tables import FLOOR_S, LONGEST_S, PROVENANCE, SHORTEST_S, Tables, read_cells
from simulator.errors import ConfigError
from simulator.spec import GpuSpec

UNSTATED = "not stated in the files"
NO_OP = "none of our ops"


@dataclass(slots=True, kw_only=True)
class Intake:
    """Rows on their way in; `finish` makes them tables."""

    gpu: GpuSpec
    unit: str  # of the foreign format's times, for messages
    parts: dict[str, list[pd.DataFrame]] = field(default_factory=dict)  # by op
    left: dict[str, dict[str, int]] = field(default_factory=dict)  # what: reason: how many

    def take(self, op: str, table: pd.DataFrame) -> None:
        """Rows of an op with its columns; times in seconds."""
        if len(table):
            self.parts.setdefault(op, []).append(table[list(SCHEMAS[op].columns)])

    def leave(self, what: str, number: int, why: str = NO_OP, noun: str = "rows") -> None:
        """Count rows, or files or cases, that are not taken."""
        if number:
            reasons, reason = self.left.setdefault(what, {}), f"{noun}: {why}"
            reasons[reason] = reasons.get(reason, 0) + number

    def finish(self, where: Path, provenance: Mapping[str, str]) -> Tables:
        """The tables, through the gate; `provenance` as `PROVENANCE` less gpu and date.

        Raises:
            ConfigError: nothing is left, or the times are in another unit.
        """
        notes = {
            what: "; ".join(f"{number:,} {reason}" for reason, number in reasons.items())
            for what, reasons in self.left.items()
        }
        ops = {}
        for op in [op for op in SCHEMAS if op in self.parts]:
            table = clean(op, pd.concat(self.parts[op], ignore_index=True), notes)
            self._check_unit(op, table, where)
            ops[op] = gate(op, table, self.gpu, notes)
        kept = {op: table for op, table in ops.items() if len(table)}
        if not kept:
            reasons = "; ".join(f"{what}: {why}" for what, why in notes.items())
            raise ConfigError(f"{where}: nothing to calibrate with ({reasons or 'no rows'})")
        today = datetime.datetime.now(datetime.UTC).date().isoformat()
        stated = {"gpu": self.gpu.name, **provenance, "date": today}
        return Tables(provenance={key: stated[key] for key in PROVENANCE}, ops=kept, refused=notes)

    def _check_unit(self, op: str, table: pd.DataFrame, where: Path) -> None:
        times = table[TIME].to_numpy(dtype=np.float64)
        if not len(times):
            return
        fast, slow = float(np.median(times)), float(times.min())
        if fast < SHORTEST_S:
            said = f"half of them take under {fast:.2g} s"
        elif times.max() > LONGEST_S:
            said = f"one takes {times.max():.2g} s"
        elif slow > FLOOR_S and len(times) > 1:
            said = f"the fastest takes {slow:.2g} s"
        else:
            return
        raise ConfigError(
            f"{where}: {op}: the times of {len(times):,} points are not {self.unit}: {said}"
        )


def clean(op: str, table: pd.DataFrame, notes: dict[str, str]) -> pd.DataFrame:
    """The op's columns; points measured again count with their median."""
    schema = SCHEMAS[op]
    keys = [KERNEL, *schema.key]
    table = table.astype({TIME: np.float64})
    good = table[np.isfinite(table[TIME]) & (table[TIME] > 0)]
    if len(good) < len(table):
        notes[f"{op} times"] = f"{len(table) - len(good):,} rows: no time above 0"
    merged = good.groupby(keys, as_index=False, sort=False)[TIME].median()
    if len(merged) < len(good):
        notes[f"{op} repeats"] = f"{len(good) - len(merged)} rows: merged into their median"
    return pd.DataFrame(merged[list(schema.columns)])


def csv_files(path: Path) -> list[Path]:
    """A CSV file, or all in a folder and below it, in order.

    Raises:
        ConfigError: there are none.
    """
    if path.is_dir():
        found = sorted(path.rglob("*.csv"))
        if not found:
            raise ConfigError(f"{path}: expected a folder with CSV files (found none)")
        return found
    if not path.is_file():
        raise ConfigError(f"{path}: does not exist")
    return [path]


def read_foreign(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """Cells of a CSV as text, with at least these columns.

    Raises:
        ConfigError: not a CSV, a column missing, or cut short.
    """
    table = read_cells(path)
    missing = [column for column in columns if column not in table.columns]
    if missing:
        got = ", ".join(map(str, table.columns[:6]))
        raise ConfigError(f"{path}: no column '{missing[0]}' (got {got}, …)")
    if not len(table):
        raise ConfigError(f"{path}: no rows")
    with path.open("rb") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            raise ConfigError(f"{path}: cut short? its last line, {len(table) + 1}, has no end")
    return table
