"""Dynamic symmetric quantisation of activations, one scale per group of columns of a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.cases import DTYPES, Case
from kernels.compile import AotJob
from kernels.reference_linear import quantize_reference


@triton.jit
def quantize_kernel(
    x,  # [M, K], row stride stride_xm
    q,  # [M, K] fp8 or int8, contiguous
    scale,  # [M, K / GROUP] fp32, contiguous
    K,
    stride_xm,
    GROUP: tl.constexpr,  # columns per scale; 0: the whole row
    BLOCK_K: tl.constexpr,  # power of two, >= GROUP (or >= K)
    LARGEST: tl.constexpr,  # 448 for e4m3, 127 for int8
    INTEGER: tl.constexpr,
):
    """Grid (M, groups). One group of one row."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    lane = tl.arange(0, BLOCK_K)
    column = group * GROUP + lane
    mask = (column < K) & ((GROUP == 0) | (lane < GROUP))
    value = tl.load(x + row * stride_xm + column, mask=mask, other=0.0).to(tl.float32)
    step = tl.maximum(tl.max(tl.abs(value), axis=0), 1e-12) / LARGEST
    value = tl.minimum(tl.maximum(value / step, -LARGEST), LARGEST)
    if INTEGER:  # round half away from zero
        value = tl.where(value < 0, tl.ceil(value - 0.5), tl.floor(value + 0.5))
    tl.store(q + row * K + column, value.to(q.dtype.element_ty), mask=mask)
    tl.store(scale + row * tl.num_programs(1) + group, step)


def quantize(
    x: torch.Tensor, dtype: torch.dtype, group: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """x [M, K] -> (q [M, K], scale [M, ceil(K / group)]); group 0 is one scale per row ([M, 1])."""
    m, k = x.shape
    groups = triton.cdiv(k, group) if group else 1
    q = torch.empty((m, k), device=x.device, dtype=dtype)
    scale = torch.empty((m, groups), device=x.device, dtype=torch.float32)
    block = triton.next_power_of_2(group or k)
    if m:
        quantize_kernel[(m, groups)](
            x, q, scale, k, x.stride(0), GROUP=group, BLOCK_K=block,
            LARGEST=_largest(dtype), INTEGER=dtype == torch.int8, num_warps=_warps(block),
        )  # fmt: skip
    return q, scale


def _largest(dtype: torch.dtype) -> float:
    return 127.0 if dtype == torch.int8 else float(torch.finfo(dtype).max)


def _warps(block: int) -> int:
    return min(max(block // 512, 1), 16)


def quantize_case(*, num_tokens: int, k: int, group: int, dtype: str = "fp8") -> Case:
    """Quantise activations [num_tokens, k] from bf16."""
    kind = DTYPES[dtype]

    def make(device: torch.device, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        x = torch.randn(num_tokens, k, device=device, generator=generator)
        return (x.to(torch.bfloat16),)

    return Case(
        op="quantize", shape={"num_tokens": num_tokens, "k": k, "group": group}, dtype=dtype,
        flops=3 * num_tokens * k, bytes=num_tokens * (3 * k + 4 * (k // group if group else 1)),
        make_inputs=make, tolerance=0.13, capability=90 if dtype == "fp8" else 80,
        reference=lambda x: quantize_reference(x, group or k, kind),
        providers={"headway": lambda x: quantize(x, kind, group)},
    )  # fmt: skip


def benchmark_cases() -> list[Case]:
    """Per token and per 1x128, at a hidden size and a feed-forward size."""
    return [
        quantize_case(num_tokens=t, k=k, group=group)
        for t in (16, 2048)
        for k in (4096, 14336)
        for group in (0, 128)
    ]


def aot_jobs(target: int) -> list[AotJob]:
    """One row of 4,096 and of 16,384, and 1x128 groups, to each type the chip has."""
    elements = ("i8", "fp8e4nv") if target >= 90 else ("i8",)
    return [
        AotJob(
            kernel="kernels.quantize:quantize_kernel", target=target,
            config=f"group{group}-k{block}-{element}",
            signature={
                "x": "*bf16", "q": f"*{element}", "scale": "*fp32", "K": "i32", "stride_xm": "i32",
            },
            constants={
                "GROUP": group, "BLOCK_K": block, "LARGEST": 127.0 if element == "i8" else 448.0,
                "INTEGER": element == "i8",
            },
            num_warps=_warps(block), divisible=("K", "stride_xm"),
        )
        for element in elements
        for group, block in ((0, 4096), (0, 16384), (128, 128))
    ]  # fmt: skip
