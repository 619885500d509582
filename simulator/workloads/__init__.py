"""Workloads: where requests come from.

A workload is a frozen dataclass whose fields are its YAML keys and whose `requests(seed)` returns a
RequestTable. Adding one takes a file and a line in `WORKLOADS`. Drawing uses named streams, so that
changing a rate stretches the same gaps and leaves the lengths as they were.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from simulator.errors import ConfigError
from simulator.request import RequestTable
from simulator.workloads.bundled import bundled_workloads, resolve
from simulator.workloads.clients import Clients
from simulator.workloads.csv_traces import Azure, BurstGpt
from simulator.workloads.detect import KNOWN_FORMATS, detect
from simulator.workloads.jsonl import Mooncake, TimedTrace
from simulator.workloads.length_sets import LengthSet
from simulator.workloads.presets import Preset, find_preset, presets
from simulator.workloads.servegen import ServeGen
from simulator.workloads.sessions import Sessions
from simulator.workloads.synthetic import PrefixRepetition, Synthetic
from simulator.workloads.table import Table
from simulator.workloads.transform import sampled, transform

__all__ = [
    "KNOWN_FORMATS",
    "WORKLOADS",
    "Azure",
    "BurstGpt",
    "Clients",
    "LengthSet",
    "Mooncake",
    "PrefixRepetition",
    "Preset",
    "ServeGen",
    "Sessions",
    "Synthetic",
    "Table",
    "TimedTrace",
    "Workload",
    "bundled_workloads",
    "detect",
    "find_preset",
    "from_file",
    "presets",
    "resolve",
    "sampled",
    "transform",
]


class Workload(Protocol):
    """Where requests come from."""

    def requests(self, seed: int) -> RequestTable: ...


WORKLOADS: dict[str, type[Workload]] = {
    "azure": Azure,
    "burstgpt": BurstGpt,
    "clients": Clients,
    "lengths": LengthSet,
    "mooncake": Mooncake,
    "prefix_repetition": PrefixRepetition,
    "servegen": ServeGen,
    "sessions": Sessions,
    "synthetic": Synthetic,
    "table": Table,
    "timed_trace": TimedTrace,
}


def from_file(path: str | Path, *, skip_bad_lines: bool = False) -> Workload:
    """The workload of a trace file or bundled name, its format detected, options at their defaults.

    Raises:
        ConfigError: no known format, or one that needs more than the file.
    """
    kind = detect(path)
    file = resolve(path)
    if kind == "lengths":
        raise ConfigError(
            f"{file.name}: holds lengths without arrival times; give it an arrival process "
            "(workload: {kind: lengths, file: ..., arrivals: {process: poisson, rate: 12 /s}, ...})"
        )
    if kind == "servegen":
        sibling = file.with_name(file.name.replace("rates", "lengths"))
        if sibling == file or not sibling.exists():
            raise ConfigError(
                f"{file.name}: its table of lengths is not beside it ({sibling.name})"
            )
        return ServeGen(rates=file, lengths=sibling, skip_bad_lines=skip_bad_lines)
    readers: dict[str, Callable[..., Workload]] = {
        "azure": Azure,
        "burstgpt": BurstGpt,
        "mooncake": Mooncake,
        "table": Table,
        "timed_trace": TimedTrace,
    }
    return readers[kind](file=file, skip_bad_lines=skip_bad_lines)
