"""The workload of a document: a registered kind, a trace whose format is detected, or a name.

A preset's name stands for the keys it holds; keys beside it are laid over them.

`rate_scale`, `start`, `end`, `max_requests` and `max_concurrency` apply to every kind; a kind with
a field of the same name keeps it.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from simulator.config.document import Document
from simulator.config.fields import MAX_INT, Seconds
from simulator.config.policies import build_policy
from simulator.config.sections import Section, validate
from simulator.errors import ConfigError
from simulator.request import RequestTable
from simulator.workloads import (
    WORKLOADS,
    Workload,
    bundled_workloads,
    detect,
    find_preset,
    from_file,
    presets,
    sampled,
    transform,
)


class TransformSection(Section):
    """Changes that make sense for every workload."""

    rate_scale: Annotated[float, Field(gt=0.0, le=1e9)] = Field(
        default=1.0, description="arrival rate times this", examples=[2.0]
    )
    start: Seconds = Field(default=0.0, description="requests that arrive before are left out")
    end: Seconds = Field(
        default=math.inf, description="requests that arrive at or after are left out"
    )
    max_requests: Annotated[int, Field(ge=0, le=MAX_INT)] = Field(
        default=0, description="only the first so many requests; 0 = all", examples=[1000]
    )
    max_concurrency: Annotated[int, Field(ge=0, le=MAX_INT)] = Field(
        default=0, description="most requests in flight; 0 = unlimited", examples=[64]
    )
    n: Annotated[int, Field(ge=1, le=1024)] = Field(
        default=1, description="answers sampled from each prompt", examples=[4]
    )
    sample_lengths: Literal["equal", "drawn"] = Field(
        default="equal",
        description="answers to a prompt are equally long, or the others as long as requests drawn",
    )
    beam_width: Annotated[int, Field(ge=0, le=1024)] = Field(
        default=0, description="beams of a search (scheduler vllm_v0); 0 = sampling", examples=[4]
    )
    beam_persistence: Annotated[float, Field(ge=0.0, le=1.0)] = Field(
        default=0.0,
        description="chance that a beam goes on from its own past, not from one drawn uniformly",
    )


def workload_table(value: str | dict[str, Any], seed: int, document: Document) -> RequestTable:
    """The requests of the document's workload."""
    data: dict[str, Any] = {"file": value} if isinstance(value, str) else dict(value)
    data = _with_preset(data, document)
    kind = data.get("kind")
    own = _field_names(kind) if isinstance(kind, str) else set()
    shared = {
        key: data.pop(key) for key in TransformSection.model_fields if key in data.keys() - own
    }
    changes = validate(TransformSection, shared, document, "workload")
    workload: Workload = _source(data, document)
    with document.at("workload", named_only=True):  # a trace's own errors name its file
        table: RequestTable = workload.requests(seed)
    with document.at("workload"):
        table = transform(
            table,
            rate_scale=changes.rate_scale,
            start_s=changes.start,
            end_s=changes.end,
            max_requests=changes.max_requests,
        )
        table = sampled(
            table,
            seed,
            n=changes.n,
            lengths=changes.sample_lengths,
            beam_width=changes.beam_width,
            beam_persistence=changes.beam_persistence,
        )
    limit = changes.max_concurrency
    return replace(table, max_concurrency=limit) if limit else table


def _with_preset(data: dict[str, Any], document: Document) -> dict[str, Any]:
    """The keys with those of the preset that is named, if any, below them."""
    file = data.get("file")
    named = "preset" if "preset" in data else "file"
    if named == "file" and (
        "kind" in data
        or not isinstance(file, str)
        or file not in presets()
        or Path(document.path("workload.file", file)).exists()
    ):
        return data
    with document.at(f"workload.{named}"):
        name = data[named]
        if not isinstance(name, str):
            raise ConfigError(f"expected the name of a preset (got {name!r})")
        template = find_preset(name).workload
    if "kind" in data:
        raise ConfigError(
            f"{document.where('workload.kind')}: the preset '{name}' has the kind "
            f"'{template['kind']}'; leave one of them out"
        )
    return dict(template) | {key: value for key, value in data.items() if key != named}


def _field_names(kind: str) -> set[str]:
    found = WORKLOADS.get(kind)
    return set(getattr(found, "__dataclass_fields__", {}))


def _source(data: dict[str, Any], document: Document) -> Workload:
    """The workload itself; of a file whose kind is not stated, the kind its contents show."""
    file = data.get("file")
    if "kind" in data or not isinstance(file, str):
        built: Workload = build_policy("workload", WORKLOADS, data, document)
        return built
    path = document.path("workload.file", file)
    name = file if file in bundled_workloads() and not Path(path).exists() else path
    if data.keys() == {"file"}:
        return from_file(name)
    detected: Workload = build_policy(
        "workload", WORKLOADS, data | {"kind": detect(name)}, document
    )
    return detected
