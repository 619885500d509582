"""Device functions shared by the linear kernels: tile order, epilogue, split sums."""

import triton
import triton.language as tl


@triton.jit
def grouped_tile(tile, M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, GROUP_M: tl.constexpr):
    """Tile number -> (m, n), column-major inside groups of GROUP_M tile rows: neighbours in time
    share rows of A and columns of B, so both stay in the L2 cache."""
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    group = tile // (GROUP_M * tiles_n)
    first = group * GROUP_M
    rows = min(tiles_m - first, GROUP_M)
    inside = tile % (GROUP_M * tiles_n)
    return first + inside % rows, inside // rows


@triton.jit
def rescale(acc, scale_a, scale_b, m, n, M, N, stride_sa, stride_sb):
    """acc[m, n] * scale_a[m] * scale_b[n] in fp32; a stride of 0 makes a scale per-tensor."""
    row = tl.load(scale_a + m * stride_sa, mask=m < M, other=0.0)
    col = tl.load(scale_b + n * stride_sb, mask=n < N, other=0.0)
    return acc.to(tl.float32) * row[:, None] * col[None, :]


@triton.jit
def epilogue(acc, extra, m, n, M, N, stride_em, EPILOGUE: tl.constexpr):
    """Add the bias[n] or the residual[m, n] to a finished fp32 tile."""
    if EPILOGUE == "bias":
        acc += tl.load(extra + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if EPILOGUE == "residual":
        mask = (m < M)[:, None] & (n < N)[None, :]
        at = m.to(tl.int64)[:, None] * stride_em + n[None, :]
        acc += tl.load(extra + at, mask=mask, other=0.0).to(tl.float32)
    return acc


@triton.jit
def sum_splits(acc, partials, arrivals, tile, part, m, n, M, N, SPLIT_K: tl.constexpr):
    """Publish this split's fp32 tile; the split that arrives last returns the sum of all of them
    and True. The order of addition is the order of the splits, so the result does not depend on
    who was last. The counter is left at zero for the next launch.

    partials [SPLIT_K, M, N] fp32; arrivals [tiles] int32, zero on entry and on exit.
    """
    mask = (m < M)[:, None] & (n < N)[None, :]
    at = m.to(tl.int64)[:, None] * N + n[None, :]
    plane = tl.cast(M, tl.int64) * N
    tl.store(partials + part * plane + at, acc, mask=mask, cache_modifier=".cg")
    tl.debug_barrier()  # every thread's part of the tile is written before the counter moves
    last = tl.atomic_add(arrivals + tile, 1, sem="acq_rel") == SPLIT_K - 1
    if last:
        acc = tl.zeros_like(acc)
        for i in range(SPLIT_K):
            acc += tl.load(partials + i * plane + at, mask=mask, other=0.0, cache_modifier=".cg")
        tl.store(arrivals + tile, 0)
    return acc, last
