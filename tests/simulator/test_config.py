"""Experiments as YAML: what they resolve to, defaults, units, paths, policies and the schema."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import jsonschema
import pytest
import yaml

from simulator.catalog import load_gpu
from simulator.config import (
    json_schema,
    load,
    read_document,
    resolve_experiment,
    resolve_machine,
    resolve_search,
)
from simulator.config.document import Document, parse_yaml
from simulator.defaults import default_settings
from simulator.errors import ConfigError, InfeasiblePlan
from simulator.profiles import load_profile
from simulator.routers import ROUTERS, LeastLoaded, RoundRobin
from simulator.schedulers import SCHEDULERS, VllmV1
from simulator.spec import ParallelPlan
from simulator.workloads import WORKLOADS

ROOT = Path(__file__).parents[2]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
BASE = {
    "model": "llama-3.1-8b",
    "cluster": "2xH100-SXM",
    "workload": {"kind": "synthetic", "num_prompts": 3},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutsideRouter:
    """A router a user wrote."""

    patience_s: float = 1.0
    weights: tuple[int, ...] = (1,)
    is_static = True
    reads_cache = False

    def choose(self, number: int, seq: object, ranks: object) -> int:
        return 0


def document(**changes: object) -> Document:
    return Document(data=BASE | changes, source="x.yaml")


def write(folder: Path, **changes: object) -> Path:
    path = folder / "x.yaml"
    path.write_text(yaml.safe_dump(BASE | changes))
    return path


@pytest.mark.parametrize(
    ("gpu", "tokens", "seqs"),
    [
        ("B200-SXM", 16384, 1024),
        ("MI300X", 16384, 1024),
        ("H100-SXM", 8192, 1024),
        ("H200-SXM", 8192, 1024),
        ("A100-80-SXM", 2048, 256),
        ("L4", 2048, 256),
    ],
)
def test_defaults_are_those_of_vllm_serve_0_33(gpu: str, tokens: int, seqs: int) -> None:
    settings = default_settings(load_gpu(gpu))
    assert (settings.max_num_batched_tokens, settings.max_num_seqs) == (tokens, seqs)
    assert (settings.gpu_memory_utilization, settings.block_tokens) == (0.92, 16)
    assert settings.prefix_caching
    assert settings.cuda_graphs


def test_a_budget_stated_alone_lowers_the_default_sequences() -> None:
    assert default_settings(load_gpu("H100-SXM"), max_num_batched_tokens=512).max_num_seqs == 512


def test_a_budget_below_the_sequences_is_refused_as_vllm_does() -> None:
    with pytest.raises(ConfigError, match="max_num_seqs = 512"):
        default_settings(load_gpu("L4"), max_num_batched_tokens=256, max_num_seqs=512)


def test_a_mixed_cluster_takes_the_defaults_of_its_first_group() -> None:
    mixed = resolve_machine(document(cluster="8xA100-80-SXM+8xH100-SXM"))
    assert mixed.settings.max_num_batched_tokens == 2048


def test_an_experiment_resolves_with_defaults() -> None:
    experiment = resolve_experiment(document())
    assert experiment.plan == ParallelPlan()
    assert experiment.scheduler == VllmV1()
    assert experiment.router == RoundRobin()
    assert experiment.horizon_s == math.inf
    assert len(experiment.workload) == 3
    assert not experiment.slo.is_set


def test_every_key_arrives() -> None:
    experiment = resolve_experiment(
        document(
            name="full",
            seed=7,
            weight_format="fp8",
            kv_format="fp8",
            plan={"tp": 1, "dp": 2},
            engine={
                "profile": "vllm-0.10",
                "max_num_batched_tokens": 4096,
                "max_num_seqs": 64,
                "gpu_memory_utilization": 0.8,
                "block_tokens": 32,
                "prefix_caching": False,
                "cuda_graphs": False,
                "max_model_len": 8192,
                "num_blocks": 1000,
                "host_overhead": {"iteration_s": "300 us"},
            },
            scheduler={"kind": "vllm_v1", "policy": "priority"},
            router={"kind": "least_loaded", "waiting_weight": 2},
            slo={"ttft": "200 ms", "tpot": "50ms", "e2e": "1 min", "attainment": 0.9},
            horizon="10 min",
            coalesce=False,
        )
    )
    assert (experiment.name, experiment.seed) == ("full", 7)
    assert (experiment.model.weight_format, experiment.model.kv_format) == ("fp8", "fp8")
    assert experiment.plan == ParallelPlan(dp=2)
    settings = experiment.settings
    assert (settings.max_num_batched_tokens, settings.max_num_seqs) == (4096, 64)
    assert (settings.block_tokens, settings.num_blocks) == (32, 1000)
    assert (settings.prefix_caching, settings.cuda_graphs) == (False, False)
    profile = load_profile("vllm-0.10")
    assert (settings.profile, settings.async_scheduling) == ("vllm-0.10", False)
    assert settings.host_overhead == {**profile.host, "iteration_s": pytest.approx(3e-4)}
    assert experiment.scheduler == VllmV1(policy="priority")
    assert experiment.router == LeastLoaded(waiting_weight=2.0)
    assert (experiment.slo.ttft_s, experiment.slo.tpot_s) == (0.2, 0.05)
    assert (experiment.slo.e2e_s, experiment.slo.attainment) == (60.0, 0.9)
    assert (experiment.horizon_s, experiment.coalesce) == (600.0, False)


def test_a_policy_may_be_plain_text_or_keys_without_a_kind() -> None:
    assert resolve_experiment(document(router="least_loaded")).router == LeastLoaded()
    keys = resolve_experiment(document(scheduler={"chunked_prefill": False})).scheduler
    assert keys == VllmV1(chunked_prefill=False)


def test_whole_prompts_raise_the_default_budget_to_the_context() -> None:
    whole = resolve_experiment(document(scheduler={"chunked_prefill": False}))
    assert whole.settings.max_num_batched_tokens == whole.model.max_context_tokens


def test_a_kind_may_name_a_class_outside_the_tree() -> None:
    router = {"kind": f"{__name__}:OutsideRouter", "patience_s": "250 ms", "weights": [3, 4]}
    built = resolve_experiment(document(router=router)).router
    assert built == OutsideRouter(patience_s=0.25, weights=(3, 4))


def test_a_dimensioned_field_of_a_policy_needs_a_unit() -> None:
    router = {"kind": f"{__name__}:OutsideRouter", "patience_s": 250}
    with pytest.raises(ConfigError, match=r"x\.yaml: router\.patience_s: expected time"):
        resolve_experiment(document(router=router))


def test_transforms_apply_to_every_workload() -> None:
    workload = {"kind": "synthetic", "num_prompts": 9, "request_rate": 1.0, "burstiness": math.inf}
    table = resolve_experiment(
        document(workload=workload | {"rate_scale": 2.0, "max_requests": 4})
    ).workload
    assert len(table) == 4
    assert table.duration_s == pytest.approx(1.5)


def test_paths_start_at_the_folder_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trace.csv").write_text("arrival_s,input_tokens,output_tokens\n0,5,5\n")
    monkeypatch.chdir(ROOT)
    for workload in ("trace.csv", {"file": "trace.csv"}, {"kind": "table", "file": "trace.csv"}):
        assert len(load(write(tmp_path, workload=workload)).workload) == 1


def test_a_model_may_be_a_path_beside_the_file(tmp_path: Path) -> None:
    source = ROOT / "configs" / "models" / "llama-3.1-8b.json"
    (tmp_path / "mine.json").write_text(source.read_text())
    assert load(write(tmp_path, model="mine.json")).model.num_layers == 32


def test_a_bundled_workload_is_found_by_its_name(tmp_path: Path) -> None:
    workload = {"file": "chat-1k", "max_requests": 5}
    assert len(load(write(tmp_path, workload=workload)).workload) == 5


def test_errors_name_the_flag_that_set_the_value() -> None:
    changed = document().override("plan.tp", 0, "--tp")
    with pytest.raises(ConfigError, match=r"^--tp: expected an int >= 1 \(got 0\)$"):
        resolve_experiment(changed)
    assert changed.where("plan.pp") == "x.yaml: plan.pp"


def test_overriding_a_section_forgets_the_flags_below_it() -> None:
    changed = document().override("workload.rate_scale", 2.0, "--rate-scale")
    replaced = changed.override("workload", {"file": "chat-1k"}, "--trace")
    assert replaced.where("workload.rate_scale") == "--trace"
    assert document().data["workload"] == BASE["workload"]


def test_a_plan_larger_than_the_cluster_is_infeasible() -> None:
    with pytest.raises(InfeasiblePlan, match="4 GPUs"):
        resolve_experiment(document(plan={"tp": 4}))


def test_yaml_numbers_and_dates_mean_what_they_look_like() -> None:
    text = "{a: 1e3, b: 1.5e-2, c: 2024-01-01, d: '1e3', e: 1e, f: 12}"
    parsed = {"a": 1000.0, "b": 0.015, "c": "2024-01-01", "d": "1e3", "e": "1e", "f": 12}
    assert parse_yaml(text, "x") == parsed


def test_a_search_takes_the_experiment_around_it() -> None:
    spec = resolve_search(
        document(
            router="least_loaded",
            engine={"max_num_seqs": 64, "gpu_memory_utilization": 0.8},
            slo={"ttft": "1 s"},
            search={"objective": "goodput", "tp": [1, 2], "weight_formats": ["fp8"]},
            workload={"kind": "synthetic", "num_prompts": 3, "request_rate": 1.0},
        )
    )
    assert (spec.objective, spec.tp, spec.weight_formats) == ("goodput", (1, 2), ("fp8",))
    assert spec.max_num_seqs == (64,)
    assert spec.engine["gpu_memory_utilization"] == 0.8
    assert spec.routers == (LeastLoaded(),)
    assert spec.slo.ttft_s == 1.0


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.name)
def test_shipped_experiments_resolve_and_satisfy_the_schema(path: Path) -> None:
    shipped = read_document(path)
    resolve = resolve_search if "search" in shipped.data else resolve_experiment
    resolve(shipped)
    jsonschema.Draft202012Validator(json_schema()).validate(dict(shipped.data))


def test_the_schema_is_json_and_knows_every_kind() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    text = json.dumps(schema, allow_nan=False)
    for registry in (SCHEDULERS, ROUTERS, WORKLOADS):
        for kind in registry:
            assert f'{{"const": "{kind}"' in text
    for name, key in schema["properties"].items():
        assert "description" in key, name


@pytest.mark.parametrize(
    "wrong",
    [
        {"modle": "x"},
        {"plan": {"tp": 0}},
        {"slo": {"ttft": 1}},
        {"router": {"kind": "robin"}},
        {"scheduler": {"kind": "vllm_v1", "polcy": "fcfs"}},
        {"workload": {"kind": "synthetic", "num_prompts": "many"}},
        {"workload": {"kind": "azure"}},
        {"search": {"tp": 3}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_loader_refuses(wrong: dict[str, object]) -> None:
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(BASE | wrong)
    with pytest.raises(ConfigError):
        (resolve_search if "search" in wrong else resolve_experiment)(document(**wrong))


@pytest.mark.parametrize(
    "right",
    [
        {"router": "least_loaded"},
        {"router": "my.module:Router"},
        {"router": {"kind": "my.module:Router", "anything": 1}},
        {"scheduler": {"policy": "priority"}},
        {"workload": "chat-1k"},
        {"workload": {"file": "chat-1k", "rate_scale": 2}},
        {"workload": {"kind": "synthetic", "request_rate": "12 /s", "start": "1 s"}},
        {"slo": {"ttft": "1.5s", "tpot": "2e-2 s"}},
    ],
    ids=str,
)
def test_the_schema_takes_the_short_forms(right: dict[str, object]) -> None:
    jsonschema.Draft202012Validator(json_schema()).validate(BASE | right)
