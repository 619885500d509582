"""Finished simulations on disk, so that a killed search resumes where it was.

A result is found again only where everything it depends on is the same: model, hardware, plan,
settings, policies, the workload's content, and Headway's own code and cost tables.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from simulator.errors import ConfigError
from simulator.experiment import Experiment
from simulator.request import RequestTable

_IGNORED = {"name", "notes", "source", "price_date"}  # for people; no result depends on them
_TABLE = "create table if not exists trials (key text primary key, label text, metrics text)"


class Store:
    """Metrics by key, each committed as it comes."""

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        try:
            self._db = sqlite3.connect(self.path, timeout=60)
            with self._db:
                self._db.execute(_TABLE)
        except sqlite3.Error as error:
            raise ConfigError(f"{self.path}: cannot be used as a results store ({error})") from None

    def get(self, key: str) -> dict[str, Any] | None:
        row = self._db.execute("select metrics from trials where key = ?", (key,)).fetchone()
        return None if row is None else dict(json.loads(row[0]))

    def put(self, key: str, label: str, metrics: Mapping[str, Any]) -> None:
        row = (key, label, json.dumps(metrics))
        with self._db:
            self._db.execute("insert or replace into trials values (?, ?, ?)", row)

    def close(self) -> None:
        self._db.close()


def trial_key(experiment: Experiment, rate_scale: float, workload_hash: str) -> str:
    """Hash of everything the metrics depend on; `experiment` holds the unscaled workload."""
    parts = {
        part.name: describe(getattr(experiment, part.name))
        for part in fields(experiment)
        if part.name not in ("workload", "name")
    }
    known = {"code": code_hash(), "workload": workload_hash, "rate_scale": rate_scale, **parts}
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def workload_hash(table: RequestTable) -> str:
    """Hash of a workload's content; two tables that hold the same requests have the same."""
    text = json.dumps(describe(table), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def describe(value: Any) -> Any:
    """A value as JSON that tells two different ones apart; an array is its hash."""
    if isinstance(value, np.ndarray):
        content = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
        return [str(value.dtype), list(value.shape), content]
    if is_dataclass(value) and not isinstance(value, type):
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        known = [part.name for part in fields(value) if part.name not in _IGNORED]
        return {"kind": kind, **{name: describe(getattr(value, name)) for name in known}}
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, bool | int | str) or value is None:
        return value
    return repr(value)


@cache
def code_hash() -> str:
    """Hash of Headway's simulation code and of the calibrated tables it prices with."""
    package = Path(__file__).parents[1]
    tables = package.parent / "configs" / "calibrated"
    sources = [path for path in package.rglob("*.py") if path.parent.name != "report"]
    sources += [path for path in tables.rglob("*") if path.is_file()]
    digest = hashlib.sha256()
    for path in sorted(sources):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
