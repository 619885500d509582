"""Decode attention over a paged KV cache: split-KV with a reduction (flash-decoding).

One program handles the query rows that share a KV head (GQA packing: every query token and every
query head of the group), one slice of the context, one tile of rows. With more than one slice,
`reduce_splits` joins them. Several query tokens per sequence (k + 1, to verify k drafted tokens)
are causal among themselves: they are the last `num_queries` tokens of the context, and their keys
are already in the cache.

Flash-decoding: https://crfm.stanford.edu/2023/10/12/flashdecoding.html. Paged cache: Kwon et al.,
SOSP 2023. Soft-cap: Gemma 2, arXiv 2408.00118. Sinks: one learned logit per head in the softmax's
denominator, as in gpt-oss.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.attention_configs import AttentionConfig, pick
from kernels.attention_tiles import (
    LOG2E,
    attend,
    check_contiguous,
    choose_num_splits,
    kv_format,
    num_sms,
    reduce_splits,
    scale_kind,
)


@triton.jit
def paged_attention_kernel(
    q_ptr,  # [S, Q, num_kv_heads * GROUP, D]
    key_ptr,  # [num_blocks, BLOCK_TOKENS, num_kv_heads, D]
    value_ptr,  # as key_ptr
    key_scale_ptr,  # SCALES 1: [num_kv_heads]; 2: [num_blocks, BLOCK_TOKENS, num_kv_heads]; fp32
    value_scale_ptr,  # as key_scale_ptr
    table_ptr,  # [S, max_blocks] int32
    context_ptr,  # [S] int32, tokens in the cache, the Q query tokens included
    sink_ptr,  # [num_kv_heads * GROUP] fp32 logits, read when SINKS
    out_ptr,  # [S, Q, num_kv_heads * GROUP, D], written when NUM_SPLITS is 1
    partial_ptr,  # [S, Q, num_kv_heads * GROUP, NUM_SPLITS, D] fp32, written otherwise
    lse_ptr,  # [S, Q, num_kv_heads * GROUP, NUM_SPLITS] fp32, base 2
    softmax_scale,
    num_kv_heads,
    max_blocks,
    Q: tl.constexpr,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    KV_FORMAT: tl.constexpr,
    SCALES: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    SINKS: tl.constexpr,
):
    """S sequences, Q query tokens each, D head size; a tile row is (query token, head of group).

    Grid: (NUM_SPLITS, num_kv_heads * row tiles, S).
    """
    split = tl.program_id(0)
    kv_head = tl.program_id(1) % num_kv_heads
    row_tile = tl.program_id(1) // num_kv_heads
    seq = tl.program_id(2).to(tl.int64)

    row = row_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    in_tile = row < Q * GROUP
    query = row // GROUP
    head = kv_head * GROUP + row % GROUP
    d = tl.arange(0, D)
    out_row = (seq * Q + query) * (num_kv_heads * GROUP) + head  # [BLOCK_M] int64
    q = tl.load(q_ptr + out_row[:, None] * D + d[None, :], mask=in_tile[:, None], other=0.0)

    context = tl.load(context_ptr + seq)
    position = tl.where(in_tile, context - Q + query, -1)
    first = tl.maximum(context - Q + 1 - WINDOW, 0) if WINDOW > 0 else 0
    # Every split but the last is the same whole number of tiles of this sequence's own context.
    lo = first // BLOCK_N * BLOCK_N
    split_tokens = tl.cdiv(tl.cdiv(context - lo, NUM_SPLITS), BLOCK_N) * BLOCK_N
    lo += split * split_tokens
    hi = tl.minimum(lo + split_tokens, context)

    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    if SINKS:  # noqa: SIM102 - a compile-time test around a run-time one
        if split == 0:
            row_max = tl.load(sink_ptr + head, mask=in_tile, other=0.0) * LOG2E
            row_sum += 1.0
    logit_scale = softmax_scale
    if SCALES == 1:
        logit_scale *= tl.load(key_scale_ptr + kv_head)
    acc, row_sum, row_max = attend(
        q, tl.zeros([BLOCK_M, D], tl.float32), row_sum, row_max, position,
        lo, hi, BLOCK_N, first, context,
        key_ptr, value_ptr, key_scale_ptr, value_scale_ptr,
        table_ptr + seq * max_blocks, 0, kv_head, num_kv_heads, logit_scale,
        D, BLOCK_N, BLOCK_TOKENS, True, KV_FORMAT, SCALES, SOFTCAP, WINDOW, True,
    )  # fmt: skip
    acc = acc / tl.where(row_sum > 0, row_sum, 1.0)[:, None]
    if SCALES == 1:
        acc *= tl.load(value_scale_ptr + kv_head)

    if NUM_SPLITS == 1:
        out = acc.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + out_row[:, None] * D + d[None, :], out, mask=in_tile[:, None])
    else:
        part = out_row * NUM_SPLITS + split
        seen = row_sum > 0
        lse = tl.where(seen, row_max + tl.log2(tl.where(seen, row_sum, 1.0)), float("-inf"))
        tl.store(lse_ptr + part, lse, mask=in_tile)
        part_ptrs = partial_ptr + part[:, None] * D + d[None, :]
        tl.store(part_ptrs, acc, mask=(in_tile & seen)[:, None])


def paged_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    softmax_scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    sinks: torch.Tensor | None = None,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    num_splits: int | None = None,
    config: AttentionConfig | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of the last `num_queries` tokens of each sequence over its cached context.

    Parameters
    ----------
    q : [num_seqs, num_queries, num_q_heads, head_dim], fp16, bf16 or fp32; head_dim 64, 128, 256
    k_cache, v_cache : [num_blocks, block_tokens, num_kv_heads, head_dim], the type of q, e4m3 or
        int8; block_tokens a power of two, 16 to 128
    block_table : [num_seqs, max_blocks] int32; only entries that hold visible keys are read
    context_lens : [num_seqs] int32, tokens in the cache including the query tokens; 0 gives zeros
    softmax_scale : default head_dim ** -0.5
    window : a query sees itself and the `window - 1` tokens before it; 0 is unlimited
    softcap : logits become softcap * tanh(logits / softcap); 0 is off
    sinks : [num_q_heads] fp32 logits that join the denominator
    k_scale, v_scale : fp32, [num_kv_heads] or [num_blocks, block_tokens, num_kv_heads]
    num_splits : default chosen from the capacity of the block table (fixed under CUDA graphs)
    out : as q; allocated when absent

    Returns
    -------
    out : [num_seqs, num_queries, num_q_heads, head_dim]
    """
    check_contiguous(q=q, k_cache=k_cache, v_cache=v_cache, block_table=block_table,
                     k_scale=k_scale, v_scale=v_scale, sinks=sinks, out=out)  # fmt: skip
    num_seqs, num_queries, num_q_heads, head_dim = q.shape
    _, block_tokens, num_kv_heads, _ = k_cache.shape
    max_blocks = block_table.shape[1]
    if num_q_heads % num_kv_heads:
        raise ValueError(f"{num_q_heads} query heads do not divide into {num_kv_heads} KV heads")
    group = num_q_heads // num_kv_heads
    k_cache, stored = kv_format(k_cache, q)
    v_cache, _ = kv_format(v_cache, q)
    rows = num_queries * group
    config = config or pick("paged_attention", q.device, head_dim=head_dim, rows=rows)
    row_tiles = triton.cdiv(rows, config.block_m)
    if num_splits is None:
        visible = max_blocks * block_tokens
        visible = min(visible, window + num_queries) if window else visible
        tiles = num_seqs * num_kv_heads * row_tiles
        num_splits = choose_num_splits(tiles, visible, num_sms(q.device))
    out = torch.empty_like(q) if out is None else out
    partial, lse = split_workspace(q.shape[:-1], num_splits, head_dim, q.device)
    paged_attention_kernel[(num_splits, num_kv_heads * row_tiles, num_seqs)](
        q, k_cache, v_cache, k_scale, v_scale, block_table, context_lens, sinks, out, partial, lse,
        head_dim**-0.5 if softmax_scale is None else softmax_scale, num_kv_heads, max_blocks,
        Q=num_queries, GROUP=group, D=head_dim, BLOCK_M=config.block_m, BLOCK_N=config.block_n,
        BLOCK_TOKENS=block_tokens, NUM_SPLITS=num_splits, KV_FORMAT=stored,
        SCALES=scale_kind(k_scale, v_scale), SOFTCAP=softcap, WINDOW=window,
        SINKS=sinks is not None, num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    if partial is not None and lse is not None:
        launch_reduction(partial, lse, out)
    return out


def split_workspace(
    rows: torch.Size, num_splits: int, head_dim: int, device: torch.device
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Room for the splits' results and log-sum-exps; nothing for a single split."""
    if num_splits == 1:
        return None, None
    partial = torch.empty(*rows, num_splits, head_dim, dtype=torch.float32, device=device)
    return partial, torch.empty(*rows, num_splits, dtype=torch.float32, device=device)


def launch_reduction(partial: torch.Tensor, lse: torch.Tensor, out: torch.Tensor) -> None:
    """Join [..., num_splits, head_dim] partial results into `out` [..., head_dim]."""
    num_splits, head_dim = partial.shape[-2:]
    reduce_splits[(lse.numel() // num_splits,)](
        partial, lse, out, D=head_dim, NUM_SPLITS=num_splits, BLOCK_S=8, num_warps=4
    )
