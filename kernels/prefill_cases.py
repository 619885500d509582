"""Benchmark cases and compile jobs of the prefill kernels: ragged causal and block-sparse.

First chunks, chunks over cached context, mixed prefill and decode batches, windows, quantised
caches.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

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
from kernels.block_sparse_attention import SPARSE_BLOCK, block_sparse_attention
from kernels.cases import DTYPES, Case, Inputs, Run
from kernels.compile import AotJob
from kernels.prefill_attention import prefill_attention
from kernels.reference_attention import (
    block_sparse_attention_reference,
    prefill_attention_reference,
)


def prefill_attention_case(
    *, num_seqs: int, num_tokens: int, context_tokens: int = 0, num_q_heads: int = 32,
    num_kv_heads: int = 8, head_dim: int = 128, window: int = 0, kv_format: str = "bf16",
    block_tokens: int = 16, num_decodes: int = 0, decode_kv_tokens: int = 0, softcap: float = 0.0,
) -> Case:  # fmt: skip
    """`num_seqs` chunks of `num_tokens` after `context_tokens` cached ones, and `num_decodes`
    sequences of one new token each in the same batch. `block_tokens` 0: a contiguous cache."""
    chunks = [num_tokens] * num_seqs + [1] * num_decodes
    lens = [context_tokens + num_tokens] * num_seqs + [decode_kv_tokens] * num_decodes
    paged = block_tokens > 0
    block = block_tokens or max(lens)
    dense = kv_format == "bf16" and softcap == 0
    options: dict[str, Any] = {"window": window, "softcap": softcap, "max_chunk_tokens": num_tokens}

    def make(device: torch.device, generator: torch.Generator) -> Inputs:
        table = shuffled_table(lens, block, generator)
        shape = (sum(-(-n // block) for n in lens), block, num_kv_heads, head_dim)
        k, v = (stored_values(shape, kv_format, generator) for _ in "kv")
        q = stored_values((sum(chunks), num_q_heads, head_dim), "bf16", generator)
        flat = [dense_copy(x, table, lens) for x in (k, v)] if dense else [None, None]
        place = table if paged else table[:, 0].contiguous()
        return (
            q, k, v, offsets(chunks, device), int32(lens, device), place,
            head_scales(kv_format, num_kv_heads, device), *flat, offsets(lens, device),
        )  # fmt: skip

    def call(function: Run) -> Run:
        def run(q, k, v, cu_q, context, place, scale, *_):  # type: ignore[no-untyped-def]
            where = {"block_table" if paged else "slots": place}
            return function(
                q, k, v, cu_q, context, k_scale=scale, v_scale=scale, **where, **options
            )

        return run

    def flash(q, *rest):  # type: ignore[no-untyped-def]
        cu_q, (k, v, cu_k) = rest[2], rest[6:]
        return flash_attention(q, k, v, cu_q, cu_k, num_tokens, max(lens), window)

    def sdpa(q, *rest):  # type: ignore[no-untyped-def]
        return sdpa_attention(q, rest[6], rest[7], num_seqs, True)

    def cudnn(q, *rest):  # type: ignore[no-untyped-def]
        with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
            return sdpa_attention(q, rest[6], rest[7], num_seqs, True)

    providers: dict[str, Run] = {"headway": call(prefill_attention)}
    if dense:
        providers["flash"] = flash
        if not (context_tokens or window or num_decodes):
            providers |= {"sdpa": sdpa, "cudnn": cudnn}
    pairs = sum(visible_pairs(m, n, window) for m, n in zip(chunks, lens, strict=True))
    read = sum(min(n, window + m - 1) if window else n for m, n in zip(chunks, lens, strict=True))
    kv_bytes = 2 * read * num_kv_heads * head_dim * DTYPES[kv_format].itemsize
    return Case(
        op="prefill_attention", dtype="bf16", make_inputs=make, tolerance=TOLERANCE,
        reference=call(prefill_attention_reference), providers=providers,
        shape={
            "kv_format": kv_format, "num_seqs": num_seqs, "num_tokens": num_tokens,
            "context_tokens": context_tokens, "num_q_heads": num_q_heads,
            "num_kv_heads": num_kv_heads, "head_dim": head_dim, "window": window,
            "block_tokens": block_tokens, "num_decodes": num_decodes,
            "decode_kv_tokens": decode_kv_tokens, "softcap": softcap,
        },
        flops=4 * pairs * num_q_heads * head_dim,
        bytes=kv_bytes + 4 * sum(chunks) * num_q_heads * head_dim,
    )  # fmt: skip


def sparse_work(row: list[int], context: int, num_tokens: int) -> tuple[int, int]:
    """(query-key pairs, keys read at least once) of one head's pattern, the diagonal included."""
    sink, local, stride, offset = row
    start, pairs, read = context - num_tokens, 0, set()
    for i in range(start // SPARSE_BLOCK, -(-context // SPARSE_BLOCK)):
        seen = {*range(min(sink, i)), *range(max(i + 1 - local, 0), i)}
        seen |= set(range(offset, i, stride)) if stride else set()
        lo, hi = max(start, i * SPARSE_BLOCK), min(context, (i + 1) * SPARSE_BLOCK)
        diagonal = sum(position % SPARSE_BLOCK + 1 for position in range(lo, hi))
        pairs += (hi - lo) * len(seen) * SPARSE_BLOCK + diagonal
        read |= seen | {i}
    return pairs, min(len(read) * SPARSE_BLOCK, context)


def block_sparse_attention_case(
    *, num_tokens: int, context_tokens: int = 0, num_q_heads: int = 32, num_kv_heads: int = 8,
    head_dim: int = 128, block_tokens: int = 64, sink: int = 1, local: int = 16, stride: int = 8,
) -> Case:  # fmt: skip
    """One chunk; head h's vertical blocks start at h, so that heads cover different columns."""
    lens = [context_tokens + num_tokens]
    rows = [[sink, local, stride, h % stride if stride else 0] for h in range(num_kv_heads)]

    def make(device: torch.device, generator: torch.Generator) -> Inputs:
        shape = (-(-lens[0] // block_tokens), block_tokens, num_kv_heads, head_dim)
        k, v = (stored_values(shape, "bf16", generator) for _ in "kv")
        q = stored_values((num_tokens, num_q_heads, head_dim), "bf16", generator)
        return (
            q, k, v, shuffled_table(lens, block_tokens, generator), offsets([num_tokens], device),
            int32(lens, device), int32(rows, device),  # type: ignore[arg-type]
        )  # fmt: skip

    work = [sparse_work(row, lens[0], num_tokens) for row in rows]
    pairs = sum(pairs for pairs, _ in work) * num_q_heads // num_kv_heads
    read = sum(keys for _, keys in work)
    options: dict[str, Any] = {"max_chunk_tokens": num_tokens}
    return Case(
        op="block_sparse_attention", dtype="bf16", make_inputs=make, tolerance=TOLERANCE,
        shape={
            "num_tokens": num_tokens, "context_tokens": context_tokens, "num_q_heads": num_q_heads,
            "num_kv_heads": num_kv_heads, "head_dim": head_dim, "block_tokens": block_tokens,
            "sparse_block_tokens": SPARSE_BLOCK, "sink": sink, "local": local, "stride": stride,
        },
        flops=4 * pairs * head_dim,
        bytes=4 * read * head_dim + 4 * num_tokens * num_q_heads * head_dim,
        reference=lambda *args: block_sparse_attention_reference(*args, **options),
        providers={"headway": lambda *args: block_sparse_attention(*args, **options)},
    )  # fmt: skip


def benchmark_cases() -> list[Case]:
    """The default grid: Llama-3.1-8B's heads, first and later chunks, a mixed batch, features."""
    whole = [(1, n, 0) for n in (512, 2048, 8192)] + [(8, 1024, 0)]
    later = [(1, 512, 4096), (1, 512, 32768), (1, 2048, 32768), (4, 256, 8192)]
    sizes = [dict(zip(("num_seqs", "num_tokens", "context_tokens"), x, strict=True))
             for x in whole + later]  # fmt: skip
    one: dict[str, Any] = {"num_seqs": 1, "num_tokens": 2048, "context_tokens": 8192}
    return [
        *(prefill_attention_case(**size) for size in sizes),
        prefill_attention_case(**one, block_tokens=0),
        prefill_attention_case(**one, block_tokens=64),
        prefill_attention_case(**one, window=4096),
        prefill_attention_case(**one, softcap=50.0, head_dim=256, num_q_heads=16),
        prefill_attention_case(**one, kv_format="fp8"),
        prefill_attention_case(num_seqs=1, num_tokens=512, num_decodes=64, decode_kv_tokens=2048),
        *(block_sparse_attention_case(num_tokens=n) for n in (8192, 16384)),
    ]


ATTEND = {"key_scale_ptr": "*fp32", "value_scale_ptr": "*fp32", "table_ptr": "*i32"}
SEQUENCES = {"cu_seqlens_ptr": "*i32", "context_ptr": "*i32", "softmax_scale": "fp32"}


def _prefill_job(
    target: int, row: AttentionConfig, head_dim: int, *, stored: str = "*bf16",
    kv_format: str = "plain", scales: int = 0, softcap: float = 0.0, window: int = 0,
    group: int = 4, block_tokens: int = 16, note: str = "",
) -> AotJob:  # fmt: skip
    paged = block_tokens > 0
    return AotJob(
        kernel="kernels.prefill_attention:prefill_attention_kernel", target=target,
        config=f"d{head_dim}-{row.label}{note}", num_warps=row.num_warps,
        num_stages=row.num_stages,
        signature={
            "q_ptr": "*bf16", "key_ptr": stored, "value_ptr": stored, "out_ptr": "*bf16",
            **ATTEND, **SEQUENCES, "num_kv_heads": "i32", "table_width": "i32",
        },
        constants={
            "GROUP": group, "D": head_dim, "BLOCK_M": row.block_m, "BLOCK_N": row.block_n,
            "BLOCK_TOKENS": block_tokens if paged else 1, "PAGED": paged, "KV_FORMAT": kv_format,
            "SCALES": scales, "SOFTCAP": softcap, "WINDOW": window,
        },
    )  # fmt: skip


def _sparse_job(target: int, row: AttentionConfig, head_dim: int, block_tokens: int = 64) -> AotJob:
    return AotJob(
        kernel="kernels.block_sparse_attention:block_sparse_attention_kernel", target=target,
        config=f"d{head_dim}-{row.label}-block{block_tokens}", num_warps=row.num_warps,
        num_stages=row.num_stages,
        signature={
            "q_ptr": "*bf16", "key_ptr": "*bf16", "value_ptr": "*bf16", "out_ptr": "*bf16",
            "pattern_ptr": "*i32", **ATTEND, **SEQUENCES, "num_kv_heads": "i32",
            "max_blocks": "i32",
        },
        constants={
            "GROUP": 4, "D": head_dim, "B": SPARSE_BLOCK, "BLOCK_M": row.block_m,
            "BLOCK_TOKENS": block_tokens, "KV_FORMAT": "plain", "SCALES": 0, "SOFTCAP": 0.0,
        },
    )  # fmt: skip


def aot_jobs(target: int) -> list[AotJob]:
    """Every configuration of the prefill kernels on one chip; on the one for head size 128 also
    every feature that changes the code."""
    table = table_rows("prefill_attention", target)
    jobs = [_prefill_job(target, row, bounds.get("head_dim_max", 256)) for bounds, row in table]
    main, full = (
        next(row for bounds, row in table if bounds == {"head_dim_max": 128, **features})
        for features in ({"features_max": 0}, {})
    )
    fp8 = ("*u8", "fp8_bits") if target < 89 else ("*fp8e4nv", "fp8")
    jobs += [
        _prefill_job(target, main, 128, block_tokens=128, note="-block128"),
        _prefill_job(target, full, 128, block_tokens=0, note="-contiguous"),
        _prefill_job(target, full, 128, window=4096, note="-window"),
        _prefill_job(target, full, 128, softcap=50.0, group=7, note="-softcap"),
        _prefill_job(target, full, 128, stored=fp8[0], kv_format=fp8[1], scales=1, note="-fp8"),
    ]
    for bounds, row in table_rows("block_sparse_attention", target):
        jobs.append(_sparse_job(target, row, bounds.get("head_dim_max", 256)))
    # Two rows of a table may name one configuration.
    return list({(job.kernel, job.config): job for job in jobs}.values())
