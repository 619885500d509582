"""Inputs and torch providers shared by the attention benchmark cases.

The torch providers read a dense copy of the same keys and values: what they take for the same
attention without a block table.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from kernels.cases import DTYPES
from kernels.reference_attention import gather

TOLERANCE = 3e-2  # bf16 inputs and outputs, fp32 softmax
UNIT = {"bf16": 1.0, "fp16": 1.0, "fp8": 0.5, "int8": 1 / 40}  # scale of stored KV values


def stored_values(
    shape: tuple[int, ...], kv_format: str, generator: torch.Generator
) -> torch.Tensor:
    """Normal values as the cache stores them; times UNIT they have unit variance."""
    x = torch.randn(shape, device=generator.device, generator=generator, dtype=torch.float32)
    x = (x / UNIT[kv_format]).clamp(-127, 127)
    return (x.round() if kv_format == "int8" else x).to(DTYPES[kv_format])


def shuffled_table(lens: list[int], block_tokens: int, generator: torch.Generator) -> torch.Tensor:
    """[num_seqs, max_blocks] int32: every block of the cache, shuffled."""
    counts = [-(-n // block_tokens) for n in lens]
    device = generator.device
    order = torch.randperm(sum(counts), generator=generator, device=device).to(torch.int32)
    rows = torch.nn.utils.rnn.pad_sequence(list(order.split(counts)), batch_first=True)
    return rows.contiguous()


def head_scales(kv_format: str, num_kv_heads: int, device: torch.device) -> torch.Tensor | None:
    """[num_kv_heads] fp32 of a quantised cache; None of a plain one."""
    if kv_format in ("bf16", "fp16"):
        return None
    return torch.full((num_kv_heads,), UNIT[kv_format], device=device)


def dense_copy(cache: torch.Tensor, table: torch.Tensor, lens: list[int]) -> torch.Tensor:
    """[sum of lens, num_kv_heads, head_dim]: the sequences' keys or values one after the other."""
    return torch.cat([gather(cache, row, n) for row, n in zip(table, lens, strict=True)])


def int32(values: list[int], device: torch.device) -> torch.Tensor:
    """On the device, as every length and table."""
    return torch.tensor(values, dtype=torch.int32, device=device)


def offsets(lens: list[int], device: torch.device) -> torch.Tensor:
    """[len + 1] int32: where each sequence starts in a packed batch."""
    return torch.nn.functional.pad(int32(lens, device).cumsum(0), (1, 0)).to(torch.int32)


def visible_pairs(chunk: int, context: int, window: int) -> int:
    """Query-key pairs of the last `chunk` tokens of a context."""
    last = range(context - chunk + 1, context + 1)
    return sum(min(n, window) for n in last) if window else (last[0] + last[-1]) * chunk // 2


def flash_attention(q, k, v, cu_q, cu_k, max_q, max_k, window):  # type: ignore[no-untyped-def]
    """Torch's bundled FlashAttention-2, ragged, causal from the bottom right."""
    left = {"window_size_left": window - 1, "window_size_right": 0} if window else {}
    return torch.ops.aten._flash_attention_forward(
        q, k, v, cu_q, cu_k, max_q, max_k, 0.0, True, False, **left
    )[0]


def sdpa_attention(q, k, v, num_seqs, causal):  # type: ignore[no-untyped-def]
    """Dense [num_seqs * tokens, heads, head_dim] through scaled_dot_product_attention."""
    q, k, v = (x.unflatten(0, (num_seqs, -1)).transpose(1, 2) for x in (q, k, v))
    out = scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)
    return out.transpose(1, 2).flatten(0, 1)
