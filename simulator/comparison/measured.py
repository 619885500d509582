"""Measured results beside simulations: the one place that turns a file into a column of metrics.

A result is one run of a real server, or one that was saved. It shares no random numbers with a
simulation, so nothing pairs with it and no interval comes from it: it is compared by its values.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from simulator.comparison.metrics import picked
from simulator.errors import ConfigError

SUFFIXES = (".json", ".jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One result as a column of a comparison."""

    name: str
    metrics: dict[str, float | None]  # by the keys of METRICS; None = not stated


def is_result(path: str) -> bool:
    """True of a file that is read as a result; experiments are YAML."""
    return Path(path).suffix in SUFFIXES


def read_measured(path: str) -> Measured:
    """The metrics that a result of `vllm bench serve`, or of `--save-result`, states.

    Raises:
        ConfigError: no such file, or not such a result.
    """
    try:
        result = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None
    found = picked(result) if isinstance(result, dict) else {}
    if found.get("mean_ttft_ms") is None:
        raise ConfigError(
            f"{path}: expected an experiment (.yaml) or a result of `vllm bench serve` "
            "(no mean_ttft_ms)"
        )
    return Measured(name=Path(path).stem, metrics=found)
