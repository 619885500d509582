"""int4 weight-only: C[M, N] = A[M, K] @ W[N, K]^T with W = (q - zero) * scale per 128 of K.

Packing: byte j (0..63) of a 128-group holds q[j] in its low and q[64 + j] in its high nibble, so a
tile of bytes is two contiguous tiles of weights and nothing has to be interleaved:
    acc += (A[:, :64] @ (low - zero)^T + A[:, 64:] @ (high - zero)^T) * scale.
q - zero is an integer in -15..15, exact in bf16 and fp16; the scale meets the fp32 partial sum.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.cases import DTYPES, Case
from kernels.compile import AotJob
from kernels.configs import Config, capability, configurations, pick
from kernels.gemm import SHAPES
from kernels.reference_linear import int4_reference
from kernels.tiles import epilogue, grouped_tile, sum_splits


@triton.jit
def gemm_int4_kernel(
    a,  # [M, K] fp16 or bf16, row stride stride_am
    packed,  # [N, K/2] uint8
    scales,  # [N, K/128] fp16
    zeros,  # [N, K/128] uint8, 0..15
    c,  # [M, N]
    extra,  # bias [N] or residual [M, N]
    partials,  # [SPLIT_K, M, N] fp32, if SPLIT_K > 1
    arrivals,  # [tiles] int32 zeros, if SPLIT_K > 1
    M,
    N,
    K,  # multiple of 128
    stride_am,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    GROUP_M: tl.constexpr,
    SPLIT_K: tl.constexpr,
    EPILOGUE: tl.constexpr,
):
    """Grid (tiles of C, SPLIT_K). One tile, one share of the groups of K."""
    tile = tl.program_id(0)
    part = tl.program_id(1)
    tile_m, tile_n = grouped_tile(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    j = tl.arange(0, 64)
    groups = K // 128
    share = tl.cdiv(groups, SPLIT_K)
    first = part * share
    last = min(first + share, groups)

    a_rows = a + m.to(tl.int64)[:, None] * stride_am + j[None, :]
    w_rows = packed + n.to(tl.int64)[None, :] * (K // 2) + j[:, None]
    in_m = (m < M)[:, None]
    in_n = n < N
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for g in range(first, last):
        low_a = tl.load(a_rows + g * 128, mask=in_m, other=0.0)
        high_a = tl.load(a_rows + g * 128 + 64, mask=in_m, other=0.0)
        q = tl.load(w_rows + g * 64, mask=in_n[None, :], other=0)
        zero = tl.load(zeros + n.to(tl.int64) * groups + g, mask=in_n, other=0).to(tl.int8)
        scale = tl.load(scales + n.to(tl.int64) * groups + g, mask=in_n, other=0.0)
        low = ((q & 15).to(tl.int8) - zero[None, :]).to(a.dtype.element_ty)
        high = ((q >> 4).to(tl.int8) - zero[None, :]).to(a.dtype.element_ty)
        piece = tl.dot(high_a, high, tl.dot(low_a, low))
        acc += piece * scale.to(tl.float32)[None, :]

    write = True
    if SPLIT_K > 1:
        acc, write = sum_splits(acc, partials, arrivals, tile, part, m, n, M, N, SPLIT_K)
    if write:
        acc = epilogue(acc, extra, m, n, M, N, N, EPILOGUE)
        at = m.to(tl.int64)[:, None] * N + n[None, :]
        tl.store(c + at, acc.to(c.dtype.element_ty), mask=in_m & in_n[None, :])


def gemm_int4(
    a: torch.Tensor,
    packed: torch.Tensor,
    scales: torch.Tensor,
    zeros: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    arrivals: torch.Tensor | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """A [M, K] times `pack_int4` weights, (+ bias[N]); out in A's dtype."""
    (m, k), n = a.shape, packed.shape[0]
    if k % 128 or packed.shape[1] * 2 != k or a.stride(1) != 1:
        raise ValueError(f"K must be a multiple of 128 and packed [N, K/2] (got K={k})")
    chosen = config or pick("gemm_int4", capability(a.device), m=m, n=n, k=k)
    c = torch.empty((m, n), device=a.device, dtype=a.dtype)
    if m == 0:
        return c
    tiles = triton.cdiv(m, chosen.BLOCK_M) * triton.cdiv(n, chosen.BLOCK_N)
    partials = c
    if chosen.SPLIT_K > 1:
        partials = torch.empty((chosen.SPLIT_K, m, n), device=a.device, dtype=torch.float32)
        if arrivals is None or arrivals.numel() < tiles:
            arrivals = torch.zeros(tiles, device=a.device, dtype=torch.int32)
    gemm_int4_kernel[(tiles, chosen.SPLIT_K)](
        a, packed, scales, zeros, c, c if bias is None else bias, partials,
        c if arrivals is None else arrivals, m, n, k, a.stride(0),
        **chosen.tiles("BLOCK_M", "BLOCK_N", "GROUP_M", "SPLIT_K"),
        EPILOGUE="none" if bias is None else "bias",
        num_warps=chosen.num_warps, num_stages=chosen.num_stages,
    )  # fmt: skip
    return c


def pack_int4(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Weights [N, K] -> (packed [N, K/2], scales [N, K/128] fp16, zeros [N, K/128] uint8)."""
    n, k = w.shape
    groups = w.float().view(n, k // 128, 128)
    low, high = groups.amin(-1).clamp_max(0.0), groups.amax(-1).clamp_min(0.0)
    scales = ((high - low) / 15.0).clamp_min(1e-6).to(torch.float16)
    zeros = (-low / scales.float()).round().clamp(0, 15)
    q = (groups / scales.float()[..., None] + zeros[..., None]).round().clamp(0, 15)
    q = q.to(torch.uint8)
    packed = q[..., :64] | (q[..., 64:] << 4)
    return packed.reshape(n, k // 2).contiguous(), scales, zeros.to(torch.uint8)


def gemm_int4_case(*, m: int, n: int, k: int, dtype: str = "bf16") -> Case:
    """One weight-only GEMM; torch dequantises ahead of time, so cuBLAS shows the bf16 price."""
    kind = DTYPES[dtype]

    def make(device: torch.device, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        a = torch.randn(m, k, device=device, generator=generator).to(kind)
        w = torch.randn(n, k, device=device, generator=generator) / k**0.5
        return a, *pack_int4(w), torch.zeros(4096, device=device, dtype=torch.int32)

    return Case(
        op="gemm_int4", shape={"m": m, "n": n, "k": k}, dtype=dtype, flops=2 * m * n * k,
        bytes=2 * m * k + n * k // 2 + 3 * n * k // 128 + 2 * m * n, make_inputs=make,
        tolerance=2e-2, reference=lambda a, q, s, z, _: int4_reference(a, q, s, z),
        providers={"headway": lambda *x: gemm_int4(*x[:4], arrivals=x[4])},
    )  # fmt: skip


def benchmark_cases() -> list[Case]:
    """The dense grid."""
    return [gemm_int4_case(m=m, n=n, k=k) for m, n, k in SHAPES if k % 128 == 0]


def aot_jobs(target: int) -> list[AotJob]:
    """Every configuration on one chip; the first also with the bias."""
    jobs = []
    for i, row in enumerate(configurations("gemm_int4", target)):
        for mode in ("none", "bias") if i == 0 else ("none",):
            jobs.append(_job(row, target, mode))
    return jobs


def _job(row: Config, target: int, mode: str) -> AotJob:
    pointers = {"a": "*bf16", "packed": "*u8", "scales": "*fp16", "zeros": "*u8", "c": "*bf16"}
    others = {"extra": "*bf16", "partials": "*fp32", "arrivals": "*i32"}
    return AotJob(
        kernel="kernels.gemm_int4:gemm_int4_kernel", target=target, config=f"{row.label}-{mode}",
        signature={**pointers, **others, **dict.fromkeys(("M", "N", "K", "stride_am"), "i32")},
        constants={
            **row.tiles("BLOCK_M", "BLOCK_N", "GROUP_M", "SPLIT_K"), "EPILOGUE": mode,
        },
        num_warps=row.num_warps, num_stages=row.num_stages, divisible=("N", "K", "stride_am"),
    )  # fmt: skip
