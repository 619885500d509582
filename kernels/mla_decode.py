"""Decode attention of multi-head latent attention (DeepSeek-V2/V3), absorbed form.

All heads share one cached vector per token: 512 latent values, which are both key and value, and
64 rotary values, which are key only. The up-projections are folded into the query and the output
(arXiv 2405.04434, section 2.1), so the kernel is multi-query attention with head size 576 whose
values are the first 512 columns of its keys: one tile is read once and used twice. Context is
split over programs as in `paged_attention` and joined by the same reduction.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.attention_configs import AttentionConfig, pick
from kernels.attention_tiles import LOG2E, check_contiguous, choose_num_splits, num_sms
from kernels.paged_attention import launch_reduction, split_workspace

LATENT, ROPE = 512, 64


@triton.jit
def mla_decode_kernel(
    q_ptr,  # [S, H, LATENT + ROPE]
    cache_ptr,  # [num_blocks, BLOCK_TOKENS, LATENT + ROPE]
    table_ptr,  # [S, max_blocks] int32
    context_ptr,  # [S] int32
    out_ptr,  # [S, H, LATENT], written when NUM_SPLITS is 1
    partial_ptr,  # [S, H, NUM_SPLITS, LATENT] fp32, written otherwise
    lse_ptr,  # [S, H, NUM_SPLITS] fp32, base 2
    softmax_scale,
    max_blocks,
    H: tl.constexpr,
    LATENT: tl.constexpr,
    ROPE: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
):
    """S sequences, H query heads. Grid: (NUM_SPLITS, head tiles, S)."""
    split = tl.program_id(0)
    seq = tl.program_id(2).to(tl.int64)
    head = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)
    in_tile = head < H
    latent = tl.arange(0, LATENT)
    rope = LATENT + tl.arange(0, ROPE)
    row = seq * H + head  # [BLOCK_H] int64
    q_row = q_ptr + row[:, None] * (LATENT + ROPE)
    q_latent = tl.load(q_row + latent[None, :], mask=in_tile[:, None], other=0.0)
    q_rope = tl.load(q_row + rope[None, :], mask=in_tile[:, None], other=0.0)

    context = tl.load(context_ptr + seq)
    split_tokens = tl.cdiv(tl.cdiv(context, NUM_SPLITS), BLOCK_N) * BLOCK_N
    lo = split * split_tokens
    hi = tl.minimum(lo + split_tokens, context)
    table_ptr += seq * max_blocks
    to_base_2 = softmax_scale * LOG2E
    acc = tl.zeros([BLOCK_H, LATENT], tl.float32)
    row_sum = tl.zeros([BLOCK_H], tl.float32)
    row_max = tl.full([BLOCK_H], float("-inf"), tl.float32)
    for start in range(lo, hi, BLOCK_N):
        token = start + tl.arange(0, BLOCK_N)
        present = token < context
        block = tl.load(table_ptr + token // BLOCK_TOKENS, mask=present, other=0).to(tl.int64)
        flat = block * BLOCK_TOKENS + token % BLOCK_TOKENS
        cache_row = cache_ptr + flat * (LATENT + ROPE)  # [BLOCK_N]
        c = tl.load(cache_row[:, None] + latent[None, :], mask=present[:, None], other=0.0)
        r = tl.load(cache_row[None, :] + rope[:, None], mask=present[None, :], other=0.0)
        logits = tl.dot(q_rope, r)  # [BLOCK_H, BLOCK_N]
        logits = tl.dot(q_latent, tl.trans(c), logits)
        logits = tl.where(present[None, :], logits, float("-inf"))
        # A tile always holds a key, so the maximum is finite.
        new_max = tl.maximum(row_max, tl.max(logits, 1) * to_base_2)
        p = tl.exp2(logits * to_base_2 - new_max[:, None])
        alpha = tl.exp2(row_max - new_max)
        row_sum = row_sum * alpha + tl.sum(p, 1)
        row_max = new_max
        acc = tl.dot(p.to(c.dtype), c, acc * alpha[:, None])
    seen = row_sum > 0
    row_sum = tl.where(seen, row_sum, 1.0)
    acc = acc / row_sum[:, None]
    if NUM_SPLITS == 1:
        out_ptrs = out_ptr + row[:, None] * LATENT + latent[None, :]
        tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=in_tile[:, None])
    else:
        part = row * NUM_SPLITS + split
        lse = tl.where(seen, row_max + tl.log2(row_sum), float("-inf"))
        tl.store(lse_ptr + part, lse, mask=in_tile)
        part_ptrs = partial_ptr + part[:, None] * LATENT + latent[None, :]
        tl.store(part_ptrs, acc, mask=(in_tile & seen)[:, None])


def mla_decode(
    q: torch.Tensor,
    cache: torch.Tensor,
    block_table: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    softmax_scale: float,
    num_splits: int | None = None,
    config: AttentionConfig | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention of one new token per sequence over its cached latent vectors.

    Parameters
    ----------
    q : [num_seqs, num_heads, 576], queries with the key up-projection absorbed, then rotary part
    cache : [num_blocks, block_tokens, 576], the type of q; block_tokens a power of two
    block_table : [num_seqs, max_blocks] int32
    context_lens : [num_seqs] int32, tokens in the cache including the new one; 0 gives zeros
    softmax_scale : of the un-absorbed head, (nope + rope head size) ** -0.5, 192 ** -0.5 in V3
    num_splits : default chosen from the capacity of the block table
    out : [num_seqs, num_heads, 512]; allocated when absent

    Returns
    -------
    out : [num_seqs, num_heads, 512], before the value up-projection
    """
    check_contiguous(q=q, cache=cache, block_table=block_table, out=out)
    num_seqs, num_heads, width = q.shape
    if width != LATENT + ROPE or cache.shape[-1] != width or cache.dtype != q.dtype:
        raise ValueError(f"q and cache must have {LATENT + ROPE} columns and one type")
    block_tokens, max_blocks = cache.shape[1], block_table.shape[1]
    config = config or pick("mla_decode", q.device, head_dim=width, rows=num_heads)
    head_tiles = triton.cdiv(num_heads, config.block_m)
    if num_splits is None:
        visible = max_blocks * block_tokens
        num_splits = choose_num_splits(num_seqs * head_tiles, visible, num_sms(q.device))
    if out is None:
        out = torch.empty(num_seqs, num_heads, LATENT, dtype=q.dtype, device=q.device)
    partial, lse = split_workspace(q.shape[:-1], num_splits, LATENT, q.device)
    mla_decode_kernel[(num_splits, head_tiles, num_seqs)](
        q, cache, block_table, context_lens, out, partial, lse, softmax_scale, max_blocks,
        H=num_heads, LATENT=LATENT, ROPE=ROPE, BLOCK_H=config.block_m, BLOCK_N=config.block_n,
        BLOCK_TOKENS=block_tokens, NUM_SPLITS=num_splits,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    if partial is not None and lse is not None:
        launch_reduction(partial, lse, out)
    return out
