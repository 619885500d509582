"""Block-sparse prefill attention: each KV head sees its own pattern of 64-token blocks.

Query block i (64 consecutive positions of one sequence) sees key block j <= i if j is one of the
first `sink` blocks, or i - j < `local`, or j % `stride` == `offset`: the local + vertical-stride
pattern of S2-Attention (arXiv 2407.17678) and, with stride 0, the sink + local streaming heads of
LServe (arXiv 2502.14866). The heads of a group share a pattern, so a key block is read for all of
them or for none. Blocks outside the pattern are never visited: the three parts are three arithmetic
progressions, and only the diagonal block needs a mask.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.attention_configs import AttentionConfig, pick
from kernels.attention_tiles import attend, check_contiguous, kv_format, scale_kind

SPARSE_BLOCK = 64  # tokens; also the key tile, so `block_n` of the table must say the same


@triton.jit
def block_sparse_attention_kernel(
    q_ptr,  # [T, num_kv_heads * GROUP, D]
    key_ptr,  # [num_blocks, BLOCK_TOKENS, num_kv_heads, D]
    value_ptr,  # as key_ptr
    key_scale_ptr,  # SCALES 1: [num_kv_heads]; 2: [num_blocks, BLOCK_TOKENS, num_kv_heads]; fp32
    value_scale_ptr,  # as key_scale_ptr
    pattern_ptr,  # [num_kv_heads, 4] int32: sink, local, stride, offset, in blocks of B tokens
    table_ptr,  # [S, max_blocks] int32
    cu_seqlens_ptr,  # [S + 1] int32, where each chunk starts in q
    context_ptr,  # [S] int32, tokens in the cache, the chunk included
    out_ptr,  # [T, num_kv_heads * GROUP, D]
    softmax_scale,
    num_kv_heads,
    max_blocks,
    GROUP: tl.constexpr,
    D: tl.constexpr,
    B: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    KV_FORMAT: tl.constexpr,
    SCALES: tl.constexpr,
    SOFTCAP: tl.constexpr,
):
    """S chunks, T query tokens in all, D head size, B tokens per sparse block.

    Grid: (query tiles of the longest chunk, num_kv_heads * GROUP, S). A program owns the rows of
    its chunk that fall into one tile of BLOCK_M positions of one head; BLOCK_M divides B.
    """
    head = tl.program_id(1)
    kv_head = head // GROUP
    seq = tl.program_id(2).to(tl.int64)
    chunk_start = tl.load(cu_seqlens_ptr + seq)
    chunk = tl.load(cu_seqlens_ptr + seq + 1) - chunk_start
    context = tl.load(context_ptr + seq)
    start = context - chunk  # position of the chunk's first token
    tile = start // BLOCK_M + tl.num_programs(0) - 1 - tl.program_id(0)
    if (tile * BLOCK_M >= context) | (chunk == 0):
        return

    query_block = tile * BLOCK_M // B
    position = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    in_tile = (position >= start) & (position < context)
    d = tl.arange(0, D)
    out_row = (chunk_start + position - start).to(tl.int64) * (num_kv_heads * GROUP) + head
    q = tl.load(q_ptr + out_row[:, None] * D + d[None, :], mask=in_tile[:, None], other=0.0)

    sink = tl.load(pattern_ptr + kv_head * 4)
    local = tl.load(pattern_ptr + kv_head * 4 + 1)
    stride = tl.load(pattern_ptr + kv_head * 4 + 2)
    offset = tl.load(pattern_ptr + kv_head * 4 + 3)
    local_lo = tl.maximum(query_block + 1 - local, 0)
    sink_hi = tl.minimum(sink, local_lo)
    # The first vertical block at or after the sinks.
    step = tl.maximum(stride, 1)
    vertical_lo = offset + tl.cdiv(tl.maximum(sink - offset, 0), step) * step
    vertical_hi = tl.where(stride > 0, local_lo, 0)

    logit_scale = softmax_scale
    if SCALES == 1:
        logit_scale *= tl.load(key_scale_ptr + kv_head)
    table_ptr += seq * max_blocks
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    acc, row_sum, row_max = attend(
        q, acc, row_sum, row_max, position, 0, sink_hi * B, B, 0, context,
        key_ptr, value_ptr, key_scale_ptr, value_scale_ptr,
        table_ptr, 0, kv_head, num_kv_heads, logit_scale,
        D, B, BLOCK_TOKENS, True, KV_FORMAT, SCALES, SOFTCAP, 0, False,
    )  # fmt: skip
    acc, row_sum, row_max = attend(
        q, acc, row_sum, row_max, position, vertical_lo * B, vertical_hi * B, step * B, 0, context,
        key_ptr, value_ptr, key_scale_ptr, value_scale_ptr,
        table_ptr, 0, kv_head, num_kv_heads, logit_scale,
        D, B, BLOCK_TOKENS, True, KV_FORMAT, SCALES, SOFTCAP, 0, False,
    )  # fmt: skip
    acc, row_sum, row_max = attend(
        q, acc, row_sum, row_max, position, local_lo * B, query_block * B, B, 0, context,
        key_ptr, value_ptr, key_scale_ptr, value_scale_ptr,
        table_ptr, 0, kv_head, num_kv_heads, logit_scale,
        D, B, BLOCK_TOKENS, True, KV_FORMAT, SCALES, SOFTCAP, 0, False,
    )  # fmt: skip
    acc, row_sum, row_max = attend(
        q, acc, row_sum, row_max, position, query_block * B, query_block * B + 1, B, 0, context,
        key_ptr, value_ptr, key_scale_ptr, value_scale_ptr,
        table_ptr, 0, kv_head, num_kv_heads, logit_scale,
        D, B, BLOCK_TOKENS, True, KV_FORMAT, SCALES, SOFTCAP, 0, True,
    )  # fmt: skip
    acc = acc / tl.where(row_sum > 0, row_sum, 1.0)[:, None]
    if SCALES == 1:
        acc *= tl.load(value_scale_ptr + kv_head)
    out_ptrs = out_ptr + out_row[:, None] * D + d[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=in_tile[:, None])


def block_sparse_attention(
    q: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    block_table: torch.Tensor,
    cu_seqlens: torch.Tensor,
    context_lens: torch.Tensor,
    pattern: torch.Tensor,
    *,
    max_chunk_tokens: int,
    softmax_scale: float | None = None,
    softcap: float = 0.0,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
    config: AttentionConfig | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Causal attention of packed chunks over the key blocks of each KV head's pattern.

    Parameters
    ----------
    q, k_cache, v_cache, block_table, cu_seqlens, context_lens, max_chunk_tokens, softmax_scale,
    softcap, k_scale, v_scale, out : as in `prefill_attention`; blocks outside every query's
        pattern need no entry in the block table
    pattern : [num_kv_heads, 4] int32, (sink, local, stride, offset) in blocks of 64 tokens;
        local >= 1, so that every query sees itself; stride 0 means no vertical blocks;
        0 <= offset < stride

    Returns
    -------
    out : [num_tokens, num_q_heads, head_dim]
    """
    check_contiguous(q=q, k_cache=k_cache, v_cache=v_cache, block_table=block_table,
                     pattern=pattern, k_scale=k_scale, v_scale=v_scale, out=out)  # fmt: skip
    _, num_q_heads, head_dim = q.shape
    block_tokens, num_kv_heads = k_cache.shape[1:3]
    if pattern.shape != (num_kv_heads, 4):
        raise ValueError(f"pattern must be [{num_kv_heads}, 4] (got {list(pattern.shape)})")
    k_cache, stored = kv_format(k_cache, q)
    v_cache, _ = kv_format(v_cache, q)
    config = config or pick("block_sparse_attention", q.device, head_dim=head_dim, rows=1)
    out = torch.empty_like(q) if out is None else out
    # A chunk that starts inside a tile touches one tile more.
    tiles = triton.cdiv(max_chunk_tokens + config.block_m - 1, config.block_m)
    block_sparse_attention_kernel[(tiles, num_q_heads, len(cu_seqlens) - 1)](
        q, k_cache, v_cache, k_scale, v_scale, pattern, block_table, cu_seqlens, context_lens, out,
        head_dim**-0.5 if softmax_scale is None else softmax_scale, num_kv_heads,
        block_table.shape[1], GROUP=num_q_heads // num_kv_heads, D=head_dim, B=SPARSE_BLOCK,
        BLOCK_M=config.block_m, BLOCK_TOKENS=block_tokens, KV_FORMAT=stored,
        SCALES=scale_kind(k_scale, v_scale), SOFTCAP=softcap,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return out
