"""From a measured run to experiments: model, GPUs, plan, engine profile, settings and load."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from simulator.catalog import load_model, parse_cluster
from simulator.defaults import default_settings
from simulator.disaggregated import simulate_disaggregated
from simulator.engine import simulate
from simulator.errors import ConfigError
from simulator.experiment import Experiment
from simulator.profiles import (
    DEFAULT_PROFILE,
    EngineProfile,
    load_profile,
    profile_of_version,
    profiles_of,
)
from simulator.recorder import Result
from simulator.routers import Random, RoundRobin, Router
from simulator.schedulers import VllmV1
from simulator.spec import ClusterSpec, EngineSettings, ModelSpec, ParallelPlan
from simulator.validation.load import load_of, scored_requests, stage_of
from simulator.validation.rows import Row

# Models whose published generation_config truncates (top-k or top-p), and clients that send no
# sampling parameters of their own, so that it applies.
TRUNCATING = ("llama-2-", "llama-3", "llama-4-", "qwen2.5-", "qwen3-")
LEAVE_SAMPLING = ("inference-perf",)
WEIGHT_FORMATS = {"bf16": "bf16", "fp16": "fp16", "fp16/bf16": "", "fp8": "fp8", "mxfp4": ""}
KV_FORMATS = {"fp16/bf16": "", "auto": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What to simulate for one row, and what was assumed to do so."""

    row: Row
    experiment: Experiment
    scored: slice
    profile: EngineProfile
    notes: tuple[str, ...]
    instances: tuple[int, int] = (0, 0)  # that only prefill, and only decode; (0, 0) = all do both

    def simulate(self) -> Result:
        """Run it."""
        if self.instances == (0, 0):
            return simulate(self.experiment)
        return simulate_disaggregated(self.experiment, *self.instances)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices:
    """What the caller sets for all rows."""

    folder: Path  # of the workload files
    profile: str = ""  # an engine profile in place of that of each row's version
    calibration: str = ""
    host: Mapping[str, float] = field(default_factory=dict)  # over the profile's host times
    seed: int = 0
    base: Experiment | None = None  # what served, in place of what each row says of it


def scenario_of(row: Row, choices: Choices) -> Scenario:
    """The experiment of a row.

    Raises:
        ConfigError: a cell that cannot be used, or cells that contradict each other.
        InfeasiblePlan: a plan that cannot hold the model.
    """
    if choices.base is not None:
        return _served_by(choices.base, row, choices)
    notes = _remarks(row)
    profile = _profile(row, choices, notes)
    model = _model(row)
    instances = _instances(row)
    if sum(instances) and not profile.disaggregates:
        notes.append(f"{profile.name}: instances taken to serve requests whole")
        row = Row({**row.cells, "n_replicas": str(sum(instances)), "n_prefill": "", "n_decode": ""})
        instances = (0, 0)
    plan, cluster = _plan(row, model, instances)
    settings = _settings(row, choices, profile, cluster, model, notes)
    table = load_of(row, choices.folder, choices.seed)
    return Scenario(
        row=row,
        experiment=Experiment(
            model=model,
            cluster=cluster,
            plan=plan,
            settings=settings,
            workload=table,
            scheduler=_scheduler(row, profile),
            router=_router(row, plan, choices.seed),
            name=row.run_id,
            seed=choices.seed,
        ),
        scored=scored_requests(row, table),
        profile=profile,
        notes=tuple(notes),
        instances=instances,
    )


def _served_by(base: Experiment, row: Row, choices: Choices) -> Scenario:
    """The load of a row on an experiment's deployment; its own workload is left out."""
    table = load_of(row, choices.folder, choices.seed)
    notes = [remark for remark in _remarks(row) if not remark.startswith("engine ")]
    measured = row.text("model_hf")
    if measured and not _is_model(measured, base.model):
        notes.append(f"measured with {measured}, simulated with {base.model.name}")
    return Scenario(
        row=row,
        experiment=replace(base, workload=table, name=row.run_id, horizon_s=float("inf")),
        scored=scored_requests(row, table),
        profile=load_profile(base.settings.profile or DEFAULT_PROFILE),
        notes=tuple(notes),
    )


def _remarks(row: Row) -> list[str]:
    """What whoever made the row wrote down."""
    return [remark.strip() for remark in row.text("remarks").split(";") if remark.strip()]


def _is_model(text: str, model: ModelSpec) -> bool:
    try:
        return load_model(text).name == model.name
    except ConfigError:
        return False


def _instances(row: Row) -> tuple[int, int]:
    """How many instances only prefill and only decode."""
    prefill, decode = row.integer("n_prefill", 0), row.integer("n_decode", 0)
    is_apart = "disaggregated" in row.text("deployment")
    if is_apart and not (prefill and decode):
        raise ConfigError("n_prefill, n_decode: expected both for a disaggregated deployment")
    if (prefill > 0) != (decode > 0):
        raise ConfigError(f"n_prefill, n_decode: expected both or none (got {prefill}, {decode})")
    return prefill, decode


def _profile(row: Row, choices: Choices, notes: list[str]) -> EngineProfile:
    if choices.profile:
        return load_profile(choices.profile)
    version = row.text("engine_version")
    if not version:
        newest = profiles_of(row.text("engine"))[-1]
        notes.append(f"engine_version not stated: {newest.name} assumed")
        return newest
    return profile_of_version(row.text("engine"), version)


def _model(row: Row) -> ModelSpec:
    weight, kv = row.text("weight_dtype").lower(), row.text("kv_dtype").lower()
    model = load_model(row.text("model_hf"))
    return model.with_formats(WEIGHT_FORMATS.get(weight, weight), KV_FORMATS.get(kv, kv))


def _plan(
    row: Row, model: ModelSpec, instances: tuple[int, int]
) -> tuple[ParallelPlan, ClusterSpec]:
    """The plan of the whole deployment, on just the GPUs it takes."""
    tp, pp, dp, ep = (row.integer(name, 1) for name in ("tp", "pp", "dp", "ep"))
    if min(tp, pp, dp, ep) < 1:
        raise ConfigError("tp, pp, dp, ep: expected whole numbers >= 1")
    has_experts = any(layer.ffn.num_experts for layer in model.layer_kinds)
    ranks = dp if has_experts else 1
    replicas = row.integer("n_replicas", 1) * (1 if has_experts else dp)
    plan = ParallelPlan(
        tp=tp, pp=pp, dp=max(1, replicas), ep=tp * ranks if ep > 1 else 1, attention_dp=ranks
    )
    num_gpus = plan.num_gpus * max(1, sum(instances))
    stated = row.integer("n_gpus", num_gpus)
    if stated < num_gpus:
        raise ConfigError(
            f"n_gpus: expected at least {num_gpus} for tp={tp}, pp={pp}, dp={dp} and "
            f"{max(plan.dp, sum(instances))} instances (got {stated})"
        )
    return plan, parse_cluster(f"{num_gpus}x{row.text('gpu')}")


COLUMNS = {
    "max_num_batched_tokens": "max_num_batched_tokens",
    "max_num_seqs": "max_num_seqs",
    "block_size": "block_tokens",
    "kv_blocks_gpu": "num_blocks",
    "max_model_len": "max_model_len",
}
OPTIONAL = ("block_size", "kv_blocks_gpu", "max_model_len")  # left to the model and to memory


def _settings(
    row: Row,
    choices: Choices,
    profile: EngineProfile,
    cluster: ClusterSpec,
    model: ModelSpec,
    notes: list[str],
) -> EngineSettings:
    stated = _graphs(row) | _stated(row, profile, notes)
    if (share := row.number("gpu_mem_util")) is not None:
        stated["gpu_memory_utilization"] = share
    if (caching := row.flag("prefix_caching")) is not None:
        stated["prefix_caching"] = caching
    stated["cold_start"] = "prefix_repeat" in row.text("flags") and stage_of(row) == 0
    stated["truncated_sampling"] = row.text("client") in LEAVE_SAMPLING and model.name.startswith(
        TRUNCATING
    )
    longest = int(stated.get("max_model_len", model.max_context_tokens))
    stated["max_model_len"] = min(longest, model.max_context_tokens)
    if "num_blocks" in stated:
        del stated["max_model_len"]  # the recorded blocks say what fits
    return default_settings(
        cluster.groups[0].gpu,
        profile=choices.profile or profile.name,
        calibration=choices.calibration,
        host_overhead=_host(row, choices),
        **stated,
    )


def _host(row: Row, choices: Choices) -> dict[str, float]:
    """Host times over the profile's; times taken inside the engine have no front end."""
    if "engine_side_timing" in row.text("flags"):
        return {**choices.host, "request_s": 0.0, "prompt_token_s": 0.0}
    return dict(choices.host)


def _stated(row: Row, profile: EngineProfile, notes: list[str]) -> dict[str, Any]:
    """Settings the source states; what it does not is the profile's default, and is noted."""
    stated: dict[str, Any] = {}
    for column, name in COLUMNS.items():
        value = row.number(column)
        if value and not _is_guess(row, column):
            stated[name] = row.integer(column)
        elif column not in OPTIONAL:
            notes.append(f"{column} not stated: default of {profile.name}")
    return stated


def _graphs(row: Row) -> dict[str, Any]:
    """What the column `cuda_graph` says of graphs and of scheduling."""
    text = row.text("cuda_graph").lower()
    found: dict[str, Any] = {}
    if "eager" in text:
        found["cuda_graphs"] = False
    if "async scheduling on" in text:
        found["async_scheduling"] = True
    if match := re.search(r"capture up to (\d+)", text):
        found["largest_graph"] = int(match[1])
    return found


def _is_guess(row: Row, column: str) -> bool:
    """Whether the row says that its source did not state a setting: the value is a guess."""
    for remark in row.text("assumed_settings").split(";"):
        name, _, text = remark.partition(":")
        if name.strip() == column and ("not stated" in text or " as in " in text):
            return True
    return False


def _scheduler(row: Row, profile: EngineProfile) -> VllmV1:
    return VllmV1(
        chunked_prefill=row.flag("chunked_prefill") is not False,
        reserve_full_prompt=profile.reserve_full_prompt,
    )


def _router(row: Row, plan: ParallelPlan, seed: int) -> Router:
    """A Kubernetes service picks a replica at random for each connection."""
    if plan.dp > 1 and row.text("deployment") != "colocated":
        return Random(seed=seed)
    return RoundRobin()
