"""A row a request as it ends: a trace of what came, with the times it was simulated to have.

The file is a workload (`simulator.workloads.table`): simulated offline, it gives the same times.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from simulator.errors import ConfigError
from simulator.live.ticket import Ticket

COLUMNS = (
    *("arrival_s", "input_tokens", "output_tokens", "priority"),
    *("ttft_s", "tpot_s", "e2e_s", "preemptions", "ended"),
)


@contextmanager
def recording(path: str | None) -> Iterator[Record | None]:
    """A record in a CSV file, open as long as the context; what has ended is on disk.

    Raises:
        ConfigError: another suffix, or the file cannot be written.
    """
    if path is None:
        yield None
        return
    if Path(path).suffix != ".csv":
        raise ConfigError(f"--requests-out: expected a .csv file (got {path!r})")
    try:
        file = open(path, "w", buffering=1, encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise ConfigError(f"--requests-out: cannot write {path!r} ({error.strerror})") from None
    with file:
        yield Record(file)


class Record:
    """Rows of requests, in the order in which they end."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        file.write(",".join(COLUMNS) + "\n")

    def add(self, ticket: Ticket, reason: str) -> None:
        """A request has ended: `reason` is stop, length or abort. Of an abort, what was given."""
        first = last = per_token = ""
        if ticket.first_ns >= 0:
            first = _seconds(ticket.first_ns - ticket.sent_ns)
        if ticket.finish_ns >= 0:
            last = _seconds(ticket.finish_ns - ticket.sent_ns)
            if ticket.given > 1:
                per_token = _seconds((ticket.finish_ns - ticket.first_ns) / (ticket.given - 1))
        lengths = (ticket.prompt_tokens, max(1, ticket.given), ticket.priority)
        cells = (_seconds(ticket.sent_ns), *lengths, first, per_token, last)
        row = (*cells, ticket.preemptions, reason)
        self._file.write(",".join(map(str, row)) + "\n")


def _seconds(ns: float) -> str:
    return f"{ns / 1e9:.9f}"
