"""Acceptance as it was recorded: a file of how many drafted tokens each verification accepted."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ConfigError
from simulator.speculation.acceptance import Drawn, Runs, Source
from simulator.speculation.drafters import Drafter

Ints = NDArray[np.int64]
START = crc32(b"speculation.recorded")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A CSV with a column `accepted`, one row a verification in order: each request replays it.

    A request starts at a row drawn for it and goes round. Accepting n of the recorded drafts means
    n hits and a miss, so drafts longer than the longest recorded run cannot be asked for.
    """

    kind: ClassVar[str] = "recorded"
    needs_drafter: ClassVar[str] = ""
    file: Path

    def open(self, drafter: Drafter, longest: int, seed: int, lengths: Ints) -> Source:
        accepted = read_profile(str(self.file))
        most = int(accepted.max())
        if longest > most:
            raise ConfigError(
                f"speculation.num_speculative_tokens: expected an int up to {most}, the longest "
                f"run recorded in {self.file} (got {longest})"
            )
        # Runs by position: n, n - 1, ..., 0 for each recorded n.
        counts = accepted + 1
        ends = np.cumsum(counts)
        by_position = np.repeat(ends, counts) - np.arange(int(ends[-1])) - 1
        starts = ends - counts

        def draw(rng: np.random.Generator, lengths: Ints) -> tuple[Runs, None]:
            first = starts[rng.integers(len(starts), size=len(lengths))] - 1  # 1 is drafted first
            begin = np.cumsum(lengths) - lengths
            within = np.arange(int(lengths.sum())) - np.repeat(begin, lengths)
            rows = (np.repeat(first, lengths) + within) % len(by_position)
            return np.minimum(by_position[rows], longest).astype(np.int8), None

        return Drawn(draw, drafter, longest, seed, lengths)


@lru_cache(maxsize=16)
def read_profile(path: str) -> Ints:
    """The `accepted` column of a CSV file.

    Raises:
        ConfigError: no such file or column, no row, or a value that is not an int >= 0.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if "accepted" not in (reader.fieldnames or ()):
                raise ConfigError(
                    f"{path}: expected a CSV file with a column 'accepted' "
                    f"(got {', '.join(reader.fieldnames or ()) or 'nothing'})"
                )
            values = [(reader.line_num, row["accepted"]) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{path}: cannot read the file ({reason})") from None
    for line, text in values:
        if not (text or "").strip().isdecimal():
            raise ConfigError(f"{path}:{line}: accepted: expected an int >= 0 (got {text!r})")
    accepted = np.array([int(text) for _, text in values], dtype=np.int64)
    if len(accepted) == 0 or int(accepted.max()) == 0:
        raise ConfigError(f"{path}: expected at least one row that accepts a token")
    return accepted
