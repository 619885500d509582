"""Forms of dense GEMMs and of the routed experts of a layer."""

from __future__ import annotations

import numpy as np

from simulator.costs.form_base import (
    Array,
    FormBounds,
    OpForm,
    Parameter,
    Parameters,
    Points,
    p_norm,
    tiles,
    wave_fill,
)
from simulator.spec import GpuSpec
from simulator.work import distinct_experts

TILES = ((64, 64), (64, 128), (64, 256), (128, 128), (128, 256), (256, 128))
ACTIVATION_BYTES = 2.0
SPLIT_K = 8.0  # waves of too few tiles are split over K at most so far
RAMP_BYTES = 5e5


def _gemm_bounds(x: Points, gpu: GpuSpec) -> FormBounds:
    m, n, k = x["num_tokens"], x["out_size"], x["in_size"]
    moved = n * k * x["weight_bits"] / 8 + ACTIVATION_BYTES * m * (n + k)
    return FormBounds(
        compute_s=2.0 * m * n * k / x["peak_flops"],
        memory_s=moved / gpu.memory_bytes_per_s,
        moved_bytes=moved,
    )


def _gemm_time(p: Parameters, x: Points, gpu: GpuSpec) -> Array:
    """floor + ramp W / (W + W0) + tau K / (1 + K / K0) + p-norm(compute, memory).

    Compute counts whole waves of the best tile, small tiles being slower; a grid smaller than the
    GPU is split over K.
    """
    m, n, k = x["num_tokens"], x["out_size"], x["in_size"]
    padded = np.full_like(m, np.inf)
    for rows, columns in TILES:
        waves = tiles(tiles(m, rows) * tiles(n, columns), gpu.num_sms)
        small = 1.0 + p["tile"] * 64.0 / np.sqrt(rows * columns)
        padded = np.minimum(padded, waves * gpu.num_sms * rows * columns * small)
    padded = np.minimum(padded, SPLIT_K * m * n)
    compute = 2.0 * padded * k / (p["compute"] * x["peak_flops"])
    weights = n * k * x["weight_bits"] / 8
    memory = _gemm_bounds(x, gpu).memory_s / p["memory"]
    fixed = p["floor_s"] + p["ramp_s"] * weights / (weights + RAMP_BYTES)
    return fixed + p["k_s"] * k / (1.0 + k / 16384.0) + p_norm(compute, memory, p["norm"])


def _gemm_features(x: Points, gpu: GpuSpec) -> list[Array]:
    m, n, k = x["num_tokens"], x["out_size"], x["in_size"]
    log, bounds = np.log2, _gemm_bounds(x, gpu)
    grids = [tiles(m, a) * tiles(n, b) for a, b in ((64, 64), (64, 128), (128, 128), (128, 256))]
    alignment = (m % 16 == 0) * 1.0 + (m % 8 == 0) + (m % 2 == 0)
    return [
        *(log(m), log(n), log(k), log(m * n), log(n * k), log(m * k), log(m * n * k)),
        log(bounds.compute_s / bounds.memory_s),
        *(wave_fill(grid, gpu.num_sms) for grid in grids),
        log(grids[2]),
        log(grids[0] * k),
        m / (tiles(m, 64) * 64),
        m / (tiles(m, 128) * 128),
        alignment,
    ]


GEMM = OpForm(
    inputs=("num_tokens", "out_size", "in_size"),
    parameters={
        "floor_s": Parameter(start=2.5e-6, low=1e-6, high=2e-5),
        "ramp_s": Parameter(start=1e-6, low=1e-8, high=2e-5),
        "k_s": Parameter(start=2e-10, low=1e-12, high=5e-9),
        "tile": Parameter(start=0.1, low=1e-4, high=3.0),
        "compute": Parameter(start=0.8, low=0.1, high=1.0),
        "memory": Parameter(start=0.85, low=0.1, high=1.0),
        "norm": Parameter(start=3.0, low=1.0, high=8.0),
    },
    time=_gemm_time,
    features=_gemm_features,
    bounds=_gemm_bounds,
)


def expert_rows(x: Points) -> Array:
    """Token-expert pairs on this GPU when experts are equally popular."""
    rows: Array = x["num_tokens"] * x["experts_per_token"] * x["local_experts"] / x["num_experts"]
    return rows


def expert_hits(x: Points) -> Array:
    """Expected distinct local experts with at least one row; all alike unless told otherwise."""
    if "popularity" in x:  # one layer's shape, at several token counts
        experts, k = int(x["num_experts"][0]), int(x["experts_per_token"][0])
        distinct = distinct_experts(experts, k, x["num_tokens"], float(x["popularity"][0]))
        hit = x["local_experts"] / experts * distinct
        return np.maximum(np.minimum(hit, expert_rows(x)), 1e-3)
    miss = 1.0 - np.minimum(1.0, x["experts_per_token"] / x["num_experts"])
    hit = x["local_experts"] * (1.0 - np.power(miss, x["num_tokens"]))
    return np.maximum(np.minimum(hit, expert_rows(x)), 1e-3)


def _moe_bounds(x: Points, gpu: GpuSpec) -> FormBounds:
    rows, matrices = expert_rows(x), 2.0 + x["is_gated"]
    weights = matrices * x["hidden_size"] * x["ffn_size"]
    # Skewed loads can hit fewer experts than expected: one row's worth is certain.
    sure = np.minimum(expert_hits(x), np.where(x["skew_percent"] > 0, 1e-3, np.inf))
    moved = weights * x["weight_bits"] / 8 * sure + ACTIVATION_BYTES * x["hidden_size"] * rows
    even = np.where(x["skew_percent"] > 0, 0.0, 1.0)
    return FormBounds(
        compute_s=even * 2.0 * weights * rows / x["peak_flops"],
        memory_s=moved / gpu.memory_bytes_per_s,
        moved_bytes=moved,
    )


def _moe_time(p: Parameters, x: Points, gpu: GpuSpec) -> Array:
    """floor + per expert + per pair + p-norm(compute with padded tiles, weights of hit experts)."""
    rows, hit = expert_rows(x), expert_hits(x)
    weights = (2.0 + x["is_gated"]) * x["hidden_size"] * x["ffn_size"]
    skew = 1.0 + p["skew"] * x["skew_percent"] / 100.0
    compute = 2.0 * weights * (rows * skew + p["tile"] * hit) / (p["compute"] * x["peak_flops"])
    moved = weights * x["weight_bits"] / 8 * hit
    moved += 2.0 * rows * (2.0 * x["hidden_size"] + 3.0 * x["ffn_size"])
    memory = moved / (p["memory"] * gpu.memory_bytes_per_s)
    fixed = p["floor_s"] + p["expert_s"] * x["local_experts"]
    fixed = fixed + p["pair_s"] * x["num_tokens"] * x["experts_per_token"]
    return fixed + p_norm(compute, memory, p["norm"])


def _moe_features(x: Points, gpu: GpuSpec) -> list[Array]:
    log, rows, hit = np.log2, expert_rows(x), expert_hits(x)
    hidden, ffn, tokens = x["hidden_size"], x["ffn_size"], x["num_tokens"]
    stacks = hit * np.maximum(1.0, tiles(rows / hit, 64))
    up, down = stacks * tiles(ffn, 128), stacks * tiles(hidden, 128)
    return [
        *(log(tokens), log(hidden), log(ffn), x["experts_per_token"], log(x["num_experts"])),
        *(log(x["local_experts"]), log(rows), log(hit), log(rows / x["local_experts"])),
        *(log(rows / hit), log(hidden * ffn * hit), log(hidden * ffn * rows), log(hidden * ffn)),
        *(wave_fill(up, gpu.num_sms), wave_fill(down, gpu.num_sms), log(up)),
        *(log(tokens * x["experts_per_token"]), log(rows * hidden)),
        *(x["skew_percent"], x["is_gated"], x["num_experts"] / x["local_experts"]),
    ]


MOE = OpForm(
    inputs=(
        *("num_tokens", "hidden_size", "ffn_size", "num_experts", "local_experts"),
        *("experts_per_token", "is_gated", "skew_percent"),
    ),
    parameters={
        "floor_s": Parameter(start=2.5e-5, low=5e-6, high=2e-4),
        "expert_s": Parameter(start=1e-8, low=1e-12, high=1e-6),
        "pair_s": Parameter(start=1e-9, low=1e-13, high=1e-7),
        "skew": Parameter(start=0.1, low=1e-4, high=3.0),
        "tile": Parameter(start=32.0, low=1.0, high=512.0),
        "compute": Parameter(start=0.5, low=0.05, high=1.0),
        "memory": Parameter(start=0.8, low=0.05, high=1.0),
        "norm": Parameter(start=2.0, low=1.0, high=8.0),
    },
    time=_moe_time,
    features=_moe_features,
    bounds=_moe_bounds,
)
