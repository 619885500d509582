from __future__ import annotations

import pytest

from simulator.catalog import load_model
from simulator.errors import InfeasiblePlan
from simulator.placement import (
    check_cluster,
    check_plan,
    replicas_that_fit,
    stage_crosses_nodes,
    stage_layers,
)
from simulator.spec import ClusterSpec, ParallelPlan

from .costs_support import node_group, tiny_model


def test_remainder_goes_to_the_stages_before_the_last_like_vllm_get_pp_indices() -> None:
    sizes = {
        (32, 4): [8, 8, 8, 8],
        (61, 4): [15, 15, 16, 15],
        (62, 4): [15, 16, 16, 15],
        (63, 4): [16, 16, 16, 15],
        (3, 2): [2, 1],
        (5, 1): [5],
    }
    for (layers, pp), expected in sizes.items():
        stages = stage_layers(layers, pp)
        assert [last - first for first, last in stages] == expected
        assert stages[0][0] == 0
        assert stages[-1][1] == layers


@pytest.mark.parametrize(
    ("model", "plan", "nodes", "reason"),
    [
        ("llama-3.1-8b", ParallelPlan(tp=3), 1, "tp=3 does not divide"),
        ("llama-3.1-8b", ParallelPlan(tp=64), 8, "does not divide 32 query heads"),
        ("llama-3.1-8b", ParallelPlan(pp=33), 8, "33 stages for 32 layers"),
        ("llama-3.1-8b", ParallelPlan(tp=4, ep=4), 1, "no experts to spread"),
        ("llama-3.1-8b", ParallelPlan(attention_dp=2), 1, "no experts to spread"),
        ("mixtral-8x7b", ParallelPlan(tp=16, ep=16), 2, "ep=16 does not divide 8 experts"),
        ("llama-3.1-405b", ParallelPlan(tp=8, pp=2), 1, "needs 16 GPUs"),
        ("llama-3.1-405b", ParallelPlan(tp=4, pp=3), 1, "needs 12 GPUs"),
    ],
)
def test_infeasible_plans_say_why_with_numbers(
    model: str, plan: ParallelPlan, nodes: int, reason: str
) -> None:
    with pytest.raises(InfeasiblePlan, match=reason):
        check_plan(load_model(model), plan, node_group(num_nodes=nodes))


def test_a_stage_fills_a_node_or_whole_nodes() -> None:
    with pytest.raises(InfeasiblePlan, match="nor fill whole nodes"):
        check_plan(
            tiny_model(num_experts=24),
            ParallelPlan(attention_dp=12, ep=12),
            node_group(num_nodes=2),
        )
    check_plan(
        tiny_model(num_experts=16), ParallelPlan(attention_dp=16, ep=16), node_group(num_nodes=2)
    )


def test_replicas_never_split_a_stage_over_nodes() -> None:
    assert replicas_that_fit(ParallelPlan(tp=4), node_group(num_nodes=2, gpus_per_node=6)) == 2
    assert replicas_that_fit(ParallelPlan(tp=8, pp=2), node_group(num_nodes=5)) == 2
    assert replicas_that_fit(ParallelPlan(tp=16), node_group(num_nodes=5)) == 2
    assert replicas_that_fit(ParallelPlan(tp=16), node_group(num_nodes=5, gpus_per_node=6)) == 0


def test_pipeline_hand_over_leaves_the_node_where_it_is_full() -> None:
    group = node_group(num_nodes=2)
    plan = ParallelPlan(tp=4, pp=4)
    assert [stage_crosses_nodes(plan, group, s) for s in range(3)] == [False, True, False]
    assert stage_crosses_nodes(ParallelPlan(tp=8, pp=2), group, 0)


def test_cluster_counts_replicas_over_its_groups() -> None:
    cluster = ClusterSpec(name="two", groups=(node_group(), node_group("A100-80-SXM")))
    model = load_model("llama-3.1-8b")
    check_cluster(model, ParallelPlan(tp=4, dp=4), cluster)
    with pytest.raises(InfeasiblePlan, match="holds 4"):
        check_cluster(model, ParallelPlan(tp=4, dp=5), cluster)
