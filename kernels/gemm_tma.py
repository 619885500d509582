"""The persistent GEMM for large M on sm_90 and later: tiles travel by tensor descriptor (TMA).

As many programs as SMs walk the tiles in grouped order, so one tile's epilogue overlaps the next
tile's loads and there is no partial last wave of launches. `gemm.py` decides when to use it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from kernels.compile import AotJob
from kernels.configs import Config
from kernels.tiles import epilogue, grouped_tile, rescale


@triton.jit
def gemm_tma_kernel(
    a,  # descriptor of A [M, K], tile [BLOCK_M, BLOCK_K]
    b,  # descriptor of B [N, K], tile [BLOCK_N, BLOCK_K]
    c,  # descriptor of C [M, N], tile [BLOCK_M, BLOCK_N / 2]
    scale_a,  # "row_col": [M] or [1]; "block": [M, K/128], row stride stride_sa
    scale_b,  # "row_col": [N] or [1]; "block": [N/128, K/128], row stride stride_sb
    extra,  # bias [N] or residual [M, N]
    M,
    N,
    K,
    stride_sa,
    stride_sb,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    SCALES: tl.constexpr,  # "none", "row_col" or "block"
    EPILOGUE: tl.constexpr,  # "none", "bias" or "residual"
    INTEGER: tl.constexpr,
):
    """Grid (programs,), at most one per tile; descriptors clip what lies outside the matrices."""
    HALF: tl.constexpr = BLOCK_N // 2
    tiles = tl.cdiv(M, BLOCK_M) * tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles, tl.num_programs(0)):
        tile_m, tile_n = grouped_tile(tile, M, N, BLOCK_M, BLOCK_N, GROUP_M)
        m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.int32 if INTEGER else tl.float32)
        for i in range(tl.cdiv(K, BLOCK_K)):
            x = a.load([tile_m * BLOCK_M, i * BLOCK_K])
            y = b.load([tile_n * BLOCK_N, i * BLOCK_K])
            if SCALES == "block":
                group = i * BLOCK_K // 128
                by_row = tl.load(scale_a + m * stride_sa + group, mask=m < M, other=0.0)
                by_block = tl.load(scale_b + tile_n * BLOCK_N // 128 * stride_sb + group)
                acc += tl.dot(x, y.T) * (by_row * by_block)[:, None]
            elif INTEGER:
                acc = tl.dot(x, y.T, acc, out_dtype=tl.int32)
            else:
                acc = tl.dot(x, y.T, acc)
        # The tile leaves in two halves: half the shared memory for the store, one more load stage.
        halves = tl.permute(tl.reshape(acc, (BLOCK_M, 2, HALF)), (0, 2, 1))
        left, right = tl.split(halves)
        for side in tl.static_range(2):
            total = left if side == 0 else right
            start = tile_n * BLOCK_N + side * HALF
            n = start + tl.arange(0, HALF)
            if SCALES == "row_col":
                total = rescale(total, scale_a, scale_b, m, n, M, N, stride_sa, stride_sb)
            total = epilogue(total.to(tl.float32), extra, m, n, M, N, N, EPILOGUE)
            c.store([tile_m * BLOCK_M, start], total.to(c.dtype))


def tma_ready(*tensors: torch.Tensor) -> bool:
    """Descriptors need a 16-byte aligned base and row stride, and contiguous columns."""
    return all(
        t.data_ptr() % 16 == 0 and t.stride(0) * t.element_size() % 16 == 0 and t.stride(1) == 1
        for t in tensors
    )


def launch_tma(a, b, c, scale_a, scale_b, extra, strides, scales, mode, chosen: Config) -> None:
    """Launch on aligned operands; `strides` are the scales' row strides."""
    (m, k), n = a.shape, b.shape[0]
    tiles = triton.cdiv(m, chosen.BLOCK_M) * triton.cdiv(n, chosen.BLOCK_N)
    half = [chosen.BLOCK_M, chosen.BLOCK_N // 2]
    gemm_tma_kernel[(min(_num_sms(a.device), tiles),)](
        TensorDescriptor.from_tensor(a, [chosen.BLOCK_M, chosen.BLOCK_K]),
        TensorDescriptor.from_tensor(b, [chosen.BLOCK_N, chosen.BLOCK_K]),
        TensorDescriptor.from_tensor(c, half),
        scale_a if scale_a is not None else c, scale_b if scale_b is not None else c,
        extra if extra is not None else c, m, n, k, *strides,
        BLOCK_M=chosen.BLOCK_M, BLOCK_N=chosen.BLOCK_N, BLOCK_K=chosen.BLOCK_K,
        GROUP_M=chosen.GROUP_M, SCALES=scales, EPILOGUE=mode, INTEGER=a.dtype == torch.int8,
        num_warps=chosen.num_warps, num_stages=chosen.num_stages,
    )  # fmt: skip


def _num_sms(device: torch.device) -> int:
    if device.type != "cuda":
        return 3  # the interpreter: fewer programs than tiles, so the persistent loop is walked
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def tma_job(row: Config, target: int, element: str, out: str, scales: str, mode: str) -> AotJob:
    """The compile job of one TMA configuration."""
    m, n, k = row.BLOCK_M, row.BLOCK_N, row.BLOCK_K
    signature = {
        "a": f"tensordesc<{element}[{m},{k}]>",
        "b": f"tensordesc<{element}[{n},{k}]>",
        "c": f"tensordesc<{out}[{m},{n // 2}]>",
        "scale_a": "*fp32", "scale_b": "*fp32", "extra": f"*{out}",
        **dict.fromkeys(("M", "N", "K", "stride_sa", "stride_sb"), "i32"),
    }  # fmt: skip
    return AotJob(
        kernel="kernels.gemm_tma:gemm_tma_kernel", target=target, signature=signature,
        config=f"{row.label}-{element}-{scales}-{mode}",
        constants={
            **row.tiles("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M"), "SCALES": scales,
            "EPILOGUE": mode, "INTEGER": element == "i8",
        },
        num_warps=row.num_warps, num_stages=row.num_stages, divisible=("N", "K"),
    )  # fmt: skip
