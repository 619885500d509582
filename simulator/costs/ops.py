"""Time of one op on one GPU: its work over the shares of peak its kernels reach, plus fixed time.

No time is below the roofline: shares are at most 1 and fixed times are added.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.costs.collectives import collective_time
from simulator.costs.efficiency import (
    FORMAT_COMPUTE,
    FORMAT_MEMORY,
    WEIGHT_ONLY_COMPUTE,
    Efficiency,
    HostProfile,
    efficiency_of,
    host_profile,
    kernel_factor,
    mxfp4_factor,
    weight_only,
)
from simulator.costs.error import PriceError, price_error
from simulator.costs.fitted import tables_of
from simulator.costs.tables import CostTables
from simulator.spec import WEIGHT_FORMATS, EngineSettings, GpuSpec, NodeGroup
from simulator.work import Collective, Elementwise, ExpertGemm, Gemm, Op, Tokens

AROUND_EXPERTS = 5  # kernels before, between and after the two GEMMs: sort, activation, sum


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What prices an op: the GPU, the shares of its peaks, and the host."""

    gpu: GpuSpec
    gpus_per_node: int
    efficiency: Efficiency
    host: HostProfile
    tables: CostTables | None = None  # measured; they come before the shares of peak
    error: PriceError | None = None  # of one draw; None = prices as they are

    @property
    def source(self) -> str:
        """Which cost tables price this machine, in one line."""
        return self.tables.source if self.tables else self.efficiency.source


def machine_of(group: NodeGroup, settings: EngineSettings) -> Machine:
    """The machine of a node group under these settings."""
    return Machine(
        gpu=group.gpu,
        gpus_per_node=group.gpus_per_node,
        efficiency=efficiency_of(group.gpu),
        host=host_profile(settings),
        tables=tables_of(group.gpu, settings),
        error=price_error(group.gpu, settings),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """Least seconds of an op on each resource at 100 % of its peak."""

    compute_s: Tokens
    memory_s: Tokens
    network_s: Tokens


def op_time(op: Op, tokens: Tokens, machine: Machine) -> Tokens:
    """Seconds of one op at each number of tokens >= 1, off by the error that is drawn."""
    measured = _measured(op, tokens, machine)
    seconds = _roofline(op, tokens, machine) if measured is None else measured
    factor = kernel_factor(machine.host, tokens)
    seconds = seconds * factor
    if isinstance(op, ExpertGemm) and op.format == "mxfp4":
        seconds = seconds * mxfp4_factor(machine.host, tokens)
    if machine.error is not None:
        tables = None if measured is None else machine.tables
        seconds = seconds * machine.error.op_factor(op, tokens, tables)
    elif measured is None and isinstance(factor, float):
        return seconds
    bounds = op_bounds(op, tokens, machine)
    compute_s = bounds.compute_s / _sustained(op, machine)
    least = np.maximum(np.maximum(compute_s, bounds.memory_s), bounds.network_s)
    return np.maximum(seconds, least)


def _roofline(op: Op, tokens: Tokens, machine: Machine) -> Tokens:
    """Seconds by the shares of peak that kernels reach."""
    if isinstance(op, Collective):
        return collective_time(op, tokens, machine.gpu).time_s
    fixed = fixed_s(op, machine)
    if isinstance(op, Elementwise):
        rate = machine.efficiency.elementwise_memory * machine.gpu.memory_bytes_per_s
        return fixed + op.memory_bytes(tokens) / rate
    compute, memory = _gemm_shares(op, tokens, machine)
    norm = machine.efficiency.gemm_norm
    bounds = op_bounds(op, tokens, machine)
    compute_s, memory_s = bounds.compute_s / compute, bounds.memory_s / memory
    # The p-norm factored over the larger term: exact for p = 3 by cube roots, and never overflows.
    larger, smaller = np.maximum(compute_s, memory_s), np.minimum(compute_s, memory_s)
    ratio = smaller / np.maximum(larger, 1e-300)
    return fixed + larger * np.power(1.0 + np.power(ratio, norm), 1.0 / norm)


def _sustained(op: Op, machine: Machine) -> float:
    """Share of the arithmetic peak that lasts."""
    if not isinstance(op, Gemm | ExpertGemm):
        return 1.0
    fmt = WEIGHT_FORMATS[op.format]
    compute = fmt.compute if fmt.compute in machine.gpu.flops_per_s else fmt.fallback_compute
    stated = {"bf16": machine.host.sustained_bf16, "fp8": machine.host.sustained_fp8}
    return stated.get(compute) or machine.efficiency.sustained.get(compute, 1.0)


def _measured(op: Op, tokens: Tokens, machine: Machine) -> Tokens | None:
    """Seconds from the cost tables; None where they have nothing on this op."""
    tables = machine.tables
    if tables is None:
        return None
    if isinstance(op, Elementwise):
        # Attention was measured with the write of its keys and values.
        is_inside = op.name == "kv_write" and tables.curve("decode_attention") is not None
        return 0.0 * tokens if is_inside else None
    if isinstance(op, Collective):
        if not 1 < op.num_gpus <= op.local_gpus:
            return None
        return tables.collective_s(op.kind, op.bytes_per_token * tokens, op.num_gpus)
    if isinstance(op, ExpertGemm):
        return _measured_experts(op, tokens, tables, machine)
    if op.batch != 1:
        return None
    return tables.gemm_s(op.format, tokens, op.out_size, op.in_size)


def _measured_experts(
    op: ExpertGemm, tokens: Tokens, tables: CostTables, machine: Machine
) -> Tokens | None:
    """A layer's experts were measured whole, sort to sum; this GEMM's share of that by its FLOPs.

    The busiest GPU has the time of a balanced one with as many rows. The passes around the two
    GEMMs are ops of their own and are taken off. Experts are taken to be gated.
    """
    hidden, ffn = op.layer_sizes
    shape = {
        "hidden_size": hidden,
        "ffn_size": ffn,
        "num_experts": op.num_experts,
        "local_experts": op.local_experts,
        "experts_per_token": op.experts_per_token,
        "is_gated": 1,
        "popularity": op.popularity,
    }
    share = op.experts_per_token * op.local_experts / op.num_experts  # rows a token, on average
    gpu = machine.gpu
    rate = machine.efficiency.elementwise_memory * gpu.memory_bytes_per_s
    moved = 6.0 * ffn * share + 2.0 * hidden * (share + 1.0) + 16.0 * op.experts_per_token
    around = (AROUND_EXPERTS * gpu.launch_s, moved / rate)
    both = tables.moe_s(op.format, op.rows(tokens) / share, shape, around)
    return None if both is None else both * (2.0 / 3.0 if op.name.endswith("up") else 1.0 / 3.0)


def op_bounds(op: Op, tokens: Tokens, machine: Machine) -> Bounds:
    """The op's roofline."""
    gpu = machine.gpu
    none = 0.0 * tokens
    if isinstance(op, Collective):
        bound = collective_time(op, tokens, gpu).bound_s
        return Bounds(compute_s=none, memory_s=none, network_s=bound)
    compute = none
    if not isinstance(op, Elementwise):
        compute = op.flops(tokens) / gpu.compute_flops_per_s(WEIGHT_FORMATS[op.format])
    memory = op.memory_bytes(tokens) / gpu.memory_bytes_per_s
    return Bounds(compute_s=compute, memory_s=memory, network_s=none)


def fixed_s(op: Op, machine: Machine) -> float:
    """Time of an op that does not shrink with its size."""
    shares = machine.efficiency
    if isinstance(op, Collective):
        return float(collective_time(op, np.zeros(1), machine.gpu).time_s[0])
    if isinstance(op, Elementwise):
        return op.kernels * machine.gpu.launch_s
    if isinstance(op, ExpertGemm):
        return shares.expert_floor_s + _quantise_s(op, machine)
    weights = op.weight_bytes
    ramp = shares.gemm_ramp_s * weights / (weights + shares.gemm_ramp_bytes)
    return shares.gemm_floor_s + ramp + _quantise_s(op, machine)


def _quantise_s(op: Gemm | ExpertGemm, machine: Machine) -> float:
    """Launch of the pass that quantises activations, where the GEMM runs in 8 or 4 bits."""
    fmt = WEIGHT_FORMATS[op.format]
    quantised = fmt.bits < 16 and not weight_only(machine.gpu, fmt)
    return machine.efficiency.quantise_s if quantised else 0.0


def _gemm_shares(op: Gemm | ExpertGemm, tokens: Tokens, machine: Machine) -> tuple[Tokens, float]:
    """Shares of the arithmetic peak and of the memory bandwidth."""
    shares, gpu = machine.efficiency, machine.gpu
    fmt = WEIGHT_FORMATS[op.format]
    memory = shares.gemm_memory
    compute = FORMAT_COMPUTE[fmt.name]
    if weight_only(gpu, fmt):
        compute = min(compute, WEIGHT_ONLY_COMPUTE)
        memory *= shares.int4_memory if fmt.bits < 8 else FORMAT_MEMORY[fmt.name]
    else:
        memory *= FORMAT_MEMORY[fmt.name]
    if isinstance(op, ExpertGemm):
        rows = np.maximum(op.rows(tokens), 1e-300)
        filled = rows / (rows + shares.expert_tile * op.experts_hit(tokens))
        return shares.expert_compute * compute * filled, shares.expert_memory * memory
    derate = 1.0 + shares.power_derate * tokens / (tokens + shares.power_tokens)
    return shares.gemm_compute * compute / derate, memory
