"""Groups, settings and reference sums the cost and memory tests share."""

from __future__ import annotations

from simulator.catalog import load_gpu
from simulator.spec import (
    AttentionSpec,
    EngineSettings,
    FfnSpec,
    LayerSpec,
    ModelSpec,
    NodeGroup,
    ParallelPlan,
)

SETTINGS = EngineSettings(max_num_batched_tokens=8192, max_num_seqs=1024)
SMALL = EngineSettings(max_num_batched_tokens=1024, max_num_seqs=128)
ONE = ParallelPlan()


def node_group(gpu: str = "H100-SXM", num_nodes: int = 1, gpus_per_node: int = 8) -> NodeGroup:
    return NodeGroup(num_nodes=num_nodes, gpus_per_node=gpus_per_node, gpu=load_gpu(gpu))


def tiny_model(
    *,
    num_layers: int = 4,
    window: int = 0,
    num_experts: int = 0,
    num_kv_heads: int = 4,
    weight_format: str = "bf16",
) -> ModelSpec:
    """Small round sizes, so that counts can be worked out by hand."""
    experts = {"num_experts": num_experts, "experts_per_token": 2} if num_experts else {}
    full = LayerSpec(
        attention=AttentionSpec(num_q_heads=8, num_kv_heads=num_kv_heads, head_dim=64),
        ffn=FfnSpec(ffn_size=1024, **experts),
    )
    sliding = LayerSpec(
        attention=AttentionSpec(
            num_q_heads=8, num_kv_heads=num_kv_heads, head_dim=64, window=window
        ),
        ffn=full.ffn,
    )
    return ModelSpec(
        name="tiny",
        architecture="LlamaForCausalLM",
        hidden_size=512,
        vocab_size=1000,
        layer_kinds=(full, sliding) if window else (full,),
        layer_order=tuple(i % 2 if window else 0 for i in range(num_layers)),
        tied_embeddings=False,
        max_context_tokens=8192,
        weight_format=weight_format,
    )
