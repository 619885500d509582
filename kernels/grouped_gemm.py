"""Grouped GEMM for mixture-of-experts: every routed row times its own expert's weights.

`route` sorts the (token, slot) pairs by expert and lists the tiles of BLOCK_M rows that cover each
expert's rows; the list has a fixed length, so nothing waits for the device and the whole layer
can be captured in a CUDA graph. The kernel gathers the rows of A itself (first matrix) and
scatters its output back to pair order with the routing weight applied (second matrix):

    order [P]     pair numbers, sorted by expert; pair = token * top_k + slot, P = T * top_k
    offsets [E+1] expert e owns order[offsets[e] : offsets[e + 1]]
    tile_expert, tile_row [max tiles]   expert and first row of each tile; expert E: no work
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from kernels.configs import Config, capability, pick
from kernels.elementwise import gated_activation


@dataclass(frozen=True)
class Routing:
    """Where each routed row goes; see the module docstring."""

    order: torch.Tensor
    offsets: torch.Tensor
    tile_expert: torch.Tensor
    tile_row: torch.Tensor
    block_m: int


def route(experts: torch.Tensor, num_experts: int, block_m: int) -> Routing:
    """experts [T, top_k] int -> `Routing`, on the device, without a synchronisation."""
    flat = experts.flatten()
    counts = torch.zeros(num_experts, device=flat.device, dtype=torch.int32)
    counts.scatter_add_(0, flat.long(), torch.ones_like(flat, dtype=torch.int32))
    offsets = torch.zeros(num_experts + 1, device=flat.device, dtype=torch.int32)
    offsets[1:] = counts.cumsum(0)
    tiles = (counts + block_m - 1) // block_m
    ends = tiles.cumsum(0)
    # Every used expert wastes less than one tile, and no more experts are used than pairs exist.
    most = (flat.numel() + min(num_experts, flat.numel()) * (block_m - 1)) // block_m
    number = torch.arange(max(most, 1), device=flat.device)
    expert = torch.searchsorted(ends, number, right=True)
    real = expert.clamp_max(num_experts - 1)
    row = offsets[real] + (number - (ends - tiles)[real]) * block_m
    order = torch.sort(flat, stable=True).indices
    return Routing(order.int(), offsets, expert.int(), row.int(), block_m)


@triton.jit
def grouped_gemm_kernel(
    a,  # [T, K] if GATHER else [P, K] in sorted order
    b,  # [E, N, K]
    c,  # [P, N], sorted order, or pair order if SCATTER
    scale_a,  # [T] or [P] fp32, if SCALED
    scale_b,  # [E, N] fp32, if SCALED
    order,  # [P] int32
    offsets,  # [E + 1] int32
    tile_expert,  # [tiles] int32
    tile_row,  # [tiles] int32
    pair_weights,  # [P] routing weights in pair order, if SCATTER
    E,
    N,
    K,
    num_tiles,
    TOP_K: tl.constexpr,
    GATHER: tl.constexpr,  # A's row is token = pair // TOP_K
    SCATTER: tl.constexpr,
    SCALED: tl.constexpr,  # fp8: one scale per row of A and per row of each expert's B
    EVEN_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """Grid (num_tiles * tiles of N,). Tiles of one expert are neighbours and share its weights."""
    group = GROUP_M * tl.cdiv(N, BLOCK_N)
    first = tl.program_id(0) // group * GROUP_M
    height = min(num_tiles - first, GROUP_M)
    tile = first + tl.program_id(0) % group % height
    n = tl.program_id(0) % group // height * BLOCK_N + tl.arange(0, BLOCK_N)
    expert = tl.load(tile_expert + tile)
    if expert < E:
        row = tl.load(tile_row + tile) + tl.arange(0, BLOCK_M)
        in_m = row < tl.load(offsets + expert + 1)
        in_n = n < N
        k = tl.arange(0, BLOCK_K)
        pair = tl.load(order + row, mask=in_m, other=0)
        source = pair // TOP_K if GATHER else row
        a_rows = a + source.to(tl.int64)[:, None] * K + k[None, :]
        weight_row = expert.to(tl.int64) * N + n
        b_rows = b + weight_row[None, :] * K + k[:, None]
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for i in range(tl.cdiv(K, BLOCK_K)):
            if EVEN_K:
                x = tl.load(a_rows + i * BLOCK_K, mask=in_m[:, None], other=0.0)
                y = tl.load(b_rows + i * BLOCK_K, mask=in_n[None, :], other=0.0)
            else:
                inside = k < K - i * BLOCK_K
                x = tl.load(a_rows + i * BLOCK_K, mask=in_m[:, None] & inside[None, :], other=0.0)
                y = tl.load(b_rows + i * BLOCK_K, mask=in_n[None, :] & inside[:, None], other=0.0)
            acc = tl.dot(x, y, acc)
        if SCALED:
            acc *= tl.load(scale_a + source, mask=in_m, other=0.0)[:, None]
            acc *= tl.load(scale_b + weight_row, mask=in_n, other=0.0)[None, :]
        target = row
        if SCATTER:
            target = pair
            acc *= tl.load(pair_weights + pair, mask=in_m, other=0.0).to(tl.float32)[:, None]
        at = target.to(tl.int64)[:, None] * N + n[None, :]
        tl.store(c + at, acc.to(c.dtype.element_ty), mask=in_m[:, None] & in_n[None, :])


def grouped_gemm(
    a: torch.Tensor,
    b: torch.Tensor,
    routing: Routing,
    *,
    top_k: int,
    gather: bool,
    pair_weights: torch.Tensor | None = None,
    scale_a: torch.Tensor | None = None,
    scale_b: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """a [T, K] (gather) or [P, K] times b [E, N, K] -> [P, N].

    With `pair_weights` [P] the rows come back in pair order, weighted; without, in sorted order.
    """
    num_experts, n, k = b.shape
    pairs = routing.order.numel()
    if not (a.is_contiguous() and b.is_contiguous()) or a.shape[1] != k:
        raise ValueError(f"A {tuple(a.shape)} and B {tuple(b.shape)} need one K, contiguous")
    chosen = config or grouped_config(a, num_experts, top_k, pairs)
    if routing.block_m != chosen.BLOCK_M:
        raise ValueError(f"routing tiles have {routing.block_m} rows, {chosen.label} another")
    c = torch.empty((pairs, n), device=a.device, dtype=out_dtype or a.dtype)
    tiles = routing.tile_expert.numel()
    grouped_gemm_kernel[(tiles * triton.cdiv(n, chosen.BLOCK_N),)](
        a, b, c, c if scale_a is None else scale_a, c if scale_b is None else scale_b,
        routing.order, routing.offsets, routing.tile_expert, routing.tile_row,
        c if pair_weights is None else pair_weights, num_experts, n, k, tiles,
        TOP_K=top_k, GATHER=gather, SCATTER=pair_weights is not None,
        SCALED=scale_a is not None, EVEN_K=k % chosen.BLOCK_K == 0,
        **chosen.tiles("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M"),
        num_warps=chosen.num_warps, num_stages=chosen.num_stages,
    )  # fmt: skip
    return c


def grouped_config(a: torch.Tensor, num_experts: int, top_k: int, pairs: int) -> Config:
    """The table row for the mean number of rows per expert."""
    op = "grouped_gemm_fp8" if a.element_size() == 1 else "grouped_gemm"
    return pick(op, capability(a.device), m=-(-pairs // num_experts))


def moe(
    x: torch.Tensor,  # [T, H]
    gate_up: torch.Tensor,  # [E, 2F, H]
    down: torch.Tensor,  # [E, H, F]
    experts: torch.Tensor,  # [T, top_k]
    weights: torch.Tensor,  # [T, top_k]
    config: Config | None = None,
) -> torch.Tensor:
    """The routed feed-forward: gather-GEMM, gated activation, GEMM-scatter, sum over slots."""
    (num_tokens, top_k), num_experts = experts.shape, gate_up.shape[0]
    chosen = config or grouped_config(x, num_experts, top_k, experts.numel())
    routing = route(experts, num_experts, chosen.BLOCK_M)
    h = grouped_gemm(x, gate_up, routing, top_k=top_k, gather=True, config=chosen)
    h = gated_activation(h, "silu")
    y = grouped_gemm(
        h, down, routing, top_k=top_k, gather=False, pair_weights=weights.flatten(), config=chosen
    )
    return y.view(num_tokens, top_k, -1).sum(1, dtype=torch.float32).to(x.dtype)
