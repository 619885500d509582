"""The ops of a layer, an embedding and an LM head on one GPU of a parallel plan.

Tensor parallelism is Megatron's (arXiv 1909.08053) as vLLM runs it: heads, FFN width and vocabulary
split over tp, two all-reduces a layer; experts whole over ep GPUs or sliced over all of a stage.
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.spec import (
    KV_FORMATS,
    AttentionSpec,
    FfnSpec,
    LayerSpec,
    ModelSpec,
    ParallelPlan,
)
from simulator.work import (
    ACTIVATION_BYTES,
    AttentionWork,
    Collective,
    Elementwise,
    ExpertGemm,
    Gemm,
    Op,
    attention_work,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWork:
    """One layer kind: what depends on a rank's tokens, on all ranks' tokens, and attention."""

    linear: tuple[Op, ...]
    expert: tuple[Op, ...]  # empty unless attention ranks pool their tokens for the experts
    attention: AttentionWork

    @property
    def weight_bytes(self) -> float:
        return sum(op.weight_bytes for op in self.linear + self.expert)


def _projections(spec: AttentionSpec, hidden: int, fmt: str, tp: int) -> tuple[list[Gemm], Gemm]:
    """Input projections (fused as vLLM does) and the output projection."""
    heads = spec.num_q_heads // tp
    mla = spec.mla
    if mla is None:
        kv_heads = max(1, spec.num_kv_heads // tp)
        qkv = (heads + 2 * kv_heads) * spec.head_dim
        return (
            [Gemm(name="qkv_proj", in_size=hidden, out_size=qkv, format=fmt)],
            Gemm(name="out_proj", in_size=heads * spec.head_dim, out_size=hidden, format=fmt),
        )
    latent = mla.kv_lora_rank + mla.rope_head_dim
    query = heads * (mla.nope_head_dim + mla.rope_head_dim)
    first = mla.q_lora_rank or query
    gemms = [Gemm(name="q_kv_a_proj", in_size=hidden, out_size=first + latent, format=fmt)]
    if mla.q_lora_rank:
        gemms.append(Gemm(name="q_b_proj", in_size=first, out_size=query, format=fmt))
    # Absorbed into queries and outputs in decode, applied to latents in prefill: the same weights
    # and the same FLOPs a token, so one record serves both.
    rank = mla.kv_lora_rank
    gemms += [
        Gemm(name="k_up", in_size=mla.nope_head_dim, out_size=rank, format=fmt, batch=heads),
        Gemm(name="v_up", in_size=rank, out_size=mla.v_head_dim, format=fmt, batch=heads),
    ]
    out = Gemm(name="out_proj", in_size=heads * mla.v_head_dim, out_size=hidden, format=fmt)
    return gemms, out


def _ffn(name: str, size: int, gated: bool, hidden: int, fmt: str) -> list[Op]:
    up = size * (2 if gated else 1)
    return [
        Gemm(name=f"{name}_up", in_size=hidden, out_size=up, format=fmt),
        Elementwise(name=f"{name}_act", bytes_per_token=ACTIVATION_BYTES * (up + size)),
        Gemm(name=f"{name}_down", in_size=size, out_size=hidden, format=fmt),
    ]


def _experts(
    spec: FfnSpec, model: ModelSpec, plan: ParallelPlan, skew: float, popularity: float
) -> list[Op]:
    """Grouped GEMMs of the routed experts: whole experts over ep GPUs, or slices of every one."""
    slices = plan.gpus_per_stage if plan.ep == 1 else 1
    size = spec.ffn_size // slices
    up = size * (2 if spec.gated else 1)
    hidden, k = model.hidden_size, spec.experts_per_token

    def gemm(name: str, in_size: int, out_size: int) -> ExpertGemm:
        return ExpertGemm(
            name=name,
            in_size=in_size,
            out_size=out_size,
            format=model.expert_weight_format,
            num_experts=spec.num_experts,
            local_experts=spec.num_experts // plan.ep,
            experts_per_token=k,
            skew=skew if plan.ep > 1 else 0.0,
            popularity=popularity,
        )

    # The activation and the weighted sum see the mean GPU's rows: they are small.
    rows = k / plan.ep
    return [
        # Top-k of the router's scores, alignment to tiles, sort.
        Elementwise(name="expert_sort", bytes_per_token=16.0 * k, kernels=3),
        gemm("expert_up", hidden, up),
        Elementwise(name="expert_act", bytes_per_token=ACTIVATION_BYTES * rows * (up + size)),
        gemm("expert_down", size, hidden),
        Elementwise(name="expert_sum", bytes_per_token=ACTIVATION_BYTES * hidden * (rows + 1)),
    ]


def _local(plan: ParallelPlan, gpus_per_node: int) -> tuple[int, int]:
    """Members of a tp group, and of an attention_dp group, that share a node."""
    tp = min(plan.tp, gpus_per_node)
    return tp, max(1, min(plan.attention_dp, gpus_per_node // plan.tp))


def _all_reduce(name: str, width: int, plan: ParallelPlan, gpus_per_node: int) -> list[Op]:
    """Sum of [tokens, width] over the tp group; nothing to do alone."""
    if plan.tp == 1:
        return []
    return [
        Collective(
            name=name,
            kind="all_reduce",
            bytes_per_token=ACTIVATION_BYTES * width,
            num_gpus=plan.tp,
            local_gpus=_local(plan, gpus_per_node)[0],
        )
    ]


def _attention_block(
    layer: LayerSpec, model: ModelSpec, plan: ParallelPlan, attention: AttentionWork
) -> list[Op]:
    """Norms and projections around attention; attention itself is priced apart."""
    hidden, fmt = model.hidden_size, model.weight_format
    inputs, out = _projections(layer.attention, hidden, fmt, plan.tp)
    # Norm: read x and residual, write both (fused add). Extra norms (Gemma) are more of the same.
    norm = Elementwise(name="norm", bytes_per_token=4 * ACTIVATION_BYTES * hidden)
    rope = Elementwise(name="rope", bytes_per_token=2 * ACTIVATION_BYTES * inputs[0].out_size)
    stored = attention.kv_bytes_per_token
    read = stored * ACTIVATION_BYTES * 8 / KV_FORMATS[model.kv_format].bits
    write = Elementwise(name="kv_write", bytes_per_token=read + stored)
    ops: list[Op] = [*[norm] * layer.num_norms, *inputs, rope, write, out]
    if layer.attention.qk_norm or layer.attention.mla is not None:
        # Of Q and K by head, or of the two latents.
        size = 2 * ACTIVATION_BYTES * inputs[0].out_size
        ops.append(Elementwise(name="qk_norm", bytes_per_token=size))
    return ops


def _pooled(
    experts: list[Op], model: ModelSpec, plan: ParallelPlan, gpus_per_node: int
) -> tuple[Op, ...]:
    """Experts between the gather of all ranks' tokens and the return of their sums.

    vLLM's default all-to-all backend, allgather_reducescatter: every GPU sees every rank's tokens,
    then partial sums return to their rank, whose own tp group adds them up.
    """
    gather, scatter = (
        Collective(
            name=f"expert_{kind}",
            kind=kind,
            bytes_per_token=ACTIVATION_BYTES * model.hidden_size,
            num_gpus=plan.attention_dp,
            local_gpus=_local(plan, gpus_per_node)[1],
        )
        for kind in ("all_gather", "reduce_scatter")
    )
    return (gather, *experts, scatter)


def layer_work(
    layer: LayerSpec,
    model: ModelSpec,
    plan: ParallelPlan,
    gpus_per_node: int,
    skew: float = 0.0,
    popularity: float = 0.0,
) -> LayerWork:
    """Ops of one layer of this kind, in about the order they run."""
    hidden, fmt, ffn = model.hidden_size, model.weight_format, layer.ffn
    attention = attention_work(layer.attention, model.kv_format, plan.tp)
    ops = _attention_block(layer, model, plan, attention)
    ops += _all_reduce("attention_all_reduce", hidden, plan, gpus_per_node)
    pooled: tuple[Op, ...] = ()
    if ffn.num_experts == 0:
        ops += _ffn("ffn", ffn.ffn_size // plan.tp, ffn.gated, hidden, fmt)
    else:
        ops.append(Gemm(name="router", in_size=hidden, out_size=ffn.num_experts, format="bf16"))
        if ffn.shared_ffn_size:
            ops += _ffn("shared", ffn.shared_ffn_size // plan.tp, ffn.gated, hidden, fmt)
        experts = _experts(ffn, model, plan, skew, popularity)
        if plan.attention_dp == 1:
            ops += experts
        else:
            pooled = _pooled(experts, model, plan, gpus_per_node)
    ops += _all_reduce("ffn_all_reduce", hidden, plan, gpus_per_node)
    return LayerWork(linear=tuple(ops), expert=pooled, attention=attention)


def embedding_work(model: ModelSpec, plan: ParallelPlan, gpus_per_node: int) -> tuple[Op, ...]:
    """Embedding look-up, vocabulary sharded over tp, then its all-reduce (vLLM)."""
    width = model.embedding_size or model.hidden_size
    vocab = padded_vocab(model) // plan.tp
    lookup = Elementwise(
        name="embedding",
        bytes_per_token=2 * ACTIVATION_BYTES * width,
        weight_bytes=ACTIVATION_BYTES * (vocab * width + model.num_learned_positions * width),
    )
    return (lookup, *_all_reduce("embedding_all_reduce", width, plan, gpus_per_node))


SORT_KERNELS = 25  # of top-k and top-p


def logits_work(
    model: ModelSpec, plan: ParallelPlan, gpus_per_node: int, sort_bytes: float = 0.0
) -> tuple[Op, ...]:
    """LM head on the sampled rows, gather of the shards over tp, and sampling.

    Sampling passes over a row of logits: 16-bit read, 32-bit write, arg-max read, softmax read and
    write, 18 bytes a logit, in about ten kernels (vLLM's sampler); top-k and top-p
    sort it as well, with `sort_bytes` of traffic a logit.
    """
    width = model.embedding_size or model.hidden_size
    vocab = padded_vocab(model)
    head = Gemm(name="lm_head", in_size=width, out_size=vocab // plan.tp, format="bf16")
    sampling = Elementwise(
        name="sampling",
        bytes_per_token=(18.0 + sort_bytes) * vocab,
        kernels=10 + SORT_KERNELS * (sort_bytes > 0),
    )
    if plan.tp == 1:
        return (head, sampling)
    gather = Collective(
        name="logits_all_gather",
        kind="all_gather",
        bytes_per_token=ACTIVATION_BYTES * vocab,
        num_gpus=plan.tp,
        local_gpus=_local(plan, gpus_per_node)[0],
    )
    return (head, gather, sampling)


def padded_vocab(model: ModelSpec) -> int:
    """Vocabulary rounded up to 64 rows (vLLM `pad_vocab_size`)."""
    return -(-model.vocab_size // 64) * 64
