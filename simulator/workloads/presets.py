"""Named workloads: templates of other kinds, each pinned to a published row of statistics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from simulator.errors import unknown_name

_FILE = Path(__file__).resolve().parents[2] / "configs" / "workloads" / "presets.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """A workload by name."""

    name: str
    what: str  # in a line
    source: str  # of the statistics, and what is assumed beside them
    # What it follows: {input: {mean, p50, p90, p99}, output: ..., rate, gap_cv, clients, turns},
    # tokens and requests/s; of sessions first_prompt and turn_input instead of input.
    row: Mapping[str, Any]
    workload: Mapping[str, Any]  # keys as in an experiment


@cache
def presets() -> dict[str, Preset]:
    """Every preset, by name."""
    found = yaml.safe_load(_FILE.read_text(encoding="utf-8"))["presets"]
    return {name: Preset(name=name, **entry) for name, entry in found.items()}


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        ConfigError: there is none; the nearest is named.
    """
    if name not in presets():
        raise unknown_name("workload preset", name, presets())
    return presets()[name]
