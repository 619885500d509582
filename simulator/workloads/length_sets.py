"""Recorded lengths without times, sent under a synthetic arrival process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from simulator.errors import ConfigError
from simulator.request import Ints, RequestTable
from simulator.workloads.arrivals import Arrivals, ArrivalSpec, parse_arrivals
from simulator.workloads.checks import (
    MAX_REQUESTS,
    check_bool,
    check_int,
    check_keys,
    check_number,
    stream,
    to_ns_column,
)
from simulator.workloads.reading import Columns, read_csv


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthSet:
    """Rows of a CSV with input_tokens and output_tokens, in random order."""

    file: str | Path
    arrivals: ArrivalSpec  # {process, rate, cv, profile, period_s}
    num_requests: int = 0  # 0 = as many as arrive within duration_s
    duration_s: float = 0.0  # 0 = as long as num_requests take
    where: Mapping[str, str] = field(default_factory=dict)  # column: value; other rows left out
    replacement: bool = True  # false = every row at most once
    max_concurrency: int = 0  # 0 = unlimited
    skip_bad_lines: bool = False

    def __post_init__(self) -> None:
        check_int("workload.num_requests", self.num_requests, low=0, high=MAX_REQUESTS)
        check_number("workload.duration_s", self.duration_s)
        check_int("workload.max_concurrency", self.max_concurrency, low=0)
        check_bool("workload.replacement", self.replacement)
        check_bool("workload.skip_bad_lines", self.skip_bad_lines)
        process = parse_arrivals("workload.arrivals", self.arrivals).process
        if not self.num_requests and (not self.duration_s or process == "burst"):
            raise ConfigError(
                "workload.num_requests must be an int >= 1 unless duration_s bounds them (got 0)"
            )

    def requests(self, seed: int) -> RequestTable:
        """Lengths and arrivals drawn from separate streams."""
        columns = read_csv(
            self.file, ("input_tokens", "output_tokens"), skip_bad_lines=self.skip_bad_lines
        )
        prompt_tokens = columns.ints("input_tokens")
        output_tokens = columns.ints("output_tokens")
        rows = self._rows(columns)
        arrivals: Arrivals = parse_arrivals("workload.arrivals", self.arrivals)
        times = arrivals.times_s(
            stream(seed, "workload.arrivals"),
            num_requests=self.num_requests,
            duration_s=self.duration_s,
        )
        drawn = self._draw(stream(seed, "workload.lengths"), rows, len(times), columns.path)
        return RequestTable(
            arrival_ns=to_ns_column(times, "arrival"),
            prompt_tokens=prompt_tokens[drawn],
            output_tokens=output_tokens[drawn],
            max_concurrency=self.max_concurrency,
            name=columns.path.name,
            notes=columns.bad.finish(),
        )

    def _rows(self, columns: Columns) -> Ints:
        """Rows that are good and meet `where`."""
        columns.bad.finish()
        keep = columns.keep()
        for name, value in check_keys("workload.where", self.where, columns.cells).items():
            cells = columns.cells[name]
            keep &= np.array([cell.strip() == str(value) for cell in cells], dtype=np.bool_)
        rows = np.flatnonzero(keep)
        if not len(rows):
            raise ConfigError(f"{columns.path.name}: no row where {dict(self.where)}")
        return rows

    def _draw(self, rng: np.random.Generator, rows: Ints, count: int, path: Path) -> Ints:
        if self.replacement:
            return rows[rng.integers(0, len(rows), size=count)]
        if count > len(rows):
            raise ConfigError(
                f"{path.name}: {count} requests need as many rows without replacement "
                f"(got {len(rows)})"
            )
        return rng.permutation(rows)[:count]
