"""Headway's own trace format: a plain CSV or Parquet table, one request a row."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import ConfigError
from simulator.request import Ints, RequestTable
from simulator.workloads.assemble import trace_table
from simulator.workloads.bundled import resolve
from simulator.workloads.checks import check_bool, check_int, to_ns_column
from simulator.workloads.jsonl import check_hash_ids
from simulator.workloads.prefixes import Blocks, offsets_of
from simulator.workloads.reading import BadLines, Columns, read_csv
from simulator.workloads.transform import MOST_SAMPLES

_REQUIRED = ("arrival_s", "input_tokens", "output_tokens")
_OPTIONAL = ("client", "session", "priority", "n", "hash_ids")
_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Columns arrival_s, input_tokens, output_tokens[, client, session, priority, n, hash_ids].

    n answers are sampled from a prompt, each output_tokens long. hash_ids are ints separated by
    spaces or semicolons in CSV, a list column in Parquet. Rows of one session are its turns; they
    keep the arrival times given.
    """

    file: str | Path
    hash_block_tokens: int = 16
    skip_bad_lines: bool = False

    def __post_init__(self) -> None:
        check_int("workload.hash_block_tokens", self.hash_block_tokens, low=1)
        check_bool("workload.skip_bad_lines", self.skip_bad_lines)

    def requests(self, seed: int) -> RequestTable:
        """The trace; nothing is drawn, so `seed` has no effect."""
        columns = _open(self.file, self.skip_bad_lines)
        seconds = columns.seconds("arrival_s")
        prompt_tokens = columns.ints("input_tokens")
        output_tokens = columns.ints("output_tokens")
        present = [name for name in _OPTIONAL if name in columns.cells]
        labels: dict[str, Ints] = {}
        for name in ("client", "session"):
            if name in present:
                labels[name] = columns.labels(name)
        if "priority" in present:
            labels["priority"] = columns.ints("priority", low=-(2**31), high=2**31)
        if "n" in present:
            labels["n"] = columns.ints("n", low=1, high=MOST_SAMPLES)
        blocks = None
        if "hash_ids" in present:
            lengths = zip(prompt_tokens.tolist(), output_tokens.tolist(), strict=True)
            blocks = _hash_ids(columns, list(lengths), self.hash_block_tokens)
        ignored = [name for name in columns.cells if name not in (*_REQUIRED, *_OPTIONAL)]
        notes = columns.bad.finish()
        if ignored:
            notes = (*notes, f"columns not used: {', '.join(ignored)}")
        return trace_table(
            name=columns.path.name,
            arrival_ns=to_ns_column(seconds, "arrival_s"),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            keep=columns.keep(),
            notes=notes,
            labels=labels,
            blocks=blocks,
            block_tokens=self.hash_block_tokens,
        )


def is_parquet(path: Path) -> bool:
    """Whether the file begins as Parquet does."""
    try:
        with path.open("rb") as file:
            return file.read(4) == _PARQUET_MAGIC
    except OSError:
        return False  # the reader says why


def _open(file: str | Path, skip: bool) -> Columns:
    path = resolve(file)
    if not is_parquet(path):
        return read_csv(path, _REQUIRED, skip_bad_lines=skip)
    import pyarrow  # heavy, and only Parquet needs it
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{path}: is not a readable Parquet file ({reason})") from None
    missing = [name for name in _REQUIRED if name not in table.column_names]
    if missing:
        found = ", ".join(table.column_names)
        raise ConfigError(f"{path.name}: no column {', '.join(missing)} among {found}")
    if not table.num_rows:
        raise ConfigError(f"{path}: the trace has columns but no requests")
    cells: dict[str, Any] = {
        name: table.column(name).to_pylist()
        if name == "hash_ids"
        else [str(value) for value in table.column(name).to_pylist()]
        for name in table.column_names
    }
    rows = range(1, table.num_rows + 1)
    return Columns(path, cells, rows, BadLines(path, skip=skip, unit="row"))


def _hash_ids(columns: Columns, lengths: list[tuple[int, int]], block_tokens: int) -> Blocks:
    """Ids of every row; a refused row has none."""
    rows: list[list[int]] = []
    for row, cell in enumerate(columns.cells["hash_ids"]):
        ids: object = cell
        try:
            if isinstance(cell, str):
                ids = [int(word) for word in cell.replace(";", " ").split()]
            check_hash_ids("hash_ids", ids, *lengths[row], block_tokens)
        except ValueError as error:
            reason = str(error)
            if reason.startswith("invalid literal"):
                reason = f"hash_ids must be ints separated by spaces or semicolons (got {cell!r})"
            columns.bad.refuse(columns.lines[row], reason)
            ids = []
        rows.append(ids if isinstance(ids, list) else [])
    counts = np.array([len(ids) for ids in rows], dtype=np.int64)
    flat = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=int(counts.sum()))
    return Blocks(flat, offsets_of(counts))
