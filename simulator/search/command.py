"""The `vllm serve` line of a plan (flags of vLLM 0.33)."""

from __future__ import annotations

import shlex

from simulator.defaults import default_settings
from simulator.search.candidates import Candidate
from simulator.spec import ModelSpec

QUANTIZATION_FLAG = {
    "fp8": "fp8",
    "int8": "compressed-tensors",
    "int4_g128": "awq",
    "mxfp4": "mxfp4",
}
HUGGING_FACE_IDS = {
    "codellama-34b": "codellama/CodeLlama-34b-hf",
    "deepseek-v2-lite": "deepseek-ai/DeepSeek-V2-Lite",
    "deepseek-v3": "deepseek-ai/DeepSeek-V3",
    "falcon-180b": "tiiuae/falcon-180B",
    "gemma-2-27b": "google/gemma-2-27b",
    "gemma-2-2b": "google/gemma-2-2b",
    "gemma-2-9b": "google/gemma-2-9b",
    "gpt-oss-120b": "openai/gpt-oss-120b",
    "gpt-oss-20b": "openai/gpt-oss-20b",
    "llama-2-13b": "meta-llama/Llama-2-13b-hf",
    "llama-2-70b": "meta-llama/Llama-2-70b-hf",
    "llama-2-7b": "meta-llama/Llama-2-7b-hf",
    "llama-3-70b": "meta-llama/Meta-Llama-3-70B",
    "llama-3-8b": "meta-llama/Meta-Llama-3-8B",
    "llama-3.1-405b": "meta-llama/Llama-3.1-405B",
    "llama-3.1-70b": "meta-llama/Llama-3.1-70B",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B",
    "llama-3.3-70b": "meta-llama/Llama-3.3-70B-Instruct",
    "llama-4-scout": "meta-llama/Llama-4-Scout-17B-16E",
    "ministral-8b": "mistralai/Ministral-8B-Instruct-2410",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "mistral-7b-v0.1": "mistralai/Mistral-7B-v0.1",
    "mistral-7b-v0.3": "mistralai/Mistral-7B-v0.3",
    "mistral-nemo-12b": "mistralai/Mistral-Nemo-Base-2407",
    "mixtral-8x22b": "mistralai/Mixtral-8x22B-v0.1",
    "mixtral-8x7b": "mistralai/Mixtral-8x7B-v0.1",
    "opt-13b": "facebook/opt-13b",
    "opt-66b": "facebook/opt-66b",
    "qwen2.5-72b": "Qwen/Qwen2.5-72B",
    "qwen2.5-7b": "Qwen/Qwen2.5-7B",
    "qwen3-14b": "Qwen/Qwen3-14B",
    "qwen3-235b-a22b": "Qwen/Qwen3-235B-A22B",
    "qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B",
    "qwen3-32b": "Qwen/Qwen3-32B",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "yi-34b": "01-ai/Yi-34B",
}


def serve_command(candidate: Candidate, stored: ModelSpec) -> str:
    """What to type to serve one replica of a feasible plan; `stored` is the model as it is stored.

    Attention ranks are vLLM's own data parallelism; replicas behind a router are separate servers,
    see `serve_note`.
    """
    words = ["vllm", "serve", HUGGING_FACE_IDS.get(candidate.model.name, candidate.model.name)]
    for flag, value in _flags(candidate, stored):
        words += [flag, value] if value else [flag]
    return shlex.join(words)


def serve_note(candidate: Candidate) -> str:
    """What the command leaves open: how many servers, on how many nodes, behind what."""
    plan = candidate.plan
    parts = []
    if plan.dp > 1:
        parts.append(
            f"start {plan.dp} such servers, {plan.gpus_per_replica} GPUs each, "
            f"behind a {candidate.router_name} router"
        )
    node = min(group.gpus_per_node for group in candidate.cluster.groups)
    if plan.gpus_per_replica > node:
        parts.append(f"a replica spans {-(-plan.gpus_per_replica // node)} nodes")
    if candidate.note:
        parts.append(candidate.note)
    return "; ".join(parts)


def _flags(candidate: Candidate, stored: ModelSpec) -> list[tuple[str, str]]:
    plan, settings = candidate.plan, candidate.settings
    assert settings is not None
    default = default_settings(candidate.cluster.groups[0].gpu)
    flags = [("--tensor-parallel-size", str(plan.tp))]
    if plan.pp > 1:
        flags.append(("--pipeline-parallel-size", str(plan.pp)))
    if plan.attention_dp > 1:
        flags.append(("--data-parallel-size", str(plan.attention_dp)))
    if plan.ep > 1:
        flags.append(("--enable-expert-parallel", ""))
    flags += [
        ("--max-num-batched-tokens", str(settings.max_num_batched_tokens)),
        ("--max-num-seqs", str(settings.max_num_seqs)),
        ("--gpu-memory-utilization", f"{settings.gpu_memory_utilization:g}"),
    ]
    flags += _format_flags(candidate.model, stored)
    if settings.max_model_len:
        flags.append(("--max-model-len", str(settings.max_model_len)))
    if settings.block_tokens != default.block_tokens:
        flags.append(("--block-size", str(settings.block_tokens)))
    if settings.num_blocks:
        flags.append(("--num-gpu-blocks-override", str(settings.num_blocks)))
    if not settings.prefix_caching:
        flags.append(("--no-enable-prefix-caching", ""))
    if settings.kv_offload_bytes:
        flags.append(("--kv-offloading-size", f"{settings.kv_offload_bytes / 2**30:g}"))
    if not settings.cuda_graphs:
        flags.append(("--enforce-eager", ""))
    return flags


def _format_flags(model: ModelSpec, stored: ModelSpec) -> list[tuple[str, str]]:
    flags = []
    if model.weight_format != stored.weight_format and model.weight_format in QUANTIZATION_FLAG:
        flags.append(("--quantization", QUANTIZATION_FLAG[model.weight_format]))
    if model.kv_format not in ("bf16", "fp16"):
        flags.append(("--kv-cache-dtype", model.kv_format))
    return flags
