"""How many KV blocks a GPU has room for, counted as vLLM's memory profiler counts.

memory as reported * gpu_memory_utilization - weights - peak activations of the profile run - CUDA
graphs - what is allocated outside the tensor allocator, over the bytes of a block. The CUDA
context is taken before vLLM's first reading of free memory and is outside this budget there too.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from simulator import params
from simulator.draft import DraftSpec, split_draft
from simulator.errors import InfeasiblePlan
from simulator.graphs import graph_sizes
from simulator.placement import check_model, stage_layers
from simulator.sharding import embedding_work, layer_work, logits_work
from simulator.spec import EngineSettings, GpuSpec, ModelSpec, ParallelPlan
from simulator.units import show_bytes
from simulator.work import ACTIVATION_BYTES, attention_work

MIB = 2**20

# Peak of vLLM's sampler dry run with top-k and top-p: logits in 16 and 32 bits, their sort with
# 64-bit indices, softmax, cumulative sum and masks. Two published logs of vLLM give 40 bytes a
# logit: 1.26 GiB for Llama-3-8B (256 rows), 9.96 GiB for Gemma-3-4B (1,024 rows).
SAMPLER_BYTES_PER_LOGIT = 40.0
MOE_CHUNK_TOKENS = 16384  # tokens vLLM's fused MoE works on at a time
# One captured graph piece; a layer is one piece at every size. vLLM logs 0.65 GiB for Gemma-3-4B
# (34 layers, 67 sizes) and 1.3 GiB for Llama-4-Maverick (48 layers).
GRAPH_BYTES_PER_LAYER = 0.27 * MIB
# Outside the tensor allocator: cuBLAS and attention workspaces and loaded kernels (0.07-0.16 GiB in
# vLLM logs of one GPU), and with several GPUs the buffers of NCCL and of the custom all-reduce.
WORKSPACE_BYTES = 100 * MIB
COMMUNICATION_BYTES = 400 * MIB


class KvType(NamedTuple):
    """Layers that keep the same tokens."""

    window: int  # 0 = all tokens
    bytes_per_token: float  # of all of them, on the tightest GPU


@dataclass(frozen=True, slots=True, kw_only=True)
class KvCapacity:
    """Memory of the tightest GPU, and the KV blocks every attention rank gets."""

    num_blocks: int  # pages of one pool, per attention rank
    block_bytes: float  # one page on the tightest GPU
    tokens: int  # longest single sequence the pool holds
    weight_bytes: float
    activation_bytes: float
    graph_bytes: float
    other_bytes: float
    kv_bytes: float  # left for the pool
    # A sequence of n tokens holds, in blocks of block_tokens, blocks_full_weight * ceil(n / block)
    # pages plus weight * min(ceil(n / block), ceil(window / block) + 1) for each window.
    blocks_full_weight: int
    window_weights: tuple[tuple[int, int], ...]  # (window, weight)
    types: tuple[KvType, ...]  # by window


def kv_capacity(
    model: ModelSpec,
    plan: ParallelPlan,
    gpu: GpuSpec,
    settings: EngineSettings,
    *,
    draft: DraftSpec | None = None,
) -> KvCapacity:
    """KV pages of one replica of the plan.

    A drafter's weights lie beside the target's, and its KV in the same blocks.

    Raises:
        InfeasiblePlan: the plan cannot split the model, or memory does not suffice for the
            weights, for one block, or for one request of `settings.max_model_len`.
    """
    check_model(model, plan)
    groups = _groups(model)
    stages = [_stage(model, plan, gpu, settings, groups, index, draft) for index in range(plan.pp)]
    tightest = min(stages, key=lambda stage: stage.num_blocks)
    if settings.max_model_len > tightest.tokens:
        raise InfeasiblePlan(
            f"KV memory of {show_bytes(tightest.kv_bytes)} per GPU holds {tightest.tokens} tokens, "
            f"less than one request of max_model_len={settings.max_model_len}"
        )
    return tightest


def stage_weight_bytes(model: ModelSpec, plan: ParallelPlan, stage: int) -> float:
    """Weights on one GPU of a pipeline stage, after tensor and expert sharding.

    Matrices and embeddings are divided as `work` divides them; norms and biases are whole.
    """
    first, last = stage_layers(model.num_layers, plan.pp)[stage]
    total = 0.0
    for kind, count in model.kind_counts(first, last).items():
        layer = model.layer_kinds[kind]
        plain = params.norm_params(layer, model) + params.bias_params(layer, model)
        plain += layer.ffn.num_experts // plan.ep * params.expert_bias_params(layer, model)
        work = layer_work(layer, model, plan, gpus_per_node=plan.tp)
        total += count * (work.weight_bytes + ACTIVATION_BYTES * plain)
    ends_here = stage == plan.pp - 1
    if stage == 0 or (ends_here and model.tied_embeddings):
        total += sum(op.weight_bytes for op in embedding_work(model, plan, plan.tp))
    if ends_here and not model.tied_embeddings:
        total += sum(op.weight_bytes for op in logits_work(model, plan, plan.tp))
    return total


def activation_bytes(model: ModelSpec, plan: ParallelPlan, settings: EngineSettings) -> float:
    """Peak activations of the profile run: its widest layer, or its sampler.

    While an FFN runs, the residual, its input, the gate and up outputs and their product are alive.
    """
    tokens = settings.max_num_batched_tokens
    widest = 0.0
    for layer in model.layer_kinds:
        ffn = layer.ffn
        parts = 3 if ffn.gated else 2
        if ffn.num_experts:
            pooled = min(tokens * plan.attention_dp, MOE_CHUNK_TOKENS)
            sliced = ffn.ffn_size / (plan.gpus_per_stage if plan.ep == 1 else 1)
            rows = pooled * ffn.experts_per_token
            inner = rows * max(parts * sliced, model.hidden_size + sliced)
            inner += (pooled - tokens if pooled > tokens else 0) * model.hidden_size
            inner += tokens * parts * ffn.shared_ffn_size / plan.tp
        else:
            inner = tokens * parts * ffn.ffn_size / plan.tp
        widest = max(widest, 2.0 * tokens * model.hidden_size + inner)
    rows = min(settings.max_num_seqs, tokens)
    return max(ACTIVATION_BYTES * widest, SAMPLER_BYTES_PER_LOGIT * rows * model.vocab_size)


def _groups(model: ModelSpec) -> dict[int, int]:
    """KV-cache groups of each window (0 = full), as vLLM's hybrid manager forms them.

    All groups have one size: the smallest number of layers of any type, or the largest where that
    is less than 1.5 times it (the last group is padded).
    """
    counts = Counter(model.layer_kinds[kind].attention.window for kind in model.layer_order)
    fewest, most = min(counts.values()), max(counts.values())
    size = most if most < 1.5 * fewest else fewest
    return {window: -(-count // size) for window, count in sorted(counts.items())}


def _stage(
    model: ModelSpec,
    plan: ParallelPlan,
    gpu: GpuSpec,
    settings: EngineSettings,
    groups: dict[int, int],
    stage: int,
    draft: DraftSpec | None,
) -> KvCapacity:
    """Capacity were every stage like this one."""
    first, last = stage_layers(model.num_layers, plan.pp)[stage]
    sizes = graph_sizes(gpu, settings) if settings.reserve_graphs else ()
    terms = {
        "weights": stage_weight_bytes(model, plan, stage),
        "activations": activation_bytes(model, plan, settings),
        "CUDA graphs": GRAPH_BYTES_PER_LAYER * len(sizes) * (last - first),
        "buffers": WORKSPACE_BYTES + (COMMUNICATION_BYTES if plan.gpus_per_replica > 1 else 0.0),
    }
    block_bytes = _block_bytes(model, plan, settings, groups, first, last)
    if draft is not None:
        terms["draft weights"] = draft_weight_bytes(draft, plan)
        block_bytes += settings.block_tokens * draft_kv_bytes(draft, plan)
    kv_bytes = _left_over(terms, block_bytes, gpu, settings)
    num_blocks = settings.num_blocks or int(kv_bytes // block_bytes)
    if settings.num_blocks:
        kv_bytes = num_blocks * block_bytes
    windows = tuple((window, num) for window, num in groups.items() if window)
    full = groups.get(0, 0)
    return KvCapacity(
        num_blocks=num_blocks,
        block_bytes=block_bytes,
        tokens=_longest(model, settings, num_blocks, full, windows),
        weight_bytes=terms["weights"] + terms.get("draft weights", 0.0),
        activation_bytes=terms["activations"],
        graph_bytes=terms["CUDA graphs"],
        other_bytes=terms["buffers"],
        kv_bytes=kv_bytes,
        blocks_full_weight=full,
        window_weights=windows,
        types=_types(model, plan, draft, first, last),
    )


def _types(
    model: ModelSpec, plan: ParallelPlan, draft: DraftSpec | None, first: int, last: int
) -> tuple[KvType, ...]:
    """Types of a stage's layers; a drafter's keep every token."""
    sizes: dict[int, list[float]] = {}
    for kind in model.layer_order[first:last]:
        heads = model.layer_kinds[kind].attention
        work = attention_work(heads, model.kv_format, plan.tp)
        sizes.setdefault(heads.window, []).append(work.kv_bytes_per_token)
    if draft is not None and (extra := draft_kv_bytes(draft, plan)):
        sizes.setdefault(0, []).append(extra)
    return tuple(KvType(window, sum(each)) for window, each in sorted(sizes.items()))


def draft_weight_bytes(draft: DraftSpec, plan: ParallelPlan) -> float:
    """Weights a drafter adds on one GPU; what it shares with the target is there already."""
    if draft.model is None:
        return 0.0
    split, model = split_draft(draft, plan), draft.model
    extra = ACTIVATION_BYTES * sum(a * b for a, b in draft.extra_gemms) / split.tp
    if not draft.owns_layers:
        return extra
    total = stage_weight_bytes(model, split, 0) + extra
    if not draft.owns_vocabulary:
        total -= sum(op.weight_bytes for op in embedding_work(model, split, split.tp))
        if not model.tied_embeddings:
            total -= sum(op.weight_bytes for op in logits_work(model, split, split.tp))
    return total


def draft_kv_bytes(draft: DraftSpec, plan: ParallelPlan) -> float:
    """KV bytes a token that a drafter adds on one GPU."""
    model = draft.model
    if model is None:
        return 0.0
    split = split_draft(draft, plan)
    each = [
        attention_work(model.layer_kinds[kind].attention, model.kv_format, split.tp)
        for kind in model.layer_order
    ]
    own = sum(work.kv_bytes_per_token for work in each) if draft.owns_layers else 0.0
    return own + draft.extra_attention * each[-1].kv_bytes_per_token


def _left_over(
    terms: dict[str, float], block_bytes: float, gpu: GpuSpec, settings: EngineSettings
) -> float:
    """Bytes the terms leave for the KV pool; InfeasiblePlan where that is not one block."""
    budget = gpu.memory_bytes * settings.gpu_memory_utilization
    share = f"{settings.gpu_memory_utilization:g} of {gpu.name}'s {show_bytes(gpu.memory_bytes)}"
    weights = show_bytes(terms["weights"])
    if terms["weights"] > budget:
        raise InfeasiblePlan(f"weights {weights} per GPU exceed {show_bytes(budget)} ({share})")
    left = budget - sum(terms.values())
    if left < block_bytes:
        listed = ", ".join(f"{name} {show_bytes(size)}" for name, size in terms.items())
        raise InfeasiblePlan(
            f"{listed} per GPU leave no room for a KV block of {show_bytes(block_bytes)} in "
            f"{show_bytes(budget)} ({share})"
        )
    return left


def _block_bytes(
    model: ModelSpec,
    plan: ParallelPlan,
    settings: EngineSettings,
    groups: dict[int, int],
    first: int,
    last: int,
) -> float:
    """One page on a GPU of a stage: block_tokens tokens of one layer of every group's share.

    KV heads replicate where tp exceeds them; the MLA latent is whole on every GPU.
    """
    kinds = [model.layer_kinds[kind] for kind in model.layer_order[first:last]]
    per_token = max(
        attention_work(layer.attention, model.kv_format, plan.tp).kv_bytes_per_token
        for layer in kinds
    )
    counts = Counter(layer.attention.window for layer in kinds)
    layers = max(-(-count // groups[window]) for window, count in counts.items())
    return settings.block_tokens * per_token * layers


def _longest(
    model: ModelSpec,
    settings: EngineSettings,
    num_blocks: int,
    full: int,
    windows: tuple[tuple[int, int], ...],
) -> int:
    """Tokens of the longest sequence whose pages fit the pool."""
    block = settings.block_tokens
    caps = [(-(-window // block) + 1, weight) for window, weight in windows]

    def pages(blocks: int) -> int:
        return full * blocks + sum(min(blocks, cap) * weight for cap, weight in caps)

    if not full and pages(max(cap for cap, _ in caps)) <= num_blocks:
        return max(model.max_context_tokens, settings.max_model_len)
    low, high = 0, num_blocks
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if pages(middle) <= num_blocks else (low, middle - 1)
    return low * block
