"""From checked keys to the objects a run needs: models, clusters, policies and request tables."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from simulator.allocators import ALLOCATORS, AllocatorPolicy
from simulator.catalog import load_model, parse_cluster
from simulator.config.document import Document, shown
from simulator.config.policies import build_policy, checked_values
from simulator.config.sections import (
    LENGTH,
    ROUTER,
    SCHEDULER,
    EngineSection,
    ExperimentFile,
    MachineFile,
    SloSection,
    SpeculationSection,
    validate,
)
from simulator.config.workload import workload_table
from simulator.costs.efficiency import HostProfile
from simulator.defaults import default_settings
from simulator.errors import ConfigError
from simulator.experiment import Experiment
from simulator.placement import check_cluster
from simulator.profiles import load_profile
from simulator.routers import ROUTERS, Router
from simulator.schedulers import SCHEDULERS, Scheduler, VllmV1
from simulator.search.spec import SearchSpec
from simulator.spec import (
    ClusterSpec,
    EngineSettings,
    ModelSpec,
    ParallelPlan,
    Slo,
)
from simulator.speculation import ACCEPTANCES, DRAFTERS, LENGTHS, Geometric, Speculation


def resolve_experiment(document: Document) -> Experiment:
    """The experiment a document describes.

    Raises:
        ConfigError: a key that cannot be used, named with its origin.
        InfeasiblePlan: a plan whose degrees do not divide the model or fill more than the cluster.
    """
    file = checked_file(document)
    if file.search is not None and file.plan is None:
        raise ConfigError(
            f"{document.where('plan')}: this key is required to simulate; "
            "the file describes a search (headway search)"
        )
    model, cluster = resolve_model(file, document), resolve_cluster(file, document)
    plan = resolve_plan(file, model, cluster)
    scheduler = resolve_scheduler(file, document)
    return Experiment(
        model=model,
        cluster=cluster,
        plan=plan,
        settings=resolve_settings(file.engine, model, cluster, scheduler, document),
        workload=workload_table(file.workload, file.seed, document),
        scheduler=scheduler,
        router=resolve_router(file, document),
        speculation=resolve_speculation(file.speculation, model, document),
        allocator=resolve_allocator(file, document),
        slo=resolve_slo(file.slo),
        name=file.name,
        seed=file.seed,
        horizon_s=file.horizon if file.horizon is not None else math.inf,
        coalesce=file.coalesce,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A model on a cluster under a plan, with nothing to serve."""

    model: ModelSpec
    cluster: ClusterSpec
    plan: ParallelPlan
    settings: EngineSettings


def resolve_machine(document: Document) -> Machine:
    """The serving side of an experiment, which needs no workload."""
    file = validate(MachineFile, dict(document.data), document, "")
    model, cluster = resolve_model(file, document), resolve_cluster(file, document)
    plan = resolve_plan(file, model, cluster)
    scheduler = resolve_scheduler(file, document)
    settings = resolve_settings(file.engine, model, cluster, scheduler, document)
    return Machine(model=model, cluster=cluster, plan=plan, settings=settings)


def resolve_plan(file: ExperimentFile, model: ModelSpec, cluster: ClusterSpec) -> ParallelPlan:
    """The plan, which must divide the model and fit the cluster."""
    plan = ParallelPlan(**file.plan.model_dump()) if file.plan else ParallelPlan()
    check_cluster(model, plan, cluster)
    return plan


# Fields of a SearchSpec that are keys of the experiment around it, not of `search`.
OF_THE_EXPERIMENT = (
    *("model", "cluster", "workload", "slo", "routers", "scheduler", "allocator"),
    *("engine", "seed", "horizon_s"),
)


def resolve_search(document: Document) -> SearchSpec:
    """The search a document describes; `plan` is what a search looks for, so it is not read."""
    file = checked_file(document)
    if file.speculation is not None:
        raise ConfigError(
            f"{document.where('speculation')}: a search compares plans without speculation; "
            "simulate a plan with it (headway simulate)"
        )
    model, cluster = resolve_model(file, document), resolve_cluster(file, document)
    scheduler = resolve_scheduler(file, document)
    settings = resolve_settings(file.engine, model, cluster, scheduler, document)
    stated = _stated(file.engine) | {"host_overhead": settings.host_overhead}
    values = checked_values(SearchSpec, file.search or {}, "search", document, OF_THE_EXPERIMENT)
    if "nano_batches" in stated:
        raise ConfigError(
            f"{document.where('engine.nano_batches')}: a search prunes by prices of kernels one "
            "after another; simulate a plan with it (headway simulate)"
        )
    for name in ("max_num_batched_tokens", "max_num_seqs"):
        if name in stated:
            values.setdefault(name, (stated.pop(name),))
    if "router" in file.model_fields_set:
        values["routers"] = (resolve_router(file, document),)
    with document.at("search"):
        return SearchSpec(
            model=model,
            cluster=cluster,
            workload=workload_table(file.workload, file.seed, document),
            slo=resolve_slo(file.slo),
            scheduler=scheduler,
            allocator=resolve_allocator(file, document),
            engine=stated,
            seed=file.seed,
            horizon_s=file.horizon if file.horizon is not None else math.inf,
            **values,
        )


def checked_file(document: Document) -> ExperimentFile:
    """The document's keys, types and bounds checked."""
    return validate(ExperimentFile, dict(document.data), document, "")


def resolve_scheduler(file: ExperimentFile, document: Document) -> Scheduler:
    """The scheduler; keys without a kind are those of vLLM's, as of the engine profile."""
    if "scheduler" not in file.model_fields_set and file.engine.profile:
        profile = load_profile(_profile_name(file.engine, document))
        return VllmV1(reserve_full_prompt=profile.reserve_full_prompt)
    built: Scheduler = build_policy("scheduler", SCHEDULERS, file.scheduler, document, SCHEDULER)
    return built


def resolve_router(file: ExperimentFile, document: Document) -> Router:
    """The router; keys without a kind are those of round robin."""
    built: Router = build_policy("router", ROUTERS, file.router, document, ROUTER)
    return built


def resolve_speculation(
    section: SpeculationSection | None, model: ModelSpec, document: Document
) -> Speculation | None:
    """Drafter, acceptance and length policy; the drafter must suit the model."""
    if section is None:
        return None
    here = "speculation"
    data = section.drafter if section.drafter is not None else {}
    if isinstance(data, dict) and isinstance(data.get("model"), str):
        name = document.path(f"{here}.drafter.model", data["model"])
        data = {**data, "model": name if Path(name).exists() else data["model"]}
    drafter = build_policy(f"{here}.drafter", DRAFTERS, data, document)
    acceptance = Geometric()
    if section.acceptance is not None:
        acceptance = build_policy(f"{here}.acceptance", ACCEPTANCES, section.acceptance, document)
    length = build_policy(f"{here}.length", LENGTHS, section.length, document, LENGTH)
    with document.at(here):
        built = Speculation(
            drafter=drafter,
            num_speculative_tokens=section.num_speculative_tokens,
            acceptance=acceptance,
            length=length,
        )
        drafter.draft(model)
        return built


def resolve_allocator(file: ExperimentFile, document: Document) -> AllocatorPolicy | None:
    """The KV allocator; None where none is stated."""
    if file.allocator is None:
        return None
    built: AllocatorPolicy = build_policy("allocator", ALLOCATORS, file.allocator, document)
    return built


def resolve_model(file: ExperimentFile, document: Document) -> ModelSpec:
    """The model, in the formats asked for."""
    name = document.path("model", file.model)
    with document.at("model"):
        model = load_model(name if Path(name).exists() else file.model)
    with document.at("weight_format"):
        model = model.with_formats(weight_format=file.weight_format)
    with document.at("kv_format"):
        return model.with_formats(kv_format=file.kv_format)


def resolve_cluster(file: ExperimentFile, document: Document) -> ClusterSpec:
    """The cluster."""
    with document.at("cluster"):
        return parse_cluster(file.cluster)


def resolve_slo(section: SloSection) -> Slo:
    """Targets in seconds; what is not set is infinite."""
    targets = {"ttft_s": section.ttft, "tpot_s": section.tpot, "e2e_s": section.e2e}
    stated = {name: value for name, value in targets.items() if value is not None}
    return Slo(attainment=section.attainment, **stated)


def resolve_settings(
    section: EngineSection,
    model: ModelSpec,
    cluster: ClusterSpec,
    scheduler: Scheduler,
    document: Document,
) -> EngineSettings:
    """Stated settings over vLLM's defaults for the cluster's first GPU."""
    stated = _stated(section)
    stated["host_overhead"] = checked_values(
        HostProfile, section.host_overhead or {}, "engine.host_overhead", document
    )
    longest = stated.get("max_model_len", model.max_context_tokens)
    if longest > model.max_context_tokens:
        raise ConfigError(
            f"{document.where('engine.max_model_len')}: expected an int <= "
            f"{model.max_context_tokens}, the context of {model.name} (got {longest})"
        )
    if section.profile:
        stated["profile"] = _profile_name(section, document)
    with document.at("engine.max_num_batched_tokens"):
        settings = default_settings(cluster.groups[0].gpu, **stated)
        if getattr(scheduler, "chunked_prefill", True):
            return settings
        return _whole_prompts(settings, longest, "max_num_batched_tokens" in stated)


def _profile_name(section: EngineSection, document: Document) -> str:
    """The profile's bundled name or path, found to be usable."""
    assert section.profile is not None
    path = document.path("engine.profile", section.profile)
    name = path if Path(path).exists() else section.profile
    with document.at("engine.profile"):
        load_profile(name)
    return name


def _stated(section: EngineSection) -> dict[str, Any]:
    stated = section.model_dump(exclude_none=True, exclude={"host_overhead"})
    if "kv_offload" in stated:
        stated["kv_offload_bytes"] = stated.pop("kv_offload")
    return stated


def _whole_prompts(settings: EngineSettings, longest: int, is_stated: bool) -> EngineSettings:
    """Without chunked prefill a prompt is one chunk, so the budget must hold the longest."""
    if settings.max_num_batched_tokens >= longest:
        return settings
    if is_stated:
        raise ConfigError(
            f"expected an int >= max_model_len = {longest} without chunked prefill "
            f"(got {shown(settings.max_num_batched_tokens)})"
        )
    return replace(settings, max_num_batched_tokens=longest)
