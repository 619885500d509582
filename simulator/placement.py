"""Where a plan's GPUs sit, and whether a plan can run at all: pure arithmetic on counts."""

from __future__ import annotations

from itertools import pairwise

from simulator.errors import InfeasiblePlan
from simulator.sharding import padded_vocab
from simulator.spec import ClusterSpec, FfnSpec, LayerSpec, ModelSpec, NodeGroup, ParallelPlan


def stage_layers(num_layers: int, pp: int) -> list[tuple[int, int]]:
    """Layers [first, last) of each pipeline stage, as vLLM's `get_pp_indices` splits them.

    Even; the remainder goes one layer each to the stages before the last, nearest first, because
    the last stage also runs the LM head.
    """
    sizes = [num_layers // pp] * pp
    for i in range(num_layers % pp):
        sizes[-2 - i] += 1
    bounds = [sum(sizes[:i]) for i in range(pp + 1)]
    return list(pairwise(bounds))


def stage_crosses_nodes(plan: ParallelPlan, group: NodeGroup, stage: int) -> bool:
    """Whether stage -> stage + 1 leaves the node; a replica fills nodes stage by stage."""
    size = plan.gpus_per_stage
    if size >= group.gpus_per_node:
        return True
    per_node = group.gpus_per_node // size
    return (stage + 1) % per_node == 0


def replicas_that_fit(plan: ParallelPlan, group: NodeGroup) -> int:
    """Replicas a node group can hold; a stage sits inside one node or fills whole nodes."""
    size, node = plan.gpus_per_stage, group.gpus_per_node
    if size <= node:
        return group.num_nodes * (node // size) // plan.pp
    if size % node:
        return 0
    return group.num_nodes // (size // node * plan.pp)


def check_cluster(model: ModelSpec, plan: ParallelPlan, cluster: ClusterSpec) -> None:
    """Raise InfeasiblePlan unless all `dp` replicas of the plan fit the cluster's groups."""
    check_model(model, plan)
    fit = sum(replicas_that_fit(plan, group) for group in cluster.groups)
    if fit < plan.dp:
        raise InfeasiblePlan(
            f"dp={plan.dp} replicas of {plan.gpus_per_replica} GPUs: cluster '{cluster.name}' "
            f"of {cluster.num_gpus} GPUs holds {fit}"
        )


def check_plan(model: ModelSpec, plan: ParallelPlan, group: NodeGroup) -> None:
    """Raise InfeasiblePlan unless one replica of the plan can run the model in this node group."""
    check_model(model, plan)
    size, node = plan.gpus_per_stage, group.gpus_per_node
    if plan.gpus_per_replica > group.num_gpus:
        raise InfeasiblePlan(
            f"one replica needs {plan.gpus_per_replica} GPUs, the group of {group.num_nodes} x "
            f"{node} {group.gpu.name} has {group.num_gpus}"
        )
    if size > node and size % node:
        raise InfeasiblePlan(
            f"tp x attention_dp = {size} GPUs of a stage neither fit a node of {node} "
            f"nor fill whole nodes"
        )
    if size > node and node % plan.tp and plan.tp % node:
        raise InfeasiblePlan(
            f"tp={plan.tp} groups neither divide a node of {node} GPUs nor fill whole nodes"
        )
    if replicas_that_fit(plan, group) < 1:
        raise InfeasiblePlan(
            f"pp={plan.pp} stages of {size} GPUs do not fit {group.num_nodes} nodes of {node} "
            f"without splitting a stage"
        )


def check_model(model: ModelSpec, plan: ParallelPlan) -> None:
    """Raise InfeasiblePlan where the model's sizes cannot be divided as the plan asks."""
    if plan.pp > model.num_layers:
        raise InfeasiblePlan(f"pp={plan.pp} stages for {model.num_layers} layers of {model.name}")
    vocab = padded_vocab(model)
    if vocab % plan.tp:
        raise InfeasiblePlan(f"tp={plan.tp} does not divide the padded vocabulary of {vocab}")
    if not any(layer.ffn.num_experts for layer in model.layer_kinds):
        for name in ("ep", "attention_dp"):
            if getattr(plan, name) > 1:
                raise InfeasiblePlan(
                    f"{name}={getattr(plan, name)}: {model.name} has no experts to spread"
                )
    for layer in model.layer_kinds:
        _check_heads(layer, plan.tp)
        _check_ffn(layer.ffn, plan)


def _check_heads(layer: LayerSpec, tp: int) -> None:
    spec = layer.attention
    if spec.num_q_heads % tp:
        raise InfeasiblePlan(f"tp={tp} does not divide {spec.num_q_heads} query heads")
    heads = spec.num_kv_heads
    if spec.mla is None and heads % tp and tp % heads:
        raise InfeasiblePlan(f"tp={tp} neither divides {heads} KV heads nor is a multiple of them")


def _check_ffn(ffn: FfnSpec, plan: ParallelPlan) -> None:
    if ffn.num_experts == 0:
        if ffn.ffn_size % plan.tp:
            raise InfeasiblePlan(f"tp={plan.tp} does not divide the FFN size {ffn.ffn_size}")
        return
    if ffn.shared_ffn_size % plan.tp:
        raise InfeasiblePlan(
            f"tp={plan.tp} does not divide the shared expert size {ffn.shared_ffn_size}"
        )
    if ffn.num_experts % plan.ep:
        raise InfeasiblePlan(f"ep={plan.ep} does not divide {ffn.num_experts} experts")
    slices = plan.gpus_per_stage if plan.ep == 1 else 1
    if ffn.ffn_size % slices:
        raise InfeasiblePlan(
            f"tp x attention_dp = {slices} does not divide the expert FFN size {ffn.ffn_size}"
        )
