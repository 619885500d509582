"""Naive torch references of the attention kernels: one sequence and one head at a time, in fp64.

They read the caches by the definition (block table entry, offset in the block) and share no code
with the kernels. `attention_of_rows` is the truth of them all.
"""

from __future__ import annotations

import torch


def attention_of_rows(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: torch.Tensor,
    softmax_scale: float,
    softcap: float = 0.0,
    sink: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(q k^T) v with a mask; rows that see nothing are zero.

    q [rows, head_dim], k [keys, head_dim], v [keys, v_dim], visible [rows, keys] bool, sink a
    scalar logit that joins the denominator. Keys seen by no row do not contribute even if NaN.
    """
    seen = visible.any(0)
    q, k, v, visible = q.double(), k[seen].double(), v[seen].double(), visible[:, seen]
    logits = (q @ k.T) * softmax_scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    logits = logits.masked_fill(~visible, float("-inf"))
    last = logits.new_full((len(q), 1), float("-inf" if sink is None else sink))
    logits = torch.cat([logits, last], 1)
    weights = torch.softmax(logits, 1).nan_to_num(nan=0.0)[:, :-1]
    return weights @ v


def gather(cache: torch.Tensor, table_row: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """[num_blocks, block_tokens, ...] -> the sequence's first `num_tokens` tokens, in order.

    Entries of the table that name no block of the cache stand for blocks that were freed (outside
    the window, or never seen); any block serves in their place.
    """
    blocks = table_row[: -(-num_tokens // cache.shape[1])].long()
    blocks = torch.where((blocks >= 0) & (blocks < len(cache)), blocks, 0)
    raw = cache.view(torch.uint8) if cache.dtype == torch.float8_e4m3fn else cache
    tokens = raw[blocks].flatten(0, 1)[:num_tokens]
    return tokens.view(cache.dtype) if raw is not cache else tokens


def causal(context: int, num_queries: int, window: int, device: torch.device) -> torch.Tensor:
    """[num_queries, context] bool: the queries are the context's last tokens."""
    key = torch.arange(context, device=device)
    query = torch.arange(context - num_queries, context, device=device)[:, None]
    visible = key <= query
    return visible & (key > query - window) if window else visible


def ragged_attention(
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    visible: torch.Tensor,
    softmax_scale: float | None,
    softcap: float,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """One sequence, all heads. q [tokens, num_q_heads, head_dim]; keys, values [context,
    num_kv_heads, head_dim]; visible [tokens, context] or [num_kv_heads, tokens, context]."""
    num_q_heads, group = q.shape[1], q.shape[1] // keys.shape[1]
    scale = q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale
    heads = [
        attention_of_rows(
            q[:, h], keys[:, h // group], values[:, h // group],
            visible if visible.ndim == 2 else visible[h // group], scale, softcap,
            None if sinks is None else sinks[h],
        )
        for h in range(num_q_heads)
    ]  # fmt: skip
    return torch.stack(heads, 1)


def _sequence(
    cache: torch.Tensor, scale: torch.Tensor | None, table_row: torch.Tensor, context: int
) -> torch.Tensor:
    """One sequence's keys or values times their scales, fp32 [context, num_kv_heads, head_dim]."""
    tokens = gather(cache, table_row, context)
    if scale is not None and scale.ndim > 1:
        return tokens.float() * gather(scale, table_row, context)[..., None]
    return tokens.float() if scale is None else tokens.float() * scale[:, None]


def paged_attention_reference(  # type: ignore[no-untyped-def]
    q, k_cache, v_cache, block_table, context_lens, *, softmax_scale=None, window=0, softcap=0.0,
    sinks=None, k_scale=None, v_scale=None,
) -> torch.Tensor:  # fmt: skip
    """`paged_attention.paged_attention`, same arguments."""
    out = torch.zeros_like(q)
    num_queries = q.shape[1]
    for s, context in enumerate(context_lens.tolist()):
        real = min(num_queries, context)  # queries before the first token see nothing
        if real:
            keys = _sequence(k_cache, k_scale, block_table[s], context)
            values = _sequence(v_cache, v_scale, block_table[s], context)
            visible = causal(context, real, window, q.device)
            rows = ragged_attention(q[s, -real:], keys, values, visible, softmax_scale, softcap,
                                    sinks)  # fmt: skip
            out[s, -real:] = rows.to(q.dtype)
    return out


def mla_decode_reference(q, cache, block_table, context_lens, *, softmax_scale) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """`mla_decode.mla_decode`: one key head of 576 whose first 512 columns are the value."""
    out = q.new_zeros(*q.shape[:2], 512)
    for s, context in enumerate(context_lens.tolist()):
        keys = gather(cache, block_table[s], context)
        visible = torch.ones(q.shape[1], context, dtype=torch.bool, device=q.device)
        out[s] = attention_of_rows(q[s], keys, keys[:, :512], visible, softmax_scale).to(q.dtype)
    return out


def prefill_attention_reference(  # type: ignore[no-untyped-def]
    q, k_cache, v_cache, cu_seqlens, context_lens, *, block_table=None, slots=None,
    softmax_scale=None, window=0, softcap=0.0, k_scale=None, v_scale=None, max_chunk_tokens=0,
) -> torch.Tensor:  # fmt: skip
    """`prefill_attention.prefill_attention`, same arguments; a slot is a block of its own."""
    table = slots[:, None] if block_table is None else block_table
    bounds = cu_seqlens.tolist()
    out = torch.zeros_like(q)
    for s, context in enumerate(context_lens.tolist()):
        chunk = q[bounds[s] : bounds[s + 1]]
        keys = _sequence(k_cache, k_scale, table[s], context)
        values = _sequence(v_cache, v_scale, table[s], context)
        visible = causal(context, len(chunk), window, q.device)
        rows = ragged_attention(chunk, keys, values, visible, softmax_scale, softcap)
        out[bounds[s] : bounds[s + 1]] = rows.to(q.dtype)
    return out


def sparse_mask(pattern_row: list[int], context: int, num_queries: int, block: int = 64):  # type: ignore[no-untyped-def]
    """[num_queries, context] bool of one KV head, by the definition in the kernel's docstring."""
    sink, local, stride, offset = pattern_row
    visible = causal(context, num_queries, 0, torch.device("cpu"))
    i = (torch.arange(context - num_queries, context) // block)[:, None]
    j = (torch.arange(context) // block)[None, :]
    chosen = (j < sink) | (i - j < local)
    if stride:
        chosen |= j % stride == offset
    return visible & chosen


def block_sparse_attention_reference(  # type: ignore[no-untyped-def]
    q, k_cache, v_cache, block_table, cu_seqlens, context_lens, pattern, *, softmax_scale=None,
    softcap=0.0, k_scale=None, v_scale=None, max_chunk_tokens=0,
) -> torch.Tensor:  # fmt: skip
    """`block_sparse_attention.block_sparse_attention`, same arguments."""
    bounds = cu_seqlens.tolist()
    out = torch.zeros_like(q)
    for s, context in enumerate(context_lens.tolist()):
        chunk = q[bounds[s] : bounds[s + 1]]
        keys = _sequence(k_cache, k_scale, block_table[s], context)
        values = _sequence(v_cache, v_scale, block_table[s], context)
        visible = torch.stack([sparse_mask(p, context, len(chunk)) for p in pattern.tolist()])
        rows = ragged_attention(chunk, keys, values, visible.to(q.device), softmax_scale, softcap)
        out[bounds[s] : bounds[s + 1]] = rows.to(q.dtype)
    return out
