"""`compile_cost`: a model under a plan on a node group, as tables of ticks.

Each distinct layer kind is priced once for all token counts together, so the time to compile does
not grow with depth; pipeline stages of equal make-up share one set of lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from simulator.costs.attention import AttentionTime, attention_time
from simulator.costs.compiled import (
    TICKS_PER_S,
    AttentionCost,
    CompiledCost,
    StageCost,
    to_ticks,
)
from simulator.costs.ops import Machine, machine_of, op_time
from simulator.costs.overlap import StageWork, nano_stage
from simulator.errors import ConfigError
from simulator.graphs import graph_sizes, padded_tokens
from simulator.placement import check_plan, stage_crosses_nodes, stage_layers
from simulator.sharding import LayerWork, embedding_work, layer_work, logits_work
from simulator.spec import EngineSettings, ModelSpec, NodeGroup, ParallelPlan
from simulator.work import (
    ACTIVATION_BYTES,
    Collective,
    Elementwise,
    ExpertGemm,
    Op,
    Tokens,
)

ATTENTION_KERNELS = 2  # launches of one attention call: metadata or split merge, and the kernel


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one pipeline stage runs, in works rather than seconds."""

    counts: tuple[tuple[int, int], ...]  # (layer kind, number of layers)
    before: tuple[Op, ...]  # embedding on the first stage
    after: tuple[Op, ...]  # final norm on the last
    send: tuple[Op, ...]  # hand-over to the next stage

    @property
    def key(self) -> tuple[object, ...]:
        return (self.counts, bool(self.before), bool(self.after))


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A model split for pricing; `compile_cost` and `explain` read the same one."""

    plan: ParallelPlan
    machine: Machine
    kinds: tuple[LayerWork, ...]  # by layer kind
    stages: tuple[Stage, ...]
    logits: tuple[Op, ...]
    windows: tuple[int, ...]  # 0 first where present
    graph_sizes: tuple[int, ...]  # empty = eager

    def kernels(self, stage: Stage) -> int:
        """Kernels an iteration of this stage launches."""
        layers = sum(
            count * (len(self.kinds[kind].linear + self.kinds[kind].expert) + ATTENTION_KERNELS)
            for kind, count in stage.counts
        )
        return layers + len(stage.before + stage.after)

    def launch_s(self) -> float:
        """Host time of one kernel launched outside a CUDA graph."""
        host = self.machine.host
        return host.compiled_launch_s if self.graph_sizes else host.eager_launch_s


def layout_of(
    model: ModelSpec, plan: ParallelPlan, group: NodeGroup, settings: EngineSettings
) -> Layout:
    """Split the model over the plan's GPUs; InfeasiblePlan where that cannot be done."""
    check_plan(model, plan, group)
    machine = machine_of(group, settings)
    node = group.gpus_per_node
    wide = ACTIVATION_BYTES * model.hidden_size
    host = machine.host
    kinds = tuple(
        layer_work(layer, model, plan, node, host.expert_skew, host.expert_popularity)
        for layer in model.layer_kinds
    )
    embedding = embedding_work(model, plan, node)
    final_norm = Elementwise(name="final_norm", bytes_per_token=4 * wide)
    stages = []
    for index, (first, last) in enumerate(stage_layers(model.num_layers, plan.pp)):
        stages.append(
            Stage(
                counts=tuple(model.kind_counts(first, last).items()),
                before=embedding if index == 0 else (),
                after=(final_norm,) if index == plan.pp - 1 else (),
                send=() if index == plan.pp - 1 else _send(model, plan, group, index),
            )
        )
    return Layout(
        plan=plan,
        machine=machine,
        kinds=kinds,
        stages=tuple(stages),
        logits=logits_work(model, plan, node, host.sort_logit_bytes * settings.truncated_sampling),
        windows=tuple(sorted({work.attention.window for work in kinds})),
        graph_sizes=graph_sizes(group.gpu, settings),
    )


def _send(model: ModelSpec, plan: ParallelPlan, group: NodeGroup, stage: int) -> tuple[Op, ...]:
    """Hidden states and residual; each tp rank sends its slice, the receivers gather (vLLM)."""
    payload = 2 * ACTIVATION_BYTES * model.hidden_size
    message = Collective(
        name="send",
        kind="p2p",
        bytes_per_token=payload / plan.tp,
        num_gpus=2,
        local_gpus=1 if stage_crosses_nodes(plan, group, stage) else 2,
    )
    if plan.tp == 1:
        return (message,)
    gather = Collective(
        name="send_all_gather",
        kind="all_gather",
        bytes_per_token=payload,
        num_gpus=plan.tp,
        local_gpus=min(plan.tp, group.gpus_per_node),
    )
    return (message, gather)


def ops_time(
    ops: Sequence[Op], tokens: Tokens, machine: Machine, routed: Tokens | None = None
) -> Tokens:
    """Seconds of ops that run one after another.

    `routed` tokens reach the experts: the padding of a CUDA graph is all alike and adds no experts.
    """
    total = np.zeros_like(tokens)
    experts = tokens if routed is None else routed
    for op in ops:
        total += op_time(op, experts if isinstance(op, ExpertGemm) else tokens, machine)
    return total


def linear_time(layout: Layout, stage: Stage, tokens: Tokens, per_kind: list[Tokens]) -> Tokens:
    """Seconds of a stage's token-wise ops: the GPU's time, or the host's launches if longer.

    `per_kind` holds the seconds of one layer of each kind at `tokens`. Inside a CUDA graph there
    is nothing to launch; launches above it hide behind the GPU unless the ops are tiny.
    """
    total = ops_time(stage.before + stage.after, tokens, layout.machine)
    for kind, count in stage.counts:
        total += count * per_kind[kind]
    launched = layout.kernels(stage) * layout.launch_s()
    largest = layout.graph_sizes[-1] if layout.graph_sizes else 0
    return np.where(tokens > largest, np.maximum(total, launched), total)


def host_time(num_seqs: Tokens, machine: Machine) -> Tokens:
    """Seconds of host work an iteration of so many sequences waits for."""
    return machine.host.iteration_s + machine.host.seq_s * num_seqs


def compile_cost(
    model: ModelSpec, plan: ParallelPlan, group: NodeGroup, settings: EngineSettings
) -> CompiledCost:
    """Price of every iteration of one replica of the plan, from the roofline with efficiencies.

    Raises:
        InfeasiblePlan: the plan cannot split this model, or does not fit the group.
        ConfigError: an unknown key of `settings.host_overhead`.
    """
    layout = layout_of(model, plan, group, settings)
    machine = layout.machine
    padded = padded_tokens(layout.graph_sizes, settings.max_num_batched_tokens)
    tokens = padded.astype(np.float64)
    routed = np.arange(len(tokens), dtype=np.float64)
    linear = [ops_time(work.linear, tokens, machine, routed) for work in layout.kinds]
    expert = [ops_time(work.expert, routed * plan.attention_dp, machine) for work in layout.kinds]
    num_seqs = np.arange(settings.max_num_seqs + 1, dtype=np.float64)
    attention = [attention_time(work.attention, num_seqs, machine) for work in layout.kinds]

    ops = (op for work in layout.kinds for op in work.linear + work.expert)
    compiles = settings.cold_start and any(isinstance(op, ExpertGemm) for op in ops)
    cold_s = machine.host.cold_expert_s if compiles else 0.0
    stages = _stage_costs(layout, tokens, linear, expert, attention, cold_s)
    if settings.nano_batches:
        stages = _nano_stages(layout, settings, tokens, routed, stages)
    return CompiledCost(
        stages=stages,
        logits=_ticks(ops_time(layout.logits, num_seqs, machine)),
        host=_ticks(host_time(num_seqs, machine)),
        windows=layout.windows,
        max_num_tokens=settings.max_num_batched_tokens,
        max_num_seqs=settings.max_num_seqs,
    )


def _stage_costs(
    layout: Layout,
    tokens: Tokens,
    linear: list[Tokens],
    expert: list[Tokens],
    attention: list[AttentionTime],
    cold_s: float,
) -> tuple[StageCost, ...]:
    """Tables of every stage; stages of equal make-up share their lists."""
    ranks = layout.plan.attention_dp
    tables: dict[tuple[object, ...], StageCost] = {}
    sends: dict[tuple[Op, ...], list[int]] = {(): []}
    stages: list[StageCost] = []
    for stage in layout.stages:
        if stage.key not in tables:
            pool = sum((n * expert[kind] for kind, n in stage.counts), np.zeros_like(tokens))
            tables[stage.key] = StageCost(
                linear=_ticks(linear_time(layout, stage, tokens, linear)),
                expert=_ticks(pool) if ranks > 1 else [],
                expert_stride=ranks,
                attention=tuple(
                    _attention_cost(w, layout, stage, attention) for w in layout.windows
                ),
                send=[],
            )
        if stage.send not in sends:
            sends[stage.send] = _ticks(ops_time(stage.send, tokens, layout.machine))
        cold = 0 if stages else to_ticks(cold_s)  # all stages compile at the same time
        stages.append(replace(tables[stage.key], send=sends[stage.send], cold=cold))
    return tuple(stages)


def _nano_stages(
    layout: Layout,
    settings: EngineSettings,
    tokens: Tokens,
    routed: Tokens,
    plain: tuple[StageCost, ...],
) -> tuple[StageCost, ...]:
    """The stages with their iterations in nano-batches.

    Raises:
        ConfigError: attention ranks that pool their tokens, whose price is not one rank's.
    """
    if layout.plan.attention_dp > 1:
        raise ConfigError(
            f"engine.nano_batches: expected plan.attention_dp = 1 (got {layout.plan.attention_dp})"
        )
    unlike = [_unlike(work.linear) for work in layout.kinds]
    largest = layout.graph_sizes[-1] if layout.graph_sizes else 0
    made: dict[tuple[object, ...], StageCost] = {}
    for stage, cost in zip(layout.stages, plain, strict=True):
        if stage.key in made:
            continue
        seconds = [np.zeros_like(tokens) for _ in range(3)]
        for kind, count in stage.counts:
            for total, ops in zip(seconds, unlike[kind], strict=True):
                total += count * ops_time(ops, tokens, layout.machine, routed)
        launches = layout.kernels(stage) * layout.launch_s()
        work = StageWork(
            compute_s=seconds[0],
            memory_s=seconds[1],
            network_s=seconds[2],
            outside_s=ops_time(stage.before + stage.after, tokens, layout.machine),
            launched_s=np.where(routed > largest, launches, 0.0),
        )
        made[stage.key] = nano_stage(work, cost, settings.nano_batches, settings.nano_overlap)
    return tuple(
        replace(made[stage.key], send=cost.send, cold=cost.cold)
        for stage, cost in zip(layout.stages, plain, strict=True)
    )


def _unlike(ops: Sequence[Op]) -> tuple[list[Op], list[Op], list[Op]]:
    """What computes, what moves memory, and what communicates."""
    memory: list[Op] = [op for op in ops if isinstance(op, Elementwise)]
    network: list[Op] = [op for op in ops if isinstance(op, Collective)]
    return [op for op in ops if not isinstance(op, Elementwise | Collective)], memory, network


def _ticks(seconds: Tokens) -> list[int]:
    """`to_ticks` of a whole table; entry 0, an absent iteration, costs nothing."""
    ticks: list[int] = np.rint(seconds * TICKS_PER_S).astype(np.int64).tolist()
    ticks[0] = 0
    return ticks


def stage_attention(window: int, layout: Layout, stage: Stage) -> list[tuple[int, int]]:
    """(layer kind, number of layers) of a stage's layers with this window."""
    return [(k, n) for k, n in stage.counts if layout.kinds[k].attention.window == window]


def _attention_cost(
    window: int, layout: Layout, stage: Stage, times: list[AttentionTime]
) -> AttentionCost:
    """Sum over the stage's layers with this window; zeros where it has none."""
    layers = [(n, times[k]) for k, n in stage_attention(window, layout, stage)]
    base = sum((n * t.decode_base_s for n, t in layers), np.zeros_like(times[0].decode_base_s))
    slope = to_ticks(sum(n * t.decode_per_token_s for n, t in layers))
    spread = sum((n * t.decode_spread_s for n, t in layers), np.zeros_like(base))
    has_spread = window == 0 and bool(spread.any())
    return AttentionCost(
        window=window,
        decode_base=_ticks(base),
        decode_per_token=[slope] * len(base),
        decode_spread=_ticks(spread) if has_spread else [],
        prefill_base=to_ticks(sum(n * t.prefill_base_s for n, t in layers)),
        prefill_per_token=to_ticks(sum(n * t.prefill_per_token_s for n, t in layers)),
        prefill_per_pair=to_ticks(sum(n * t.prefill_per_pair_s for n, t in layers)),
        prefill_per_context_token=to_ticks(
            sum(n * t.prefill_per_context_token_s for n, t in layers)
        ),
    )
