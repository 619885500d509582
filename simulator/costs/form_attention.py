"""Forms of decode and prefill attention over paged keys and values."""

from __future__ import annotations

import numpy as np

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

PAGE_TOKENS = 128.0  # KV tokens of one split of the decode kernel
HEADS = ("num_q_heads", "num_kv_heads", "head_dim", "window")


def _span(tokens: Array, window: Array) -> Array:
    """Tokens a query sees of so many: all of them, or the last `window`."""
    return np.where(window > 0, np.minimum(tokens, window), tokens)


def _decode_bytes(x: Points) -> Array:
    span = _span(x["kv_tokens"], x["window"])
    moved: Array = x["num_seqs"] * x["num_kv_heads"] * span * 2.0 * x["head_dim"] * x["kv_bits"] / 8
    return moved


def _decode_bounds(x: Points, gpu: GpuSpec) -> FormBounds:
    moved, span = _decode_bytes(x), _span(x["kv_tokens"], x["window"])
    flops = 4.0 * x["num_seqs"] * x["num_q_heads"] * span * x["head_dim"]
    return FormBounds(
        compute_s=flops / gpu.flops_per_s["bf16"],
        memory_s=moved / gpu.memory_bytes_per_s,
        moved_bytes=moved,
    )


def _decode_time(p: Parameters, x: Points, gpu: GpuSpec) -> Array:
    """t0 + c B Hkv / SMs + tau B Hq + bytes / (e BW) (1 + P0 / P), P = pages of 128 tokens.

    P0 is the split-KV occupancy: with few pages the GPU is not full. Bytes of an 8-bit cache count
    `quantised` times, as they are widened in the kernel.
    """
    groups = x["num_seqs"] * x["num_kv_heads"]
    pages = groups * tiles(_span(x["kv_tokens"], x["window"]), PAGE_TOKENS)
    widened = np.where(x["kv_bits"] < 16, p["quantised"], 1.0)
    read = _decode_bytes(x) * widened / (p["memory"] * gpu.memory_bytes_per_s)
    fixed = p["floor_s"] + p["wave_s"] * groups / gpu.num_sms
    time_s: Array = fixed + p["head_s"] * x["num_seqs"] * x["num_q_heads"]
    return time_s + read * (1.0 + p["pages"] / pages)


def _decode_features(x: Points, gpu: GpuSpec) -> list[Array]:
    log, seqs, heads, kv_heads = np.log2, x["num_seqs"], x["num_q_heads"], x["num_kv_heads"]
    span, size, groups = _span(x["kv_tokens"], x["window"]), x["head_dim"], seqs * x["num_kv_heads"]
    ratio, pages = heads / kv_heads, tiles(span, 64)
    splits = np.maximum(1.0, np.floor(gpu.num_sms / groups))
    twice = np.minimum(np.maximum(1.0, np.floor(2 * gpu.num_sms / groups)), pages)
    return [
        *(log(seqs), log(x["kv_tokens"]), log(span), log(heads), log(kv_heads), size),
        *(x["window"], x["kv_bits"], ratio, log(groups), log(groups * tiles(span, PAGE_TOKENS))),
        *(wave_fill(groups, gpu.num_sms), log(_decode_bytes(x)), log(seqs * span)),
        *(log(seqs * heads), log(seqs * heads * span * size), log(splits)),
        log(tiles(pages, 1.0) / np.minimum(splits, pages)),
        wave_fill(groups * twice, gpu.num_sms),
        *(log(groups * tiles(ratio, 8)), log(span * size * x["kv_bits"]), log(heads * size)),
    ]


DECODE = OpForm(
    inputs=("num_seqs", "kv_tokens", *HEADS),
    parameters={
        "floor_s": Parameter(start=1e-5, low=2e-6, high=1e-4),
        "wave_s": Parameter(start=2e-6, low=1e-8, high=5e-5),
        "head_s": Parameter(start=1e-9, low=1e-12, high=1e-6),
        "memory": Parameter(start=0.9, low=0.2, high=1.0),
        "pages": Parameter(start=38.0, low=0.1, high=2000.0),
        "quantised": Parameter(start=1.5, low=0.8, high=6.0),
    },
    time=_decode_time,
    features=_decode_features,
    bounds=_decode_bounds,
)


def pairs(x: Points) -> Array:
    """Query-key pairs of one sequence's chunk: causal, after its context, cut by the window."""
    new, context, window = x["num_tokens"], x["context_tokens"], x["window"]
    full = new * context + new * (new + 1.0) / 2.0
    growing = np.minimum(np.maximum(window - context, 0.0), new)
    cut = growing * context + growing * (growing + 1.0) / 2.0 + (new - growing) * window
    return np.where(window > 0, cut, full)


def _prefill_bytes(x: Points) -> Array:
    seen = x["num_tokens"] + _span(x["context_tokens"], x["window"])
    per_head = 4.0 * x["num_q_heads"] * x["num_tokens"]
    per_head = per_head + 2.0 * x["num_kv_heads"] * seen * x["kv_bits"] / 8
    moved: Array = x["num_seqs"] * x["head_dim"] * per_head
    return moved


def _prefill_flops(x: Points) -> Array:
    flops: Array = 4.0 * x["head_dim"] * x["num_q_heads"] * x["num_seqs"] * pairs(x)
    return flops


def _prefill_bounds(x: Points, gpu: GpuSpec) -> FormBounds:
    moved, fast = _prefill_bytes(x), gpu.flops_per_s.get("fp8", gpu.flops_per_s["bf16"])
    peak = np.where(x["compute_bits"] < 16, fast, gpu.flops_per_s["bf16"])
    return FormBounds(
        compute_s=_prefill_flops(x) / peak,
        memory_s=moved / gpu.memory_bytes_per_s,
        moved_bytes=moved,
    )


def _prefill_time(p: Parameters, x: Points, gpu: GpuSpec) -> Array:
    """floor + p-norm(pairs with the wasted half tile a token and a cost a value, bytes + rows).

    Each thread block (128 queries of one KV head) has a fixed time beside its pairs.
    """
    wasted = 1.0 + p["tile_tokens"] * x["num_tokens"] / pairs(x)
    small = 1.0 + p["head_dim"] / x["head_dim"]
    compute = _prefill_bounds(x, gpu).compute_s * wasted * small / p["compute"]
    rows = x["num_seqs"] * x["num_tokens"]
    memory = _prefill_bytes(x) / (p["memory"] * gpu.memory_bytes_per_s) + p["token_s"] * rows
    shared = x["num_q_heads"] / x["num_kv_heads"]
    blocks = x["num_seqs"] * x["num_kv_heads"] * tiles(x["num_tokens"] * shared, 128.0)
    fixed = p["floor_s"] + p["block_s"] * blocks / gpu.num_sms
    return fixed + p_norm(compute, memory, p["norm"])


def _prefill_features(x: Points, gpu: GpuSpec) -> list[Array]:
    log, seqs, new, heads = np.log2, x["num_seqs"], x["num_tokens"], x["num_q_heads"]
    kv_heads, size, seen = x["num_kv_heads"], x["head_dim"], pairs(x)
    blocks, narrow = seqs * heads * tiles(new, 128), seqs * heads * tiles(new, 64)
    return [
        *(log(seqs), log(new), log(heads), log(kv_heads), size, x["window"], x["kv_bits"]),
        *(x["compute_bits"], heads / kv_heads, log(seqs * heads), log(seqs * new), log(blocks)),
        *(wave_fill(blocks, gpu.num_sms), wave_fill(narrow, gpu.num_sms)),
        *(log(seen * heads * seqs * size), log(seqs * new * heads * size)),
        *(log(seqs * new * kv_heads * size), log(seen / new)),
    ]


PREFILL = OpForm(
    inputs=("num_seqs", "num_tokens", "context_tokens", *HEADS),
    parameters={
        "floor_s": Parameter(start=1e-5, low=2e-6, high=1e-4),
        "block_s": Parameter(start=1e-6, low=1e-9, high=2e-5),
        "tile_tokens": Parameter(start=100.0, low=0.1, high=5000.0),
        "head_dim": Parameter(start=10.0, low=0.01, high=500.0),
        "token_s": Parameter(start=1e-10, low=1e-14, high=1e-7),
        "compute": Parameter(start=0.75, low=0.1, high=1.0),
        "memory": Parameter(start=0.8, low=0.05, high=1.0),
        "norm": Parameter(start=2.0, low=1.0, high=8.0),
    },
    time=_prefill_time,
    features=_prefill_features,
    bounds=_prefill_bounds,
)
