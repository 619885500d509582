"""The best plan as something to start: commands of other engines, a Kubernetes manifest.

What an engine cannot be told by a flag is said in a comment line before its command, never left
out silently. Flags are those of `configs/deploy/flags.yaml`, which states version and source.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable

import yaml

from simulator.search.candidates import Candidate
from simulator.search.command import HUGGING_FACE_IDS, serve_command, serve_note
from simulator.spec import ModelSpec
from simulator.units import show_bytes

VLLM_IMAGE = "vllm/vllm-openai:v0.33.0"
PORT = 8000
MULTI_NODE = "/vllm-workspace/examples/online_serving/multi-node-serving.sh"
SGLANG_QUANTIZATION = {"fp8": "fp8", "int8": "w8a8_int8", "int4_g128": "awq", "mxfp4": "mxfp4"}
SGLANG_KV = {"fp8": "fp8_e4m3"}


def deploy(target: str, candidate: Candidate, stored: ModelSpec) -> str:
    """The text of a target; `stored` is the model as it is stored."""
    return TARGETS[target](candidate, stored)


def _vllm(candidate: Candidate, stored: ModelSpec) -> str:
    return _script(serve_command(candidate, stored), [])


def _sglang(candidate: Candidate, stored: ModelSpec) -> str:
    plan, settings, model = candidate.plan, candidate.settings, candidate.model
    assert settings is not None
    words = ["python", "-m", "sglang.launch_server", "--model-path", _name(model)]
    words += ["--tp-size", str(plan.tp * plan.attention_dp)]
    if plan.pp > 1:
        words += ["--pp-size", str(plan.pp)]
    if plan.attention_dp > 1:
        words += ["--dp-size", str(plan.attention_dp), "--enable-dp-attention"]
    if plan.ep > 1:
        words += ["--ep-size", str(plan.ep)]
    words += ["--chunked-prefill-size", str(settings.max_num_batched_tokens)]
    words += ["--max-running-requests", str(settings.max_num_seqs)]
    words += ["--mem-fraction-static", f"{settings.gpu_memory_utilization:g}"]
    notes = ["--mem-fraction-static leaves out activations, vLLM's share counts them: lower it"]
    notes[0] += " where memory runs out"
    if model.weight_format != stored.weight_format:
        words += ["--quantization", SGLANG_QUANTIZATION[model.weight_format]]
    if model.kv_format in SGLANG_KV:
        words += ["--kv-cache-dtype", SGLANG_KV[model.kv_format]]
    if settings.max_model_len:
        words += ["--context-length", str(settings.max_model_len)]
    if not settings.prefix_caching:
        words.append("--disable-radix-cache")
    if not settings.cuda_graphs:
        words.append("--disable-cuda-graph")
    if (nodes := _nodes(candidate)) > 1:
        words += ["--nnodes", str(nodes), "--node-rank", "0", "--dist-init-addr", "LEADER:20000"]
        notes.append(f"on each of {nodes} nodes, with its own --node-rank; LEADER is the first")
    return _script(shlex.join(words), [*notes, *_replicas(candidate)])


def _tensorrt(candidate: Candidate, stored: ModelSpec) -> str:
    plan, settings, model = candidate.plan, candidate.settings, candidate.model
    assert settings is not None
    words = ["trtllm-serve", _name(model), "--tp_size", str(plan.tp * plan.attention_dp)]
    notes = []
    if plan.pp > 1:
        words += ["--pp_size", str(plan.pp)]
    if plan.ep > 1:
        words += ["--ep_size", str(plan.ep)]
    words += ["--max_num_tokens", str(settings.max_num_batched_tokens)]
    words += ["--max_batch_size", str(settings.max_num_seqs), "--enable_chunked_prefill"]
    words += ["--kv_cache_free_gpu_memory_fraction", f"{settings.gpu_memory_utilization:g}"]
    notes.append("the memory fraction is of what weights leave free, vLLM's is of all memory")
    if settings.max_model_len:
        words += ["--max_seq_len", str(settings.max_model_len)]
    extra = []
    if plan.attention_dp > 1:
        extra.append("enable_attention_dp: true")
    if not settings.prefix_caching:
        extra.append("kv_cache_config: {enable_block_reuse: false}")
    if extra:
        words += ["--config", "extra.yaml"]
        notes += ["extra.yaml has the lines:", *(f"  {line}" for line in extra)]
    if model.weight_format != stored.weight_format:
        notes.append(f"takes a checkpoint that is {model.weight_format} already: name it instead")
    if (nodes := _nodes(candidate)) > 1:
        notes.append(f"under mpirun or Slurm on {nodes} nodes, with trtllm-llmapi-launch before it")
    return _script(shlex.join(words), [*notes, *_replicas(candidate)])


def _kubernetes(candidate: Candidate, stored: ModelSpec) -> str:
    plan = candidate.plan
    name = "".join(c if c.isalnum() else "-" for c in candidate.model.name.lower())
    labels = {"app": name}
    nodes = _nodes(candidate)
    gpus = plan.gpus_per_replica // nodes
    command = serve_command(candidate, stored) + f" --port {PORT}"
    if nodes == 1:
        body: dict[str, object] = {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name, "labels": labels},
            "spec": {
                "replicas": plan.dp,
                "selector": {"matchLabels": labels},
                "template": _pod(labels, shlex.split(command), gpus, serves=True),
            },
        }
        selector = labels
    else:
        lead = f"bash {MULTI_NODE} leader --ray_cluster_size=$(LWS_GROUP_SIZE); "
        join = f"bash {MULTI_NODE} worker --ray_address=$(LWS_LEADER_ADDRESS)"
        command += " --distributed-executor-backend ray"
        selector = {**labels, "role": "leader"}
        body = {
            "apiVersion": "leaderworkerset.x-k8s.io/v1",
            "kind": "LeaderWorkerSet",
            "metadata": {"name": name, "labels": labels},
            "spec": {
                "replicas": plan.dp,
                "leaderWorkerTemplate": {
                    "size": nodes,
                    "restartPolicy": "RecreateGroupOnPodRestart",
                    "leaderTemplate": _pod(
                        selector, ["sh", "-c", lead + command], gpus, serves=True
                    ),
                    "workerTemplate": _pod(labels, ["sh", "-c", join], gpus, serves=False),
                },
            },
        }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": selector, "ports": [{"port": PORT, "targetPort": PORT}]},
    }
    notes = [f"{candidate.label}: vLLM, {plan.gpus_per_replica} GPUs a replica"]
    if plan.dp > 1:
        notes.append(f"the Service spreads connections; simulated: {candidate.router_name} router")
    head = "".join(f"# {note}\n" for note in notes)
    return head + yaml.safe_dump_all([body, service], sort_keys=False, width=1000)


def _pod(labels: dict[str, str], command: list[str], gpus: int, serves: bool) -> dict[str, object]:
    container: dict[str, object] = {
        "name": "vllm",
        "image": VLLM_IMAGE,
        "command": command,
        "resources": {"limits": {"nvidia.com/gpu": str(gpus)}},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    if serves:
        container["ports"] = [{"containerPort": PORT}]
        container["readinessProbe"] = {"httpGet": {"path": "/health", "port": PORT}}
    volumes = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    return {
        "metadata": {"labels": labels},
        "spec": {"containers": [container], "volumes": volumes},
    }


def _name(model: ModelSpec) -> str:
    return HUGGING_FACE_IDS.get(model.name, model.name)


def _nodes(candidate: Candidate) -> int:
    """Nodes that one replica spans."""
    node = min(group.gpus_per_node for group in candidate.cluster.groups)
    return -(-candidate.plan.gpus_per_replica // node)


def _replicas(candidate: Candidate) -> list[str]:
    notes = []
    if candidate.settings is not None and (size := candidate.settings.kv_offload_bytes):
        notes.append(f"simulated with {show_bytes(size)} of host memory behind the prefix cache")
    if candidate.plan.dp > 1 and (note := serve_note(candidate)):
        notes.append(note)
    return notes


def _script(command: str, notes: list[str]) -> str:
    return "".join(f"# {note}\n" for note in notes) + command + "\n"


TARGETS: dict[str, Callable[[Candidate, ModelSpec], str]] = {
    "vllm": _vllm,
    "sglang": _sglang,
    "tensorrt-llm": _tensorrt,
    "kubernetes": _kubernetes,
}
