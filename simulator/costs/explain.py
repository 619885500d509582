"""Where the time of one iteration goes, op by op, from the same functions that fill the tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from simulator.costs.attention import attention_time
from simulator.costs.ops import Machine, fixed_s, op_bounds, op_time
from simulator.costs.price import Batch, checked_batch, price_iteration
from simulator.costs.roofline import (
    Layout,
    Stage,
    compile_cost,
    host_time,
    layout_of,
    linear_time,
    ops_time,
    stage_attention,
)
from simulator.graphs import padded_tokens
from simulator.spec import EngineSettings, ModelSpec, NodeGroup, ParallelPlan
from simulator.work import AttentionWork, Collective, ExpertGemm, Op, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedOp:
    """One op of one stage, summed over its layers; flops and bytes are per GPU."""

    stage: int
    name: str
    count: int  # times it runs
    time_s: float
    flops: float
    memory_bytes: float
    network_bytes: float  # per-GPU payload
    bound: str  # compute, memory, network, launch, host, or overlap of nano-batches
    efficiency: float  # roofline time / time
    share: float  # of the iteration


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Every op of one iteration; the times add up to `total_s`."""

    ops: tuple[ExplainedOp, ...]
    total_s: float
    num_tokens: int
    padded_tokens: int  # CUDA-graph size it runs at
    notes: tuple[str, ...]


def explain(
    model: ModelSpec,
    plan: ParallelPlan,
    group: NodeGroup,
    settings: EngineSettings,
    prefill: Sequence[tuple[int, int]],
    decode: Sequence[tuple[int, int]],
) -> Explanation:
    """Price one iteration op by op; arguments as of `compile_cost` and `price_iteration`."""
    layout = layout_of(model, plan, group, settings)
    limits = (settings.max_num_batched_tokens, settings.max_num_seqs)
    batch = checked_batch(prefill, decode, *limits)
    padded = int(padded_tokens(layout.graph_sizes, limits[0])[batch.num_tokens])
    ops: list[ExplainedOp] = []
    host_s = float(host_time(np.array([float(batch.num_seqs)]), layout.machine)[0])
    ops.append(_bare("host", 0, host_s, "host"))
    for index, stage in enumerate(layout.stages):
        ops += _stage_ops(index, stage, layout, batch, padded)
    rows = np.array([float(batch.num_seqs)])
    last = len(layout.stages) - 1
    ops += [_explained(op, 1, last, rows, layout.machine) for op in layout.logits]
    if settings.nano_batches:
        ops.append(_overlap(model, plan, group, settings, batch, ops))
    total = sum(op.time_s for op in ops)
    return Explanation(
        ops=tuple(replace(op, share=op.time_s / total) for op in ops),
        total_s=total,
        num_tokens=batch.num_tokens,
        padded_tokens=padded,
        notes=(f"costs: {layout.machine.source}",),
    )


def _overlap(
    model: ModelSpec,
    plan: ParallelPlan,
    group: NodeGroup,
    settings: EngineSettings,
    batch: Batch,
    ops: Sequence[ExplainedOp],
) -> ExplainedOp:
    """Time that nano-batches hide, as a negative one, or cost."""
    compiled = compile_cost(model, plan, group, settings)
    together_s = sum(price_iteration(compiled, batch.prefill, batch.decode))
    return _bare("nano_batches", 0, together_s - sum(op.time_s for op in ops), "overlap")


def _stage_ops(
    index: int, stage: Stage, layout: Layout, batch: Batch, padded: int
) -> list[ExplainedOp]:
    """Ops of one stage in the order they run; equal names of several layer kinds are merged."""
    machine = layout.machine
    tokens, routed = np.array([float(padded)]), np.array([float(batch.num_tokens)])
    pooled = np.array([float(batch.num_tokens * layout.plan.attention_dp)])
    ops = [_explained(op, 1, index, tokens, machine) for op in stage.before]
    for kind, count in stage.counts:
        work = layout.kinds[kind]
        ops += [
            _explained(op, count, index, routed if isinstance(op, ExpertGemm) else tokens, machine)
            for op in work.linear
        ]
        ops += [_explained(op, count, index, pooled, machine) for op in work.expert]
    for window in layout.windows:
        for kind, count in stage_attention(window, layout, stage):
            work = layout.kinds[kind]
            ops += _attention_ops(work.attention, count, index, batch, machine)
    ops += [_explained(op, 1, index, tokens, machine) for op in stage.after]
    per_kind = [ops_time(work.linear, tokens, machine, routed) for work in layout.kinds]
    waited = float(linear_time(layout, stage, tokens, per_kind)[0])
    busy = sum(n * float(per_kind[k][0]) for k, n in stage.counts)
    busy += float(ops_time(stage.before + stage.after, tokens, machine)[0])
    if waited > busy:
        ops.append(_bare("kernel_launches", index, waited - busy, "launch"))
    ops += [_explained(op, 1, index, tokens, machine) for op in stage.send]
    return _merged(ops)


def _explained(op: Op, count: int, stage: int, tokens: Tokens, machine: Machine) -> ExplainedOp:
    bounds = op_bounds(op, tokens, machine)
    time_s = float(op_time(op, tokens, machine)[0])
    network = op.bytes_per_token * float(tokens[0]) if isinstance(op, Collective) else 0.0
    limits = {
        "compute": float(bounds.compute_s[0]),
        "memory": float(bounds.memory_s[0]),
        "network": float(bounds.network_s[0]),
    }
    return ExplainedOp(
        stage=stage,
        name=op.name,
        count=count,
        time_s=count * time_s,
        flops=count * float(op.flops(tokens)[0]),
        memory_bytes=count * float(op.memory_bytes(tokens)[0]),
        network_bytes=count * network,
        bound=_bound(limits, fixed_s(op, machine), time_s),
        efficiency=max(limits.values()) / time_s,
        share=0.0,
    )


def _bound(limits: dict[str, float], fixed: float, time_s: float) -> str:
    """The resource that bounds an op; launch where fixed time is most of it."""
    return "launch" if fixed > time_s / 2 else max(limits, key=lambda name: limits[name])


def _attention_ops(
    work: AttentionWork, count: int, stage: int, batch: Batch, machine: Machine
) -> list[ExplainedOp]:
    """Decode and prefill attention of the layers of one kind."""
    times = attention_time(work, np.array([float(batch.num_decode)]), machine)
    window = work.window
    suffix = f"_window_{window}" if window else ""
    gpu, ops = machine.gpu, []

    def add(name: str, fixed: float, seconds: float, flops: float, moved: float) -> None:
        limits = {
            "compute": flops / gpu.flops_per_s["bf16"],
            "memory": moved / gpu.memory_bytes_per_s,
        }
        bare = _bare(name + suffix, stage, count * seconds, _bound(limits, fixed, seconds))
        ops.append(
            replace(
                bare,
                count=count,
                flops=count * flops,
                memory_bytes=count * moved,
                efficiency=max(limits.values()) / seconds,
            )
        )

    if batch.num_decode:
        base, kv_tokens = float(times.decode_base_s[0]), batch.decode_kv_tokens(window)
        seconds = base + times.decode_per_token_s * kv_tokens
        flops = work.decode_flops_per_token * kv_tokens
        add("attention_decode", base, seconds, flops, work.kv_bytes_per_token * kv_tokens)
    if batch.prefill:
        pairs, context = batch.pairs(window), batch.context_tokens(window)
        new, base = batch.prefill_tokens, times.prefill_base_s
        seconds = base + times.prefill_per_token_s * new + times.prefill_per_pair_s * pairs
        seconds += times.prefill_per_context_token_s * context
        flops = work.prefill_flops_per_pair * pairs + work.context_flops_per_token * context
        moved = work.kv_bytes_per_token * (new + context) + work.prefill_io_bytes_per_token * new
        add("attention_prefill", base, seconds, flops, moved)
    return ops


def _bare(name: str, stage: int, time_s: float, bound: str) -> ExplainedOp:
    """Time with no work of the GPU behind it."""
    return ExplainedOp(
        stage=stage,
        name=name,
        count=1,
        time_s=time_s,
        flops=0.0,
        memory_bytes=0.0,
        network_bytes=0.0,
        bound=bound,
        efficiency=0.0,
        share=0.0,
    )


def _merged(ops: list[ExplainedOp]) -> list[ExplainedOp]:
    """One line a name, first appearance first; efficiency weighted by time."""
    merged: dict[str, ExplainedOp] = {}
    for op in ops:
        seen = merged.get(op.name)
        if seen is None:
            merged[op.name] = op
            continue
        time_s = seen.time_s + op.time_s
        ideal = seen.efficiency * seen.time_s + op.efficiency * op.time_s
        merged[op.name] = replace(
            seen if seen.time_s >= op.time_s else op,
            count=seen.count + op.count,
            time_s=time_s,
            flops=seen.flops + op.flops,
            memory_bytes=seen.memory_bytes + op.memory_bytes,
            network_bytes=seen.network_bytes + op.network_bytes,
            efficiency=ideal / time_s,
        )
    return list(merged.values())
