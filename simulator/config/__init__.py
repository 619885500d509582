"""Experiments as YAML: strict, typed, with units; one clear line for anything that is wrong.

`load` reads a file into a `Document` (raw keys and where each came from), which flags may override;
`resolve_experiment` and `resolve_search` turn it into what runs. Keys of an experiment are in
`sections`, keys of a policy are the fields of its dataclass.
"""

from __future__ import annotations

from pathlib import Path

from simulator.config.document import Document, read_document
from simulator.config.resolve import (
    Machine,
    resolve_experiment,
    resolve_machine,
    resolve_search,
)
from simulator.config.schema import json_schema
from simulator.experiment import Experiment

__all__ = [
    "Document",
    "Machine",
    "json_schema",
    "load",
    "read_document",
    "resolve_experiment",
    "resolve_machine",
    "resolve_search",
]


def load(path: str | Path) -> Experiment:
    """The experiment a YAML file describes.

    Raises:
        ConfigError: anything in the file that cannot be used.
        InfeasiblePlan: a plan that cannot run on the cluster.
    """
    return resolve_experiment(read_document(path))
