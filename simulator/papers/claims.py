"""What the papers claim: `claim.yaml` files, read strictly."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

from simulator.config import read_document
from simulator.errors import ConfigError, unknown_name

FOLDER = Path(__file__).parents[2] / "experiments" / "papers"
CLAIMS, EXPERIMENT = "claim.yaml", "experiment.yaml"
DIRECTIONS = (">", "<")


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One claim, the measure that tests it, and the band we accept."""

    id: str
    claim: str  # in a sentence
    source: str  # figure, table or section of the paper
    measure: str  # name in the system's MEASURES
    low: float  # accepted band, both ends included
    high: float
    why: str  # the band is this wide
    evidence: str  # paper, code, notes, calc: how the published number is known
    unit: str = ""
    direction: str = ""  # "> 1": what still shows the claim's direction outside the band
    seeds: int = 0  # 0 = the usual number; 1 = nothing is random

    def points_there(self, value: float) -> bool:
        """Whether the value lies on the side of `direction`."""
        sign, _, bound = self.direction.partition(" ")
        return (value > float(bound) if sign == ">" else value < float(bound)) if sign else False


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A published system: its paper, its claims, and the experiment they are measured on."""

    name: str
    title: str
    paper: str  # where it was published
    folder: Path
    claims: tuple[Claim, ...]

    @property
    def experiment(self) -> Path:
        return self.folder / EXPERIMENT

    def module(self) -> ModuleType:
        """The measuring code."""
        return importlib.import_module(f"simulator.papers.{self.name}")


def find_systems(folder: Path = FOLDER) -> list[str]:
    """Names of the systems that have claims.

    Raises:
        ConfigError: the folder is missing, as in an installation without the repository.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: expected the folder of claims (run in a clone of Headway)")
    return sorted(path.parent.name for path in folder.glob(f"*/{CLAIMS}"))


def load_system(name: str, folder: Path = FOLDER) -> System:
    """A system by name.

    Raises:
        ConfigError: an unknown name, or a claim file that cannot be used.
    """
    known = find_systems(folder)
    if name not in known:
        raise unknown_name("system", name, known)
    path = folder / name / CLAIMS
    data = read_document(path).data
    claims = data.get("claims")
    if set(data) != {"title", "paper", "claims"} or not isinstance(claims, list) or not claims:
        raise ConfigError(f"{path}: expected the keys title, paper and claims (a list)")
    return System(
        name=name,
        title=str(data["title"]),
        paper=str(data["paper"]),
        folder=folder / name,
        claims=tuple(_claim(path, number, entry) for number, entry in enumerate(claims)),
    )


def _claim(path: Path, number: int, entry: Any) -> Claim:
    where = f"{path}: claims[{number}]"
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where}: expected a mapping")
    known = {field.name: field for field in fields(Claim)}
    required = [name for name, field in known.items() if field.default is MISSING]
    for name in entry:
        if name not in known:
            raise unknown_name(f"{where}: key", str(name), known)
    for name in required:
        if name not in entry:
            raise ConfigError(f"{where}.{name}: this key is required")
    values = {name: _typed(where, name, value) for name, value in entry.items()}
    claim = Claim(**values)
    if not claim.low <= claim.high:
        raise ConfigError(f"{where}: expected low <= high (got {claim.low} and {claim.high})")
    sign, _, bound = claim.direction.partition(" ")
    if claim.direction and (sign not in DIRECTIONS or not _is_number(bound)):
        raise ConfigError(f"{where}.direction: expected '> NUMBER' or '< NUMBER'")
    return claim


def _typed(where: str, name: str, value: Any) -> Any:
    if name in ("low", "high"):
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise ConfigError(f"{where}.{name}: expected a number (got {value!r})")
        return float(value)
    if name == "seeds":
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigError(f"{where}.seeds: expected an int >= 0 (got {value!r})")
        return value
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}.{name}: expected text (got {value!r})")
    return " ".join(value.split())


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
