"""Exact work of an op on one GPU: FLOPs and bytes, as small frozen records.

Counts only: how long they take is `simulator.costs`, which ops a layer has is `simulator.sharding`.
A multiply-add is 2 FLOPs. Methods take the number of tokens as a float array, so one record prices
every iteration size at once. Activations are 16-bit; everything is per GPU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.spec import KV_FORMATS, WEIGHT_FORMATS, AttentionSpec

Tokens = NDArray[np.float64]

ACTIVATION_BYTES = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gemm:
    """`batch` independent products [tokens, in_size] x [in_size, out_size]."""

    name: str
    in_size: int
    out_size: int
    format: str  # key of WEIGHT_FORMATS
    batch: int = 1  # heads of an absorbed MLA projection

    @property
    def weight_bytes(self) -> float:
        return self.batch * self.in_size * self.out_size * WEIGHT_FORMATS[self.format].bits / 8

    def flops(self, tokens: Tokens) -> Tokens:
        return 2.0 * self.batch * self.in_size * self.out_size * tokens

    def activation_bytes(self, tokens: Tokens) -> Tokens:
        return ACTIVATION_BYTES * self.batch * (self.in_size + self.out_size) * tokens

    def memory_bytes(self, tokens: Tokens) -> Tokens:
        return self.weight_bytes + self.activation_bytes(tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertGemm:
    """One of the two grouped GEMMs of the routed experts, on the busiest GPU of the group."""

    name: str
    in_size: int
    out_size: int
    format: str
    num_experts: int  # of the layer
    local_experts: int  # held by one GPU
    experts_per_token: int
    skew: float = 0.0  # extra share of tokens on the hottest GPU, beyond chance
    popularity: float = 0.0  # exponent of the power law of how often experts are chosen

    @property
    def weight_bytes(self) -> float:
        """All local experts, hit or not."""
        return self.local_experts * self.expert_bytes

    @property
    def expert_bytes(self) -> float:
        return self.in_size * self.out_size * WEIGHT_FORMATS[self.format].bits / 8

    @property
    def layer_sizes(self) -> tuple[int, int]:
        """Hidden size, and width of one expert; experts are gated: two up-projections."""
        if self.name.endswith("up"):
            return self.in_size, self.out_size // 2
        return self.out_size, self.in_size

    def rows(self, tokens: Tokens) -> Tokens:
        """Token-expert pairs on the busiest GPU."""
        return busiest_rows(self, tokens)

    def experts_hit(self, tokens: Tokens) -> Tokens:
        """Expected distinct local experts at the busiest GPU's load."""
        share = self.local_experts / self.num_experts
        mean_rows = self.experts_per_token * share * tokens
        load = self.rows(tokens) / np.maximum(mean_rows, 1e-300)
        hit = share * distinct_experts(
            self.num_experts, self.experts_per_token, tokens * load, self.popularity
        )
        return np.minimum(hit, self.rows(tokens))

    def flops(self, tokens: Tokens) -> Tokens:
        return 2.0 * self.in_size * self.out_size * self.rows(tokens)

    def activation_bytes(self, tokens: Tokens) -> Tokens:
        return ACTIVATION_BYTES * (self.in_size + self.out_size) * self.rows(tokens)

    def memory_bytes(self, tokens: Tokens) -> Tokens:
        return self.experts_hit(tokens) * self.expert_bytes + self.activation_bytes(tokens)


def distinct_experts(
    num_experts: int, experts_per_token: int, tokens: Tokens, popularity: float
) -> Tokens:
    """Expected number of experts that at least one of the tokens chooses: sum of 1 - (1 - q_i)^T.

    The i-th most popular expert is chosen by a token with q_i = min(1, c i^-popularity), the q_i
    summing to `experts_per_token`; 0 = all alike, q = k/E.
    """
    weight = np.arange(1, num_experts + 1, dtype=np.float64) ** -popularity
    chosen = np.minimum(1.0, experts_per_token * weight / weight.sum())
    for _ in range(8):  # what is cut at 1 goes to the others
        rest = chosen < 1.0
        if not rest.any():
            break
        left = experts_per_token - np.count_nonzero(~rest)
        chosen[rest] = np.minimum(1.0, left * weight[rest] / weight[rest].sum())
    distinct: Tokens = np.zeros_like(tokens)
    values, counts = np.unique(chosen, return_counts=True)
    for value, count in zip(values, counts, strict=True):
        distinct += count * (1.0 - np.power(1.0 - value, tokens))
    return distinct


def busiest_rows(op: ExpertGemm, tokens: Tokens) -> Tokens:
    """Expected maximum over the expert-parallel GPUs of the token-expert pairs routed to each.

    mu + sqrt(2 ln(g) var), the leading term of the expected maximum of g Gaussians (Gumbel 1958),
    with the multinomial variance of k*T pairs thrown into g equal bins; mu carries the skew. Never
    more than all pairs a token can put on one GPU.
    """
    k = op.experts_per_token
    share = op.local_experts / op.num_experts
    if share >= 1.0:
        return k * tokens
    groups = 1.0 / share
    pairs = k * tokens
    mean = pairs * share * (1.0 + op.skew)
    spread = np.sqrt(2.0 * math.log(groups) * pairs * share * (1.0 - share))
    return np.minimum(mean + spread, min(k, op.local_experts) * tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Elementwise:
    """A memory-bound pass: norm with its residual add, activation, rope, KV write, gather."""

    name: str
    bytes_per_token: float
    weight_bytes: float = 0.0
    kernels: int = 1

    def flops(self, tokens: Tokens) -> Tokens:
        return 0.0 * tokens

    def memory_bytes(self, tokens: Tokens) -> Tokens:
        return self.bytes_per_token * tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Collective:
    """A collective over `num_gpus`, of which `local_gpus` share a node."""

    name: str
    kind: str  # all_reduce, all_gather, reduce_scatter, all_to_all, p2p
    bytes_per_token: float  # per-GPU payload: the whole tensor, before any algorithm's factor
    num_gpus: int
    local_gpus: int
    weight_bytes: float = 0.0

    def flops(self, tokens: Tokens) -> Tokens:
        return 0.0 * tokens

    def memory_bytes(self, tokens: Tokens) -> Tokens:
        return 0.0 * tokens


Op = Gemm | ExpertGemm | Elementwise | Collective


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionWork:
    """Attention of one layer on one GPU: affine in query-key pairs and in KV tokens."""

    window: int
    num_q_heads: int
    num_kv_heads: int
    kv_bytes_per_token: float  # read per context token of a decoding sequence, and stored
    decode_flops_per_token: float  # per context token of a decoding sequence
    prefill_flops_per_pair: float
    prefill_io_bytes_per_token: float  # queries read, outputs written
    context_flops_per_token: float  # MLA: latent to heads, per cached context token
    kv_format: str
    softcap: bool
    mla: bool


def prefill_pairs(num_tokens: int, context: int, window: int = 0) -> int:
    """Query-key pairs of a causal chunk after `context` tokens: n*c + n(n+1)/2, cut by the window.

    Query i (from 1) sees min(context + i, window) keys.
    """
    if window <= 0:
        return num_tokens * context + num_tokens * (num_tokens + 1) // 2
    growing = min(max(window - context, 0), num_tokens)  # queries that see everything before them
    pairs = growing * context + growing * (growing + 1) // 2
    return pairs + (num_tokens - growing) * window


def attention_work(spec: AttentionSpec, kv_format: str, tp: int) -> AttentionWork:
    """Heads are split over tp; KV heads replicate when tp exceeds them; MLA latent is replicated.

    Sources: Megatron-LM head sharding as in vLLM; DeepSeek-V2 (arXiv 2405.04434, sec. 2.1) for the
    latent of kv_lora_rank + rope_head_dim and the absorbed decode form.
    """
    value_bytes = KV_FORMATS[kv_format].bits / 8
    heads = spec.num_q_heads // tp
    mla = spec.mla
    if mla is not None:
        latent = mla.kv_lora_rank + mla.rope_head_dim
        unpacked = mla.nope_head_dim + mla.v_head_dim
        return AttentionWork(
            window=spec.window,
            num_q_heads=heads,
            num_kv_heads=1,
            kv_bytes_per_token=latent * value_bytes,
            decode_flops_per_token=2.0 * heads * (latent + mla.kv_lora_rank),
            prefill_flops_per_pair=2.0 * heads * (unpacked + mla.rope_head_dim),
            prefill_io_bytes_per_token=ACTIVATION_BYTES * heads * (unpacked + mla.rope_head_dim),
            context_flops_per_token=2.0 * heads * mla.kv_lora_rank * unpacked,
            kv_format=kv_format,
            softcap=spec.softcap,
            mla=True,
        )
    kv_heads = max(1, spec.num_kv_heads // tp)
    return AttentionWork(
        window=spec.window,
        num_q_heads=heads,
        num_kv_heads=kv_heads,
        kv_bytes_per_token=2.0 * kv_heads * spec.head_dim * value_bytes,
        decode_flops_per_token=4.0 * heads * spec.head_dim,
        prefill_flops_per_pair=4.0 * heads * spec.head_dim,
        prefill_io_bytes_per_token=2 * ACTIVATION_BYTES * heads * spec.head_dim,
        context_flops_per_token=0.0,
        kv_format=kv_format,
        softcap=spec.softcap,
        mla=False,
    )
