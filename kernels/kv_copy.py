"""Block-wise KV copies for swapping: many small transfers against few large ones.

Evicted blocks lie scattered. Copied one by one to the host, each pays a driver call and a small
transfer; gathered first by `copy_blocks` into one contiguous staging buffer, they leave in one
large transfer (FastSwitch 2411.18424 groups blocks for the same reason); with the host buffer
pinned, the kernel can also write it directly across the bus. All three are benchmark providers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.cases import Case
from kernels.compile import AotJob
from kernels.reference_linear import copy_blocks_reference

CHUNK = 4096  # 8-byte words a program copies


@triton.jit
def copy_blocks_kernel(
    source,  # [source blocks, WORDS] int64 words
    target,  # [target blocks, WORDS]
    pairs,  # [P, 2] int64: from, to
    WORDS,
    CHUNK: tl.constexpr,
):
    """Grid (P, chunks of a block). target[to] = source[from]."""
    pair = tl.program_id(0)
    word = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    mask = word < WORDS
    start = tl.load(pairs + 2 * pair) * WORDS
    end = tl.load(pairs + 2 * pair + 1) * WORDS
    # Read once, written once: keep the L2 for what the model is using.
    value = tl.load(source + start + word, mask=mask, eviction_policy="evict_first")
    tl.store(target + end + word, value, mask=mask, eviction_policy="evict_first")


def copy_blocks(source: torch.Tensor, target: torch.Tensor, pairs: torch.Tensor) -> None:
    """target[to] = source[from] for each row (from, to) of pairs [P, 2] int64; blocks are dim 0.

    Gather: `to` counts up in a staging buffer; scatter: `from` does; both: a copy-on-write. Blocks
    are contiguous, of one size, a multiple of 8 bytes. `target` must not name a block twice.
    """
    if source.dtype != target.dtype or source.shape[1:] != target.shape[1:]:
        raise ValueError(f"blocks differ: {tuple(source.shape[1:])} and {tuple(target.shape[1:])}")
    if not (source.is_contiguous() and target.is_contiguous()):
        raise ValueError("source and target must be contiguous")
    words, rest = divmod(source[0].numel() * source.element_size(), 8)
    if rest or pairs.dtype != torch.int64:
        raise ValueError("a block must be a multiple of 8 bytes, and pairs int64")
    if pairs.shape[0] == 0:
        return
    copy_blocks_kernel[(pairs.shape[0], triton.cdiv(words, CHUNK))](
        source.view(-1).view(torch.int64), target.view(-1).view(torch.int64), pairs.contiguous(),
        words, CHUNK=CHUNK, num_warps=8,
    )  # fmt: skip


def gather_pairs(blocks: torch.Tensor) -> torch.Tensor:
    """Pairs that gather `blocks` [P] into a staging buffer, in order."""
    return torch.stack([blocks, torch.arange(len(blocks), device=blocks.device)], 1)


def kv_copy_case(*, num_blocks: int, block_bytes: int, to_host: bool) -> Case:
    """Gather every second block of a cache of twice as many, to staging or on to the host."""
    width = block_bytes // 2

    def make(device: torch.device, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        cache = torch.randn(2 * num_blocks, width, device=device, generator=generator).half()
        order = torch.randperm(num_blocks, device=device, generator=generator)
        staging = torch.zeros(num_blocks, width, device=device, dtype=torch.float16)
        host = torch.zeros(num_blocks, width, dtype=torch.float16)
        pinned = host.pin_memory() if to_host and device.type == "cuda" else host
        return cache, staging, gather_pairs(2 * order), pinned

    def truth(cache, staging, pairs, host):
        return copy_blocks_reference(cache, host if to_host else staging, pairs)

    def gathered(cache, staging, pairs, host):
        copy_blocks(cache, staging, pairs)
        return host.copy_(staging, non_blocking=True) if to_host else staging

    def one_by_one(cache, staging, pairs, host):
        out = host if to_host else staging
        for start, end in pairs.tolist():
            out[end].copy_(cache[start], non_blocking=True)
        return out

    def direct(cache, staging, pairs, host):
        copy_blocks(cache, host, pairs)
        return host

    return Case(
        op="kv_copy_to_host" if to_host else "kv_copy", dtype="fp16", flops=0, tolerance=0.0,
        shape={"num_blocks": num_blocks, "block_bytes": block_bytes}, reference=truth,
        bytes=(1 if to_host else 2) * num_blocks * block_bytes, make_inputs=make, mutates=(1, 3),
        providers={
            "headway": gathered, "torch": one_by_one, **({"direct": direct} if to_host else {}),
        },
    )  # fmt: skip


def benchmark_cases() -> list[Case]:
    """16-token blocks of one layer (32 KiB at 8 KV heads of 128, one of K and V), few and many."""
    return [
        kv_copy_case(num_blocks=n, block_bytes=size, to_host=to_host)
        for n, size in ((16, 32768), (256, 32768), (2048, 32768), (64, 1048576))
        for to_host in (False, True)
    ]


def aot_jobs(target: int) -> list[AotJob]:
    """The one kernel."""
    return [
        AotJob(
            kernel="kernels.kv_copy:copy_blocks_kernel", target=target, config=f"chunk{CHUNK}",
            signature={"source": "*i64", "target": "*i64", "pairs": "*i64", "WORDS": "i32"},
            constants={"CHUNK": CHUNK}, num_warps=8, divisible=("WORDS",),
        )
    ]  # fmt: skip
