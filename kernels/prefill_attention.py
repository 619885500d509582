"""Prefill attention: a ragged batch of chunks, each causal over its cached context.

The chunk's keys and values are already in the cache, so one kernel serves a first chunk, a later
chunk (chunked prefill) and a mixed batch. The cache is paged, or contiguous per sequence (one slot
of virtual memory each, as in vAttention, arXiv 2405.04437). The query heads of one KV head share a
tile. The key range of a tile splits in three: the window's ragged edge, keys that every row sees
(no mask is computed), and the diagonal.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.attention_configs import AttentionConfig, pick
from kernels.attention_tiles import attend, check_contiguous, kv_format, scale_kind


@triton.jit
def prefill_attention_kernel(
    q_ptr,  # [T, num_kv_heads * GROUP, D]
    key_ptr,  # [num_blocks, BLOCK_TOKENS, num_kv_heads, D], or [slots, capacity, num_kv_heads, D]
    value_ptr,  # as key_ptr
    key_scale_ptr,  # SCALES 1: [num_kv_heads]; 2: one per token and KV head of the cache; fp32
    value_scale_ptr,  # as key_scale_ptr
    table_ptr,  # PAGED: [S, table_width] int32 blocks; else [S] int32 slots
    cu_seqlens_ptr,  # [S + 1] int32, where each chunk starts in q
    context_ptr,  # [S] int32, tokens in the cache, the chunk included
    out_ptr,  # [T, num_kv_heads * GROUP, D]
    softmax_scale,
    num_kv_heads,
    table_width,  # PAGED: blocks per row of the table; else tokens per slot
    GROUP: tl.constexpr,
    D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    PAGED: tl.constexpr,
    KV_FORMAT: tl.constexpr,
    SCALES: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """S chunks, T query tokens in all, D head size; a tile row is (query token, head of group).

    Grid: (row tiles of the longest chunk, num_kv_heads, S).
    """
    kv_head = tl.program_id(1)
    seq = tl.program_id(2).to(tl.int64)
    chunk_start = tl.load(cu_seqlens_ptr + seq)
    chunk = tl.load(cu_seqlens_ptr + seq + 1) - chunk_start
    context = tl.load(context_ptr + seq)
    # The last tile sees the most keys: started first, it does not trail at the end of the grid.
    tile = tl.num_programs(0) - 1 - tl.program_id(0)
    if tile * BLOCK_M >= chunk * GROUP:
        return

    row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    in_tile = row < chunk * GROUP
    d = tl.arange(0, D)
    head = kv_head * GROUP + row % GROUP
    out_row = (chunk_start + row // GROUP).to(tl.int64) * (num_kv_heads * GROUP) + head
    q = tl.load(q_ptr + out_row[:, None] * D + d[None, :], mask=in_tile[:, None], other=0.0)
    position = tl.where(in_tile, context - chunk + row // GROUP, -1)
    first_position = context - chunk + tile * BLOCK_M // GROUP
    last_position = context - 1 - tl.maximum(chunk - 1 - (tile * BLOCK_M + BLOCK_M - 1) // GROUP, 0)

    logit_scale = softmax_scale
    if SCALES == 1:
        logit_scale *= tl.load(key_scale_ptr + kv_head)
    if PAGED:
        table_ptr += seq * table_width
        base_token = 0
    else:
        base_token = tl.load(table_ptr + seq).to(tl.int64) * table_width
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)

    first = 0
    all_see = 0
    if WINDOW > 0:
        first = tl.maximum(first_position + 1 - WINDOW, 0)
        edge = tl.cdiv(tl.maximum(last_position + 1 - WINDOW, 0), BLOCK_N) * BLOCK_N
        all_see = tl.minimum(edge, tl.cdiv(last_position + 1, BLOCK_N) * BLOCK_N)
        acc, row_sum, row_max = attend(
            q, acc, row_sum, row_max, position,
            first // BLOCK_N * BLOCK_N, all_see, BLOCK_N, first, last_position + 1,
            key_ptr, value_ptr, key_scale_ptr, value_scale_ptr,
            table_ptr, base_token, kv_head, num_kv_heads, logit_scale,
            D, BLOCK_N, BLOCK_TOKENS, PAGED, KV_FORMAT, SCALES, SOFTCAP, WINDOW, True,
        )  # fmt: skip
    diagonal = tl.maximum((first_position + 1) // BLOCK_N * BLOCK_N, all_see)
    acc, row_sum, row_max = attend(
        q, acc, row_sum, row_max, position,
        all_see, diagonal, BLOCK_N, first, last_position + 1,
        key_ptr, value_ptr, key_scale_ptr, value_scale_ptr,
        table_ptr, base_token, kv_head, num_kv_heads, logit_scale,
        D, BLOCK_N, BLOCK_TOKENS, PAGED, KV_FORMAT, SCALES, SOFTCAP, WINDOW, False,
    )  # fmt: skip
    acc, row_sum, row_max = attend(
        q, acc, row_sum, row_max, position,
        diagonal, last_position + 1, BLOCK_N, first, last_position + 1,
        key_ptr, value_ptr, key_scale_ptr, value_scale_ptr,
        table_ptr, base_token, kv_head, num_kv_heads, logit_scale,
        D, BLOCK_N, BLOCK_TOKENS, PAGED, KV_FORMAT, SCALES, SOFTCAP, WINDOW, True,
    )  # fmt: skip
    acc = acc / tl.where(row_sum > 0, row_sum, 1.0)[:, None]
    if SCALES == 1:
        acc *= tl.load(value_scale_ptr + kv_head)
    out_ptrs = out_ptr + out_row[:, None] * D + d[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=in_tile[:, None])


def prefill_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    cu_seqlens: torch.Tensor,
    context_lens: torch.Tensor,
    *,
    max_chunk_tokens: int,
    block_table: torch.Tensor | None = None,
    slots: torch.Tensor | None = None,
    softmax_scale: float | None = None,
    window: int = 0,
    softcap: float = 0.0,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    config: AttentionConfig | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of packed chunks over their cached context.

    Parameters
    ----------
    q : [num_tokens, num_q_heads, head_dim], chunks packed one after the other; fp16, bf16, fp32;
        head_dim 64, 128 or 256
    k_cache, v_cache : with `block_table`, [num_blocks, block_tokens, num_kv_heads, head_dim],
        block_tokens a power of two; with `slots`, [num_slots, capacity, num_kv_heads, head_dim].
        The type of q, e4m3 or int8
    cu_seqlens : [num_seqs + 1] int32, offsets of the chunks in q
    context_lens : [num_seqs] int32, tokens in the cache including the chunk's
    max_chunk_tokens : at least the longest chunk
    block_table : [num_seqs, max_blocks] int32; only entries that hold visible keys are read
    slots : [num_seqs] int32, each sequence's row of the cache
    softmax_scale, window, softcap, k_scale, v_scale, out : as in `paged_attention`

    Returns
    -------
    out : [num_tokens, num_q_heads, head_dim]
    """
    check_contiguous(q=q, k_cache=k_cache, v_cache=v_cache, block_table=block_table, slots=slots,
                     k_scale=k_scale, v_scale=v_scale, out=out)  # fmt: skip
    table = slots if block_table is None else block_table
    if table is None or (block_table is not None and slots is not None):
        raise ValueError("give either block_table (paged cache) or slots (contiguous cache)")
    _, num_q_heads, head_dim = q.shape
    block_tokens, num_kv_heads = k_cache.shape[1:3]
    if num_q_heads % num_kv_heads:
        raise ValueError(f"{num_q_heads} query heads do not divide into {num_kv_heads} KV heads")
    group = num_q_heads // num_kv_heads
    k_cache, stored = kv_format(k_cache, q)
    v_cache, _ = kv_format(v_cache, q)
    paged = block_table is not None
    rows = max_chunk_tokens * group
    if config is None:
        features = (window > 0) + (softcap > 0) + (stored != "plain") + (not paged)
        config = pick(
            "prefill_attention", q.device, head_dim=head_dim, rows=rows, features=features
        )
    out = torch.empty_like(q) if out is None else out
    tiles = triton.cdiv(rows, config.block_m)
    prefill_attention_kernel[(tiles, num_kv_heads, len(cu_seqlens) - 1)](
        q, k_cache, v_cache, k_scale, v_scale, table, cu_seqlens, context_lens, out,
        head_dim**-0.5 if softmax_scale is None else softmax_scale, num_kv_heads,
        table.shape[1] if paged else block_tokens, GROUP=group, D=head_dim,
        BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_TOKENS=block_tokens if paged else 1,
        PAGED=paged, KV_FORMAT=stored, SCALES=scale_kind(k_scale, v_scale), SOFTCAP=softcap,
        WINDOW=window, num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return out
