"""Forms of a whole block of multi-head latent attention, as it is measured: DeepSeek-V3's.

Projections down and up, norms, rope, the attention kernel over one cached latent a token and the
output projection, on a GPU that holds `num_q_heads` of the heads.
"""

from __future__ import annotations

import numpy as np

from simulator.costs.form_attention import PAGE_TOKENS
from simulator.costs.form_base import (
    Array,
    FormBounds,
    OpForm,
    Parameter,
    Parameters,
    Points,
    p_norm,
    tiles,
    wave_fill,
)
from simulator.spec import GpuSpec

HIDDEN, Q_RANK, KV_RANK, ROPE, HEAD = 7168, 1536, 512, 64, 128
LATENT = KV_RANK + ROPE
HEADS_PER_BLOCK = 64.0  # query heads one thread block of FlashMLA serves


def _weights(x: Points) -> Array:
    """Values of the projections; absorbed or not, each is multiplied once a token."""
    heads = x["num_q_heads"]
    per_head = Q_RANK * (HEAD + ROPE) + 2.0 * KV_RANK * HEAD + HEAD * HIDDEN
    values: Array = HIDDEN * (Q_RANK + LATENT) + per_head * heads
    return values


def _bounds(x: Points, gpu: GpuSpec, tokens: Array, flops: Array, cached: Array) -> FormBounds:
    """`flops` of the scores and values, `cached` bytes of latents."""
    moved = _weights(x) * x["weight_bits"] / 8 + 4.0 * HIDDEN * tokens + cached
    bf16 = gpu.flops_per_s["bf16"]
    peak = np.where(x["kv_bits"] < 16, gpu.flops_per_s.get("fp8", bf16), bf16)
    return FormBounds(
        compute_s=2.0 * _weights(x) * tokens / x["peak_flops"] + flops / peak,
        memory_s=moved / gpu.memory_bytes_per_s,
        moved_bytes=moved,
    )


def _projections_s(p: Parameters, x: Points, gpu: GpuSpec, tokens: Array) -> Array:
    """p-norm(arithmetic, weights), and passes over each token's values."""
    compute = 2.0 * _weights(x) * tokens / (p["compute"] * x["peak_flops"])
    read = _weights(x) * x["weight_bits"] / 8 / (p["memory"] * gpu.memory_bytes_per_s)
    passes = (p["token_s"] + p["head_s"] * x["num_q_heads"]) * tokens
    return p["floor_s"] + p_norm(compute, read, 3.0) + passes


def _cached(x: Points) -> Array:
    read: Array = x["num_seqs"] * x["kv_tokens"] * LATENT * x["kv_bits"] / 8
    return read


def _decode_flops(x: Points) -> Array:
    flops: Array = 2.0 * x["num_seqs"] * x["kv_tokens"] * x["num_q_heads"] * (LATENT + KV_RANK)
    return flops


def _decode_bounds(x: Points, gpu: GpuSpec) -> FormBounds:
    return _bounds(x, gpu, x["num_seqs"], _decode_flops(x), _cached(x))


def _decode_time(p: Parameters, x: Points, gpu: GpuSpec) -> Array:
    """Projections + p-norm(latents read, scores of blocks of 64 heads) (1 + P0 / P pages)."""
    blocks = x["num_seqs"] * tiles(x["num_q_heads"], HEADS_PER_BLOCK)
    pages = blocks * tiles(x["kv_tokens"], PAGE_TOKENS)
    widened = np.where(x["kv_bits"] < 16, p["quantised"], 1.0)
    read = _cached(x) * widened / (p["kv_memory"] * gpu.memory_bytes_per_s)
    padded = tiles(x["num_q_heads"], HEADS_PER_BLOCK) * HEADS_PER_BLOCK / x["num_q_heads"]
    scores = _decode_flops(x) * padded / (p["kv_compute"] * gpu.flops_per_s["bf16"])
    attention = p_norm(read, scores, 3.0) * (1.0 + p["pages"] / pages)
    return _projections_s(p, x, gpu, x["num_seqs"]) + attention


def _decode_features(x: Points, gpu: GpuSpec) -> list[Array]:
    log, seqs, kv, heads = np.log2, x["num_seqs"], x["kv_tokens"], x["num_q_heads"]
    blocks = seqs * tiles(heads, HEADS_PER_BLOCK)
    return [
        *(log(seqs), log(kv), log(heads), x["kv_bits"], x["weight_bits"], log(seqs * kv)),
        *(log(seqs * heads), log(seqs * kv * heads), wave_fill(blocks, gpu.num_sms), log(blocks)),
        log(blocks * tiles(kv, PAGE_TOKENS)),
    ]


PROJECTIONS = {
    "floor_s": Parameter(start=5e-5, low=5e-6, high=3e-4),
    "token_s": Parameter(start=1e-8, low=1e-11, high=1e-6),
    "head_s": Parameter(start=1e-9, low=1e-12, high=1e-7),
    "compute": Parameter(start=0.7, low=0.1, high=1.0),
    "memory": Parameter(start=0.8, low=0.1, high=1.0),
}
MLA_DECODE = OpForm(
    inputs=("num_seqs", "kv_tokens", "num_q_heads"),
    parameters={
        **PROJECTIONS,
        "kv_memory": Parameter(start=0.6, low=0.05, high=1.0),
        "kv_compute": Parameter(start=0.6, low=0.05, high=1.0),
        "quantised": Parameter(start=1.0, low=0.5, high=3.0),
        "pages": Parameter(start=50.0, low=0.1, high=2000.0),
    },
    time=_decode_time,
    features=_decode_features,
    bounds=_decode_bounds,
)


def _new(x: Points) -> Array:
    tokens: Array = x["num_seqs"] * x["num_tokens"]
    return tokens


def _prefill_flops(x: Points) -> Array:
    """Keys and values unpacked: 192 + 128 values of a head for each query-key pair."""
    pairs = x["num_seqs"] * x["num_tokens"] * (x["num_tokens"] + 1.0) / 2.0
    flops: Array = 2.0 * pairs * x["num_q_heads"] * (2.0 * HEAD + ROPE)
    return flops


def _prefill_bounds(x: Points, gpu: GpuSpec) -> FormBounds:
    return _bounds(x, gpu, _new(x), _prefill_flops(x), 0.0 * _new(x))


def _prefill_time(p: Parameters, x: Points, gpu: GpuSpec) -> Array:
    """Projections + query-key pairs with the wasted half tile a token."""
    wasted = 1.0 + 2.0 * p["tile_tokens"] / (x["num_tokens"] + 1.0)
    scores = _prefill_flops(x) * wasted / (p["kv_compute"] * gpu.flops_per_s["bf16"])
    return _projections_s(p, x, gpu, _new(x)) + scores


def _prefill_features(x: Points, gpu: GpuSpec) -> list[Array]:
    log, seqs, new, heads = np.log2, x["num_seqs"], x["num_tokens"], x["num_q_heads"]
    blocks = seqs * heads * tiles(new, 128)
    return [
        *(log(seqs), log(new), log(heads), x["kv_bits"], x["weight_bits"], log(seqs * new)),
        *(log(seqs * heads), log(seqs * new * heads), log(blocks), wave_fill(blocks, gpu.num_sms)),
        log(_prefill_flops(x)),
    ]


MLA_PREFILL = OpForm(
    inputs=("num_seqs", "num_tokens", "num_q_heads"),
    parameters={
        **PROJECTIONS,
        "tile_tokens": Parameter(start=100.0, low=0.1, high=5000.0),
        "kv_compute": Parameter(start=0.6, low=0.05, high=1.0),
    },
    time=_prefill_time,
    features=_prefill_features,
    bounds=_prefill_bounds,
)
