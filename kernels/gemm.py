"""C[M, N] = A[M, K] @ B[N, K]^T with fp32 (or int32) accumulation, scales and epilogue.

One kernel reads through pointers and runs on every chip, at every shape; `gemm_tma.py` holds the
persistent one for large M on sm_90 and later. B is a weight as torch's Linear keeps it. A row of
the configuration table says which kernel, which tiles and how many splits of K: at decode shapes
(small M) the weights dominate, a tile per output column block leaves SMs idle, and K is split over
SPLIT_K programs whose last arrival adds the parts (stream-K's fix-up with equal shares).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.cases import DTYPES, Case
from kernels.compile import AotJob
from kernels.configs import Config, capability, configurations, pick
from kernels.gemm_tma import launch_tma, tma_job, tma_ready
from kernels.reference_linear import gemm_reference
from kernels.tiles import epilogue, grouped_tile, rescale, sum_splits


@triton.jit
def gemm_kernel(
    a,  # [M, K], row stride stride_am
    b,  # [N, K], row stride stride_bn
    c,  # [M, N], row stride stride_cm
    scale_a,  # "row_col": [M] or [1]; "block": [M, K/128], row stride stride_sa
    scale_b,  # "row_col": [N] or [1]; "block": [N/128, K/128], row stride stride_sb
    extra,  # bias [N] or residual [M, N], row stride stride_cm
    partials,  # [SPLIT_K, M, N] fp32, if SPLIT_K > 1
    arrivals,  # [tiles] int32 zeros, if SPLIT_K > 1
    M,
    N,
    K,
    stride_am,
    stride_bn,
    stride_cm,
    stride_sa,
    stride_sb,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SPLIT_K: tl.constexpr,
    SCALES: tl.constexpr,  # "none", "row_col" or "block" (1x128 of A, 128x128 of B)
    EPILOGUE: tl.constexpr,  # "none", "bias" or "residual"
    EVEN_K: tl.constexpr,  # K is a multiple of BLOCK_K
    INTEGER: tl.constexpr,  # int8 inputs, int32 accumulation
):
    """Grid (tiles of C, SPLIT_K). One tile, one share of K."""
    tile = tl.program_id(0)
    part = tl.program_id(1)
    tile_m, tile_n = grouped_tile(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    share = tl.cdiv(tl.cdiv(K, BLOCK_K), SPLIT_K)
    first = part * share
    last = min(first + share, tl.cdiv(K, BLOCK_K))

    a_rows = a + m.to(tl.int64)[:, None] * stride_am + k[None, :]
    b_rows = b + n.to(tl.int64)[None, :] * stride_bn + k[:, None]
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32 if INTEGER else tl.float32)
    for i in range(first, last):
        left = K - i * BLOCK_K
        if EVEN_K:
            x = tl.load(a_rows + i * BLOCK_K, mask=(m < M)[:, None], other=0.0)
            y = tl.load(b_rows + i * BLOCK_K, mask=(n < N)[None, :], other=0.0)
        else:
            inside = k < left
            x = tl.load(a_rows + i * BLOCK_K, mask=(m < M)[:, None] & inside[None, :], other=0.0)
            y = tl.load(b_rows + i * BLOCK_K, mask=(n < N)[None, :] & inside[:, None], other=0.0)
        if SCALES == "block":
            group = i * BLOCK_K // 128
            by_row = tl.load(scale_a + m * stride_sa + group, mask=m < M, other=0.0)
            by_block = tl.load(scale_b + tile_n * BLOCK_N // 128 * stride_sb + group)
            acc += tl.dot(x, y) * (by_row * by_block)[:, None]
        elif INTEGER:
            acc = tl.dot(x, y, acc, out_dtype=tl.int32)
        else:
            acc = tl.dot(x, y, acc)

    if SCALES == "row_col":
        total = rescale(acc, scale_a, scale_b, m, n, M, N, stride_sa, stride_sb)
    else:
        total = acc.to(tl.float32)
    write = True
    if SPLIT_K > 1:
        total, write = sum_splits(total, partials, arrivals, tile, part, m, n, M, N, SPLIT_K)
    if write:
        total = epilogue(total, extra, m, n, M, N, stride_cm, EPILOGUE)
        at = m.to(tl.int64)[:, None] * stride_cm + n[None, :]
        tl.store(c + at, total.to(c.dtype.element_ty), mask=(m < M)[:, None] & (n < N)[None, :])


def gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    arrivals: torch.Tensor | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """A[M, K] @ B[N, K]^T (+ bias[N] | + residual[M, N]), in A's dtype (bf16 or fp16)."""
    return scaled_gemm(
        a,
        b,
        op="gemm",
        bias=bias,
        residual=residual,
        arrivals=arrivals,
        config=config,
        out_dtype=a.dtype,
    )


def scaled_gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    op: str,
    out_dtype: torch.dtype,
    scale_a: torch.Tensor | None = None,
    scale_b: torch.Tensor | None = None,
    scales: str = "none",
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    arrivals: torch.Tensor | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """The launcher behind the bf16, fp8 and int8 GEMMs; `op` names the configuration table.

    `arrivals` is a zeroed int32 workspace of at least `num_tiles` counters, left zeroed; calls
    that may overlap on a device need one each. Without it a fresh one is made per call.
    """
    (m, k), (n, k_b) = a.shape, b.shape
    if k != k_b or a.stride(1) != 1 or b.stride(1) != 1:
        raise ValueError(f"A {tuple(a.shape)} and B {tuple(b.shape)} need one K, contiguous")
    if bias is not None and residual is not None:
        raise ValueError("one epilogue at a time: bias or residual")
    c = torch.empty((m, n), device=a.device, dtype=out_dtype)
    ready = m > 0 and tma_ready(a, b, c)
    chosen = config or pick(op, capability(a.device), tma=ready, m=m, n=n, k=k)
    if m == 0:
        return c
    extra = bias if bias is not None else residual
    mode = "none" if extra is None else ("bias" if bias is not None else "residual")
    if residual is not None and residual.stride() != c.stride():
        raise ValueError("residual must be contiguous")
    strides = (_stride(scale_a, scales), _stride(scale_b, scales))
    if chosen.TMA:
        launch_tma(a, b, c, scale_a, scale_b, extra, strides, scales, mode, chosen)
        return c
    _launch(a, b, c, scale_a, scale_b, extra, strides, scales, mode, arrivals, chosen)
    return c


def _stride(scale: torch.Tensor | None, scales: str) -> int:
    if scale is None:
        return 0
    return scale.stride(0) if scales == "block" or scale.numel() > 1 else 0


def _launch(a, b, c, scale_a, scale_b, extra, strides, scales, mode, arrivals, chosen):
    (m, k), n = a.shape, b.shape[0]
    tiles = triton.cdiv(m, chosen.BLOCK_M) * triton.cdiv(n, chosen.BLOCK_N)
    partials = c
    if chosen.SPLIT_K > 1:
        partials = torch.empty((chosen.SPLIT_K, m, n), device=a.device, dtype=torch.float32)
        if arrivals is None or arrivals.numel() < tiles:
            arrivals = torch.zeros(tiles, device=a.device, dtype=torch.int32)
    gemm_kernel[(tiles, chosen.SPLIT_K)](
        a, b, c, _or(scale_a, c), _or(scale_b, c), _or(extra, c), partials, _or(arrivals, c),
        m, n, k, a.stride(0), b.stride(0), c.stride(0), *strides,
        BLOCK_M=chosen.BLOCK_M, BLOCK_N=chosen.BLOCK_N, BLOCK_K=chosen.BLOCK_K,
        GROUP_M=chosen.GROUP_M, SPLIT_K=chosen.SPLIT_K, SCALES=scales, EPILOGUE=mode,
        EVEN_K=k % chosen.BLOCK_K == 0, INTEGER=a.dtype == torch.int8,
        num_warps=chosen.num_warps, num_stages=chosen.num_stages,
    )  # fmt: skip


def _or(tensor: torch.Tensor | None, unused: torch.Tensor) -> torch.Tensor:
    return unused if tensor is None else tensor


def gemm_case(*, m: int, n: int, k: int, dtype: str = "bf16") -> Case:
    """One dense GEMM; cuBLAS is the other provider."""
    kind = DTYPES[dtype]

    def make(device: torch.device, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        a = torch.randn(m, k, device=device, generator=generator).to(kind)
        b = (torch.randn(n, k, device=device, generator=generator) / k**0.5).to(kind)
        return a, b, torch.zeros(4096, device=device, dtype=torch.int32)

    return Case(
        op="gemm", shape={"m": m, "n": n, "k": k}, dtype=dtype, flops=2 * m * n * k,
        bytes=(m * k + n * k + m * n) * kind.itemsize, make_inputs=make, tolerance=2e-2,
        reference=lambda a, b, _: gemm_reference(a, b),
        providers={
            "headway": lambda a, b, arrivals: gemm(a, b, arrivals=arrivals),
            "cublas": lambda a, b, _: torch.nn.functional.linear(a, b),
        },
    )  # fmt: skip


SHAPES = tuple(  # Llama-3.1-8B: qkv, out, gate+up, down; and an odd one
    (m, n, k)
    for m in (1, 16, 64, 256, 1024, 8192)
    for n, k in ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336), (4104, 4056))
)


def benchmark_cases() -> list[Case]:
    """The default grid: one dense layer's matrices from decode to prefill sizes."""
    return [gemm_case(m=m, n=n, k=k) for m, n, k in SHAPES]


def gemm_jobs(op: str, target: int, element: str, out: str, scales: str) -> list[AotJob]:
    """Every configuration of `op` on one chip; the dense op's first and last with epilogues too."""
    table = configurations(op, target)
    jobs = []
    for i, row in enumerate(table):
        every = i in (0, len(table) - 1) and scales == "none"
        modes = ("none", "bias", "residual") if every else ("none",)
        make = tma_job if row.TMA else _job
        jobs += [make(row, target, element, out, scales, mode) for mode in modes]
    odd = [_job(row, target, element, out, scales, "none", odd=True) for row in table[:1]]
    return jobs + odd


def _job(
    row: Config, target: int, element: str, out: str, scales: str, mode: str,
    odd: bool = False,
) -> AotJob:  # fmt: skip
    """`odd`: M = 1, which Triton makes a constant, and a K that no tile divides (of 8-bit types
    still a multiple of 16, as every model's is)."""
    pointers = {"a": f"*{element}", "b": f"*{element}", "c": f"*{out}", "extra": f"*{out}"}
    others = {"scale_a": "*fp32", "scale_b": "*fp32", "partials": "*fp32", "arrivals": "*i32"}
    sizes = ("M", "N", "K", "stride_am", "stride_bn", "stride_cm", "stride_sa", "stride_sb")
    known: dict[str, object] = {"M": 1} if odd else {}
    return AotJob(
        kernel="kernels.gemm:gemm_kernel", target=target,
        config=f"{row.label}-{element}-{scales}-{mode}{'-odd' if odd else ''}",
        signature={**pointers, **others, **dict.fromkeys(sizes, "i32")},
        constants={
            **row.tiles("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M", "SPLIT_K"), "SCALES": scales,
            "EPILOGUE": mode, "EVEN_K": not odd, "INTEGER": element == "i8", **known,
        },
        num_warps=row.num_warps, num_stages=row.num_stages,
        divisible=() if odd and scales == "none" else ("N", "K", *sizes[3:6]),
    )  # fmt: skip


def aot_jobs(target: int) -> list[AotJob]:
    """The dense GEMM's compile jobs for one chip (80, 90 or 100)."""
    return gemm_jobs("gemm", target, "bf16", "bf16", "none")
