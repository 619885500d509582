"""The best plan as commands of other engines and as a manifest: only flags that exist."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import yaml

from simulator.catalog import load_model
from simulator.cli import run
from simulator.search.candidates import Candidate, candidates
from simulator.search.deploy import SGLANG_KV, SGLANG_QUANTIZATION, TARGETS, deploy
from tests.simulator.search_support import small_search

ROOT = Path(__file__).parents[2]
KNOWN = yaml.safe_load((ROOT / "configs" / "deploy" / "flags.yaml").read_text())
SMALL = ["search", "--model", "llama-3.1-8b", "--cluster", "1xH100-SXM", "--trace", "chat-1k"]
SMALL += ["--max-requests", "20", "--jobs", "1"]
PLANS = {
    "spread": ("deepseek-v3", "2x8xH200-SXM", "tp4-adp4-ep16", {}),
    "quantised": (
        "llama-3.1-8b",
        "4xH100-SXM",
        "tp2-dp2 fp8 kv-fp8 2048-tok",
        {
            "weight_formats": ("fp8",),
            "kv_formats": ("fp8",),
            "engine": {"max_model_len": 4096, "prefix_caching": False, "cuda_graphs": False},
        },
    ),
}


def the_plan(name: str) -> tuple[Candidate, str]:
    model, cluster, label, changes = PLANS[name]
    spec = small_search(model, cluster, **changes)
    (found,) = [c for c in candidates(spec) if c.label == label]
    return found, model


def command(target: str, name: str) -> tuple[list[str], str]:
    """Words of the command, and the comments above it."""
    plan, model = the_plan(name)
    lines = deploy(target, plan, load_model(model)).splitlines()
    assert all(line.startswith("# ") for line in lines[:-1])
    return shlex.split(lines[-1]), "\n".join(lines[:-1])


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("target", KNOWN)
def test_every_flag_is_one_of_the_engine(target: str, name: str) -> None:
    words, _ = command(target, name)
    flags = {word for word in words[1:] if word.startswith("--")}
    assert set() == flags - set(KNOWN[target]["flags"])
    assert 4 < len(flags)


def test_every_format_is_one_of_sglang() -> None:
    values = KNOWN["sglang"]["values"]
    assert set() == set(SGLANG_QUANTIZATION.values()) - set(values["--quantization"])
    assert set() == set(SGLANG_KV.values()) - set(values["--kv-cache-dtype"])


def test_sglang_counts_attention_ranks_within_its_tensor_parallel_size() -> None:
    words, notes = command("sglang", "spread")
    text = " ".join(words)
    assert (
        "python -m sglang.launch_server --model-path deepseek-ai/DeepSeek-V3 --tp-size 16" in text
    )
    assert "--dp-size 4 --enable-dp-attention --ep-size 16" in text
    assert "--nnodes 2 --node-rank 0 --dist-init-addr LEADER:20000" in text
    assert "--node-rank; LEADER is the first" in notes
    text = " ".join(command("sglang", "quantised")[0])
    assert "--tp-size 2 --chunked-prefill-size 2048" in text
    assert "--quantization fp8 --kv-cache-dtype fp8_e4m3 --context-length 4096" in text
    assert text.endswith("--disable-radix-cache --disable-cuda-graph")


def test_tensorrt_llm_says_what_no_flag_says() -> None:
    words, notes = command("tensorrt-llm", "spread")
    assert "--tp_size 16 --ep_size 16" in " ".join(words)
    assert "enable_attention_dp: true" in notes
    assert "2 nodes" in notes
    words, notes = command("tensorrt-llm", "quantised")
    assert "--max_seq_len 4096 --config extra.yaml" in " ".join(words)
    assert "enable_block_reuse: false" in notes
    assert "a checkpoint that is fp8 already" in notes
    assert "start 2 such servers" in notes


def test_a_manifest_has_a_deployment_on_one_node_and_a_leader_and_workers_on_two() -> None:
    plan, model = the_plan("quantised")
    workload, service = yaml.safe_load_all(deploy("kubernetes", plan, load_model(model)))
    assert ("Deployment", 2) == (workload["kind"], workload["spec"]["replicas"])
    pod = workload["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert {"nvidia.com/gpu": "2"} == container["resources"]["limits"]
    assert ["vllm", "serve"] == container["command"][:2]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert workload["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    plan, model = the_plan("spread")
    workload, service = yaml.safe_load_all(deploy("kubernetes", plan, load_model(model)))
    group = workload["spec"]["leaderWorkerTemplate"]
    assert ("LeaderWorkerSet", 2) == (workload["kind"], group["size"])
    for pod in (group["leaderTemplate"], group["workerTemplate"]):
        (container,) = pod["spec"]["containers"]
        assert {"nvidia.com/gpu": "8"} == container["resources"]["limits"]
    assert service["spec"]["selector"] == group["leaderTemplate"]["metadata"]["labels"]


def test_search_prints_it_or_writes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == run([*SMALL, "--deploy", "sglang"])
    assert "python -m sglang.launch_server --model-path" in capsys.readouterr().out
    file = tmp_path / "serve.yaml"
    assert 0 == run([*SMALL, "--deploy", "kubernetes", "--deploy-out", str(file), "--json"])
    assert file.read_text() == json.loads(capsys.readouterr().out)["deploy"]
    assert 2 == run([*SMALL, "--deploy", "triton"])
    assert "--deploy: expected one of " + ", ".join(TARGETS) in capsys.readouterr().err
    assert 2 == run([*SMALL, "--deploy-out", str(file)])
    assert "--deploy-out: expected --deploy" in capsys.readouterr().err
