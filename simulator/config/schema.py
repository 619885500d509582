"""JSON Schema of an experiment file, for editors: every registered kind with its own fields."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from simulator.allocators import ALLOCATORS
from simulator.config.policies import first_line, keys_section
from simulator.config.resolve import OF_THE_EXPERIMENT
from simulator.config.sections import LENGTH, ROUTER, SCHEDULER, ExperimentFile
from simulator.config.workload import TransformSection
from simulator.costs.efficiency import HostProfile
from simulator.routers import ROUTERS
from simulator.schedulers import SCHEDULERS
from simulator.search.spec import SearchSpec
from simulator.speculation import ACCEPTANCES, DRAFTERS, LENGTHS
from simulator.workloads import WORKLOADS, presets

OUTSIDE_KIND = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of the files `headway simulate` and `headway search` take."""
    schema = ExperimentFile.model_json_schema()
    definitions: dict[str, Any] = schema.setdefault("$defs", {})
    keys = schema["properties"]
    shared = _object(TransformSection, definitions)["properties"]
    for name, registry, default in (
        ("scheduler", SCHEDULERS, SCHEDULER),
        ("router", ROUTERS, ROUTER),
    ):
        kinds = _kinds(registry, {}, definitions)
        keys[name] |= {"anyOf": [*kinds, _kind(registry[default], {}, definitions)]}
    drafting = definitions["SpeculationSection"]["properties"]
    drafting["drafter"] |= {"anyOf": _kinds(DRAFTERS, {}, definitions)}
    rate = {"type": "number", "minimum": 0, "maximum": 1}
    drafting["acceptance"] |= {"anyOf": [rate, *_kinds(ACCEPTANCES, {}, definitions)]}
    lengths = [*_kinds(LENGTHS, {}, definitions), _kind(LENGTHS[LENGTH], {}, definitions)]
    drafting["length"] |= {"anyOf": lengths}
    keys["allocator"] |= {"anyOf": [*_kinds(ALLOCATORS, {}, definitions), {"type": "null"}]}
    detected = {
        "title": "a trace whose format is detected",
        "type": "object",
        "required": ["file"],
        "not": {"required": ["kind"]},
        "properties": {"file": {"type": "string"}} | shared,
    }
    preset = {
        "title": "a preset, and keys of its kind laid over it",
        "type": "object",
        "required": ["preset"],
        "properties": {"preset": {"enum": sorted(presets())}} | shared,
    }
    keys["workload"] |= {
        "anyOf": [
            {"type": "string", "description": "bundled workload, preset, or path of a trace"},
            detected,
            preset,
            *_kinds(WORKLOADS, shared, definitions)[1:],
        ]
    }
    keys["search"] = _object(keys_section(SearchSpec, OF_THE_EXPERIMENT), definitions) | {
        "description": "what `headway search` tries; an empty list = every sensible value"
    }
    host = _object(keys_section(HostProfile), definitions)
    definitions["EngineSection"]["properties"]["host_overhead"] |= {
        "anyOf": [host, {"type": "null"}]
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Headway experiment",
        **{key: value for key, value in schema.items() if key != "title"},
    }


def _kinds(
    registry: Mapping[str, type], shared: dict[str, Any], definitions: dict[str, Any]
) -> list[dict[str, Any]]:
    """Plain text, one object for each registered kind, and any outside class."""
    outside = {
        "title": "a class outside Headway",
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"type": "string", "pattern": OUTSIDE_KIND}},
    }
    plain = {"anyOf": [{"enum": sorted(registry)}, {"type": "string", "pattern": OUTSIDE_KIND}]}
    return [plain, *(_kind(registry[k], shared, definitions, k) for k in registry), outside]


def _kind(
    policy: type, shared: dict[str, Any], definitions: dict[str, Any], kind: str = ""
) -> dict[str, Any]:
    """One policy; without `kind`, the default one, whose kind need not be stated."""
    described = _object(keys_section(policy), definitions)
    own = {"kind": {"const": kind, "description": first_line(policy)}} if kind else {}
    return described | {
        "title": kind or "the default kind",
        "properties": own | shared | described["properties"],
        "required": [*own, *described.get("required", [])],
    }


def _object(section: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """Schema of one section, its own definitions moved to the top."""
    schema: dict[str, Any] = section.model_json_schema()
    for key in schema["properties"].values():
        if isinstance(key.get("default"), float) and not math.isfinite(key["default"]):
            del key["default"]  # JSON has no infinity
    definitions |= schema.pop("$defs", {})
    return {"properties": {}} | schema
