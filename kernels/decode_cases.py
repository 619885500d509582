"""Benchmark cases and compile jobs of the decode kernels: paged attention and MLA.

Uniform batches, ragged ones (one long sequence among short), windows, quantised caches, and
verification of drafted tokens.
"""

from __future__ import annotations

from typing import Any

import torch

from kernels.attention_configs import AttentionConfig, table_rows
from kernels.attention_inputs import (
    TOLERANCE,
    dense_copy,
    flash_attention,
    head_scales,
    int32,
    offsets,
    sdpa_attention,
    shuffled_table,
    stored_values,
    visible_pairs,
)
from kernels.cases import DTYPES, Case, Inputs, Run
from kernels.compile import AotJob
from kernels.mla_decode import LATENT, ROPE, mla_decode
from kernels.paged_attention import paged_attention
from kernels.reference_attention import mla_decode_reference, paged_attention_reference


def decode_attention_case(
    *, num_seqs: int, kv_tokens: int, num_q_heads: int = 32, num_kv_heads: int = 8,
    head_dim: int = 128, window: int = 0, kv_format: str = "bf16", num_queries: int = 1,
    block_tokens: int = 16, long_tokens: int = 0, softcap: float = 0.0,
) -> Case:  # fmt: skip
    """Decode over a paged cache; `kv_tokens` of each sequence, its queries included, but
    `long_tokens` of the first if given."""
    lens = [long_tokens or kv_tokens, *[kv_tokens] * (num_seqs - 1)]
    uniform = len(set(lens)) == 1
    dense = kv_format == "bf16" and softcap == 0 and num_seqs > 0
    options: dict[str, Any] = {"window": window, "softcap": softcap}

    def make(device: torch.device, generator: torch.Generator) -> Inputs:
        table = shuffled_table(lens, block_tokens, generator)
        blocks = sum(-(-n // block_tokens) for n in lens)
        shape = (blocks, block_tokens, num_kv_heads, head_dim)
        k, v = (stored_values(shape, kv_format, generator) for _ in "kv")
        q = stored_values((num_seqs, num_queries, num_q_heads, head_dim), "bf16", generator)
        scale = head_scales(kv_format, num_kv_heads, device)
        flat = [dense_copy(x, table, lens) for x in (k, v)] if dense else [None, None]
        cu_q = offsets([num_queries] * num_seqs, device)
        return (q, k, v, table, int32(lens, device), scale, *flat, cu_q, offsets(lens, device))

    def ours(q, k, v, table, context, scale, *_):  # type: ignore[no-untyped-def]
        return paged_attention(q, k, v, table, context, k_scale=scale, v_scale=scale, **options)

    def truth(q, k, v, table, context, scale, *_):  # type: ignore[no-untyped-def]
        return paged_attention_reference(
            q, k, v, table, context, k_scale=scale, v_scale=scale, **options
        )

    def flash(q, *rest):  # type: ignore[no-untyped-def]
        k, v, cu_q, cu_k = rest[5:]
        flat = q.flatten(0, 1)
        return flash_attention(flat, k, v, cu_q, cu_k, num_queries, max(lens), window).view_as(q)

    def sdpa(q, *rest):  # type: ignore[no-untyped-def]
        k, v, _, _ = rest[5:]
        return sdpa_attention(q.flatten(0, 1), k, v, num_seqs, False).view_as(q)

    providers: dict[str, Run] = {"headway": ours}
    if dense:
        providers["flash"] = flash
        if uniform and num_queries == 1 and not window:
            providers["sdpa"] = sdpa
    pairs = sum(visible_pairs(num_queries, n, window) for n in lens)
    read = sum(min(n, window + num_queries - 1) if window else n for n in lens)
    kv_bytes = 2 * read * num_kv_heads * head_dim * DTYPES[kv_format].itemsize
    return Case(
        op="decode_attention", dtype="bf16", make_inputs=make, reference=truth, tolerance=TOLERANCE,
        shape={
            "kv_format": kv_format, "num_seqs": num_seqs, "kv_tokens": kv_tokens,
            "num_q_heads": num_q_heads, "num_kv_heads": num_kv_heads, "head_dim": head_dim,
            "window": window, "num_queries": num_queries, "block_tokens": block_tokens,
            "long_tokens": long_tokens, "softcap": softcap,
        },
        flops=4 * pairs * num_q_heads * head_dim, providers=providers,
        bytes=kv_bytes + 4 * num_seqs * num_queries * num_q_heads * head_dim,
    )  # fmt: skip


def mla_decode_case(
    *, num_seqs: int, kv_tokens: int, num_heads: int = 128, block_tokens: int = 64
) -> Case:
    """Absorbed MLA decode of DeepSeek-V3's shape; `num_heads` on this GPU."""
    lens, width = [kv_tokens] * num_seqs, LATENT + ROPE
    scale = 192**-0.5

    def make(device: torch.device, generator: torch.Generator) -> Inputs:
        table = shuffled_table(lens, block_tokens, generator)
        shape = (num_seqs * -(-kv_tokens // block_tokens), block_tokens, width)
        q = stored_values((num_seqs, num_heads, width), "bf16", generator) / 3
        return q, stored_values(shape, "bf16", generator), table, int32(lens, device)

    return Case(
        op="mla_decode", dtype="bf16", make_inputs=make, tolerance=TOLERANCE,
        shape={
            "num_seqs": num_seqs, "kv_tokens": kv_tokens, "num_heads": num_heads,
            "block_tokens": block_tokens,
        },
        flops=2 * num_seqs * kv_tokens * num_heads * (width + LATENT),
        bytes=2 * num_seqs * (kv_tokens * width + num_heads * (width + LATENT)),
        reference=lambda *args: mla_decode_reference(*args, softmax_scale=scale),
        providers={"headway": lambda *args: mla_decode(*args, softmax_scale=scale)},
    )  # fmt: skip


def benchmark_cases() -> list[Case]:
    """The default grid: Llama-3.1-8B's heads from 1 to 256 sequences, then each feature once."""
    sizes = [(1, 1024), (1, 131072), (8, 8192), (32, 2048), (64, 8192), (256, 1024), (256, 4096)]
    one: dict[str, Any] = {"num_seqs": 64, "kv_tokens": 4096}
    return [
        *(decode_attention_case(num_seqs=s, kv_tokens=n) for s, n in sizes),
        *(decode_attention_case(**one, block_tokens=b) for b in (32, 64, 128)),
        *(decode_attention_case(**one, num_queries=k + 1) for k in (1, 3, 7)),
        *(decode_attention_case(**one, kv_format=f) for f in ("fp8", "int8")),
        decode_attention_case(**one, num_kv_heads=32),
        decode_attention_case(**one, num_q_heads=16, num_kv_heads=1),
        decode_attention_case(**one, head_dim=64),
        decode_attention_case(**one, window=1024),
        decode_attention_case(**one, softcap=50.0, head_dim=256, num_q_heads=16),
        decode_attention_case(**one, long_tokens=131072),
        *(
            mla_decode_case(num_seqs=s, kv_tokens=n)
            for s, n in [(1, 8192), (32, 4096), (128, 2048)]
        ),
        mla_decode_case(num_seqs=32, kv_tokens=4096, num_heads=16),
    ]


def _paged_job(
    target: int, row: AttentionConfig, head_dim: int, *, stored: str = "*bf16",
    kv_format: str = "plain", scales: int = 0, softcap: float = 0.0, window: int = 0,
    sinks: bool = False, queries: int = 1, group: int = 4, block_tokens: int = 16,
    splits: int = 8, note: str = "",
) -> AotJob:  # fmt: skip
    return AotJob(
        kernel="kernels.paged_attention:paged_attention_kernel", target=target,
        config=f"d{head_dim}-{row.label}{note}", num_warps=row.num_warps,
        num_stages=row.num_stages,
        signature={
            "q_ptr": "*bf16", "key_ptr": stored, "value_ptr": stored, "key_scale_ptr": "*fp32",
            "value_scale_ptr": "*fp32", "table_ptr": "*i32", "context_ptr": "*i32",
            "sink_ptr": "*fp32", "out_ptr": "*bf16", "partial_ptr": "*fp32", "lse_ptr": "*fp32",
            "softmax_scale": "fp32", "num_kv_heads": "i32", "max_blocks": "i32",
        },
        constants={
            "Q": queries, "GROUP": group, "D": head_dim, "BLOCK_M": row.block_m,
            "BLOCK_N": row.block_n, "BLOCK_TOKENS": block_tokens, "NUM_SPLITS": splits,
            "KV_FORMAT": kv_format, "SCALES": scales, "SOFTCAP": softcap, "WINDOW": window,
            "SINKS": sinks,
        },
    )  # fmt: skip


def _mla_job(target: int, row: AttentionConfig, splits: int) -> AotJob:
    return AotJob(
        kernel="kernels.mla_decode:mla_decode_kernel", target=target,
        config=f"{row.label}-splits{splits}", num_warps=row.num_warps, num_stages=row.num_stages,
        signature={
            "q_ptr": "*bf16", "cache_ptr": "*bf16", "table_ptr": "*i32", "context_ptr": "*i32",
            "out_ptr": "*bf16", "partial_ptr": "*fp32", "lse_ptr": "*fp32",
            "softmax_scale": "fp32", "max_blocks": "i32",
        },
        constants={
            "H": 128, "LATENT": LATENT, "ROPE": ROPE, "BLOCK_H": row.block_m,
            "BLOCK_N": row.block_n, "BLOCK_TOKENS": 64, "NUM_SPLITS": splits,
        },
    )  # fmt: skip


def _reduce_job(target: int, head_dim: int) -> AotJob:
    return AotJob(
        kernel="kernels.attention_tiles:reduce_splits",
        target=target,
        config=f"d{head_dim}",
        signature={"partial_ptr": "*fp32", "lse_ptr": "*fp32", "out_ptr": "*bf16"},
        constants={"D": head_dim, "NUM_SPLITS": 20, "BLOCK_S": 8},
    )


def aot_jobs(target: int) -> list[AotJob]:
    """Every configuration of the decode kernels on one chip; on the one for head size 128 also
    every feature that changes the code."""
    table = table_rows("paged_attention", target)
    jobs = [_paged_job(target, row, bounds.get("head_dim_max", 256)) for bounds, row in table]
    main = next(row for bounds, row in table if bounds == {"rows_max": 16, "head_dim_max": 128})
    verify = next(row for bounds, row in table if bounds == {"rows_max": 32, "head_dim_max": 128})
    fp8 = ("*u8", "fp8_bits") if target < 89 else ("*fp8e4nv", "fp8")
    jobs += [
        _paged_job(target, main, 128, block_tokens=128, note="-block128"),
        _paged_job(target, main, 128, splits=1, note="-splits1"),
        _paged_job(target, main, 128, window=128, sinks=True, note="-window-sinks"),
        _paged_job(target, main, 128, softcap=50.0, note="-softcap"),
        _paged_job(target, main, 128, stored=fp8[0], kv_format=fp8[1], scales=1, note="-fp8"),
        _paged_job(target, main, 128, stored="*i8", kv_format="int8", scales=2, note="-int8"),
        _paged_job(target, verify, 128, queries=4, group=7, note="-verify"),
    ]
    jobs += [_mla_job(target, row, 8) for _, row in table_rows("mla_decode", target)]
    return [*jobs, *(_reduce_job(target, d) for d in (64, 128, 256, LATENT))]
