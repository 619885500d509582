"""What a measure gets: the system's experiment under one seed, with keys changed at will."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from simulator.config import read_document, resolve_experiment
from simulator.engine import simulate
from simulator.experiment import Experiment
from simulator.recorder import Result

T = TypeVar("T")
Changes = Mapping[str, object]  # dotted YAML keys


@dataclass(frozen=True, slots=True)
class Case:
    """One seed of a system's experiment. Simulations are kept, so measures may share them."""

    path: Path  # experiment.yaml
    seed: int
    quick: bool = False
    _kept: dict[str, Any] = field(default_factory=dict)

    def choose(self, full: T, quick: T) -> T:
        """A size: of the whole experiment, or of its quick version."""
        return quick if self.quick else full

    def experiment(self, changes: Changes | None = None) -> Experiment:
        """The experiment with this seed and these keys (`{"plan.tp": 2}`) changed."""
        document = read_document(self.path).override("seed", self.seed, "")
        for key, value in (changes or {}).items():
            document = document.override(key, value, "")  # as if the file said so
        return resolve_experiment(document)

    def simulate(self, changes: Changes | None = None) -> Result:
        """Run the experiment with these keys changed."""
        return self.once(f"run {changes!r}", lambda: simulate(self.experiment(changes)))

    def once(self, key: str, make: Callable[[], T]) -> T:
        """What `make` returned the first time this key was asked for."""
        if key not in self._kept:
            self._kept[key] = make()
        kept: T = self._kept[key]
        return kept


Measure = Callable[[Case], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A curve of a picture; `dashed` = the paper's."""

    label: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    dashed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What a system's module draws beside the claims."""

    title: str
    x_label: str
    y_label: str
    lines: tuple[Line, ...]
    log_y: bool = False
