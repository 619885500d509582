"""One measured run: a row of a runs.csv, read cell by cell so that each complaint names its column.

The columns are those of the collection of measured vLLM runs Headway is validated against; times
in ms, rates in requests/s, token counts in tokens. An empty cell is "not known".
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from simulator.errors import ConfigError

METRICS = ("ttft", "tpot", "itl", "e2e")
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
LOAD_LEVELS = ("low", "medium", "high", "saturated")
REQUIRED = (
    "run_id", "model_hf", "gpu", "tp", "engine", "engine_version", "arrival_kind",
    "input_len_kind", "output_len_kind", "num_requests",
)  # fmt: skip
UNKNOWN = ("", "default", "model default", "unknown", "nan", "none")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a runs.csv."""

    cells: Mapping[str, str]

    @property
    def run_id(self) -> str:
        return self.cells["run_id"]

    def text(self, name: str, default: str = "") -> str:
        """A cell without its surrounding blanks; `default` where it is empty or missing."""
        return (self.cells.get(name) or "").strip() or default

    def number(self, name: str) -> float | None:
        """A number >= 0; a remark after it, as in "131072 (model default)", is not read."""
        text = self.text(name)
        if text.lower() in UNKNOWN:
            return None
        head = text.split("(")[0].strip() or text
        if head.lower() in UNKNOWN:
            return None
        try:
            value = float(head)
        except ValueError:
            raise ConfigError(f"{name}: expected a number (got {text!r})") from None
        if not value >= 0:
            raise ConfigError(f"{name}: expected a number >= 0 (got {text!r})")
        return value

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number.

        Raises:
            ConfigError: not one, or missing without a default.
        """
        value = self.number(name)
        if value is None:
            if default is None:
                raise ConfigError(f"{name}: expected a whole number (got nothing)")
            return default
        if value != int(value):
            raise ConfigError(f"{name}: expected a whole number (got {self.text(name)!r})")
        return int(value)

    def flag(self, name: str) -> bool | None:
        """True or false from the first word of the cell; None where it says neither."""
        word = (self.text(name).lower().replace(";", " ").split() or [""])[0]
        if word in ("true", "on", "yes", "1"):
            return True
        return False if word in ("false", "off", "no", "0") else None

    def measured(self) -> dict[str, float]:
        """Latencies in ms, output tokens/s and KV blocks, as far as they are known."""
        found = {}
        for metric in METRICS:
            for statistic in STATISTICS:
                value = self.number(f"{metric}_{statistic}_ms")
                if value is not None and value > 0:
                    found[f"{metric}_{statistic}"] = value
        throughput = self.number("output_tok_s")
        if throughput:
            found["output_throughput"] = throughput
        blocks = self.number("kv_blocks_gpu")
        if blocks:
            found["kv_blocks"] = blocks
        return found


def read_rows(path: str | Path) -> list[Row]:
    """Every row of a runs.csv.

    Raises:
        ConfigError: not readable, a column missing, or two runs of one name.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file (UTF-8)") from None
    reader = csv.DictReader(io.StringIO(text))
    columns = reader.fieldnames or []
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise ConfigError(f"{path}: columns missing: {', '.join(missing)}")
    rows = [Row({k: v for k, v in cells.items() if k is not None}) for cells in reader]
    if not rows:
        raise ConfigError(f"{path}: no rows")
    seen: set[str] = set()
    for line, row in enumerate(rows, start=2):
        if not row.text("run_id"):
            raise ConfigError(f"{path}: line {line}: run_id: expected a name (got nothing)")
        if row.run_id in seen:
            raise ConfigError(f"{path}: line {line}: run_id: {row.run_id!r} is there twice")
        seen.add(row.run_id)
    return rows
