"""Public CSV traces in their original form: Azure 2023/2024 and BurstGPT."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simulator.request import Ints, RequestTable
from simulator.workloads.assemble import trace_table
from simulator.workloads.checks import check_bool, shown, to_ns_column
from simulator.workloads.reading import Columns, read_csv

_TIMESTAMP = re.compile(
    r"((?:19|20|21)\d\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d(?:\.\d{1,9})?)(?:Z|([+-])(\d\d):(\d\d))?"
)
_EPOCH = "1970-01-01 00:00:00"


@dataclass(frozen=True, slots=True, kw_only=True)
class Azure:
    """Azure LLM inference trace: TIMESTAMP, ContextTokens, GeneratedTokens."""

    file: str | Path
    skip_bad_lines: bool = False

    def __post_init__(self) -> None:
        check_bool("workload.skip_bad_lines", self.skip_bad_lines)

    def requests(self, seed: int) -> RequestTable:
        """The trace; nothing is drawn, so `seed` has no effect."""
        required = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
        columns = read_csv(self.file, required, skip_bad_lines=self.skip_bad_lines)
        arrival_ns = _timestamps_ns(columns, "TIMESTAMP")
        prompt_tokens = columns.ints("ContextTokens")
        output_tokens = columns.ints("GeneratedTokens")
        return trace_table(
            name=columns.path.name,
            arrival_ns=arrival_ns,
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            keep=columns.keep(),
            notes=columns.bad.finish(),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BurstGpt:
    """BurstGPT trace at its own times; rows without a response are failures and left out."""

    file: str | Path
    model: str = ""  # keep only this value of the Model column; "" = all
    skip_bad_lines: bool = False

    def __post_init__(self) -> None:
        check_bool("workload.skip_bad_lines", self.skip_bad_lines)

    def requests(self, seed: int) -> RequestTable:
        """The trace; nothing is drawn, so `seed` has no effect."""
        required = ("Timestamp", "Model", "Request tokens", "Response tokens")
        columns = read_csv(self.file, required, skip_bad_lines=self.skip_bad_lines)
        seconds = columns.seconds("Timestamp")
        prompt_tokens = columns.ints("Request tokens", low=0)
        output_tokens = columns.ints("Response tokens", low=0)
        answered = (output_tokens > 0) & (prompt_tokens > 0)
        wanted = np.ones(len(answered), dtype=np.bool_)
        models = columns.cells["Model"]
        if self.model:
            wanted = np.array([model.strip() == self.model for model in models], dtype=np.bool_)
        kept = columns.keep()
        notes = columns.bad.finish()
        failed = int((kept & wanted & ~answered).sum())
        if failed:
            notes = (*notes, f"{failed} failed request(s) without prompt or response left out")
        if self.model:
            others = int((kept & ~wanted).sum())
            notes = (*notes, f"{others} request(s) of models other than {self.model} left out")
        return trace_table(
            name=columns.path.name,
            arrival_ns=to_ns_column(seconds, "Timestamp"),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            keep=kept & wanted & answered,
            notes=notes,
        )


def _timestamps_ns(columns: Columns, key: str) -> Ints:
    """Nanoseconds since the epoch of calendar times, UTC offsets applied."""
    cells: Sequence[str] = columns.cells[key]
    matches = [_TIMESTAMP.fullmatch(cell.strip()) for cell in cells]
    texts = [_EPOCH if match is None else match[1] for match in matches]
    try:
        times = np.array(texts, dtype="datetime64[ns]")
    except ValueError:  # a calendar date that does not exist
        times = np.zeros(len(texts), dtype="datetime64[ns]")
        for row, text in enumerate(texts):
            try:
                times[row] = np.datetime64(text, "ns")
            except ValueError:
                matches[row] = None
    if None in matches:
        for row, match in enumerate(matches):
            if match is None:
                got = shown(cells[row])
                reason = f"{key} must be a time like 2023-11-16 18:15:46.6805900 (got {got})"
                columns.bad.refuse(columns.lines[row], reason)
    nanoseconds = times.astype(np.int64)
    if any(match is not None and match[2] is not None for match in matches):
        offsets = [
            0
            if match is None or match[2] is None
            else (1 if match[2] == "+" else -1) * (int(match[3]) * 60 + int(match[4]))
            for match in matches
        ]
        nanoseconds -= np.array(offsets, dtype=np.int64) * 60_000_000_000
    return nanoseconds
