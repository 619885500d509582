from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from simulator.errors import ConfigError
from simulator.routers import PrefixAware, RoundRobin
from simulator.search.candidates import candidates
from simulator.search.rank import heuristic
from simulator.search.spec import SearchSpec
from simulator.spec import Slo
from tests.simulator.search_support import small_search, small_table
from tests.simulator.toys import toy_table


def labels(spec: SearchSpec) -> list[str]:
    return [candidate.label for candidate in candidates(spec)]


def plain(model: str, cluster: str, **changes: Any) -> SearchSpec:
    return small_search(model, cluster, scheduler_variants=False, **changes)


def test_70b_on_8_gpus_considers_more_plans_than_the_26_of_apex() -> None:
    found = candidates(small_search("llama-3.1-70b", "8xH100-SXM"))
    # 10 shapes with two token budgets each: 20; the 5 of several replicas that fit also behind a
    # second router: 10 more.
    assert len(found) == 30
    assert {str(c.plan) for c in found} == {
        *("tp1-dp8", "tp2-dp4", "tp1-pp2-dp4", "tp4-dp2", "tp2-pp2-dp2"),
        *("tp1-pp4-dp2", "tp8", "tp4-pp2", "tp2-pp4", "tp1-pp8"),
    }
    refused = {c.label: c.reason for c in found if c.reason}
    assert set(refused) == {"tp1-dp8", "tp1-dp8 2048-tok"}
    assert "weights" in refused["tp1-dp8"]


def test_every_plan_of_a_latency_search_uses_every_gpu() -> None:
    for candidate in candidates(small_search("llama-3.1-70b", "8xH100-SXM")):
        assert candidate.plan.num_gpus == 8


def test_deepseek_on_two_nodes_tries_experts_and_attention_ranks() -> None:
    found = candidates(plain("deepseek-v3", "2x8xH200-SXM"))
    plans = [candidate.plan for candidate in found]
    # Compositions of 2^4 over tp, pp, dp and attention_dp: 35. Experts sliced or spread wherever a
    # stage has several GPUs (30 of them): 65.
    assert len(plans) == len(set(plans)) == 65
    assert {plan.ep for plan in plans} == {1, 2, 4, 8, 16}
    feasible = [c.plan for c in found if not c.reason]
    assert all(plan.gpus_per_replica >= 8 for plan in feasible)
    assert len(feasible) >= 30


def test_dense_models_have_no_expert_or_attention_ranks() -> None:
    plans = [c.plan for c in candidates(plain("llama-3.1-8b", "4xH100-SXM"))]
    assert {(plan.ep, plan.attention_dp) for plan in plans} == {(1, 1)}
    assert len(plans) == 6  # compositions of 2^2 over tp, pp and dp


def test_cost_searches_try_every_number_of_replicas() -> None:
    spec = plain("llama-3.1-8b", "4xH100-SXM", objective="cost", pp=(1,))
    assert labels(spec) == ["tp1", "tp1-dp2", "tp1-dp3", "tp1-dp4", "tp2", "tp2-dp2", "tp4"]


def test_indivisible_heads_are_refused_with_the_reason() -> None:
    (found,) = candidates(plain("llama-3.1-8b", "6xH100-SXM", tp=(3,), pp=(1,)))
    assert found.label == "tp3-dp2"
    assert "3" in found.reason


def test_stated_degrees_that_leave_gpus_idle_are_refused() -> None:
    (found,) = candidates(plain("llama-3.1-8b", "8xH100-SXM", tp=(1,), pp=(3,)))
    assert found.reason == "uses 6 of 8 GPUs"


def test_stated_replicas_need_not_fill_the_cluster() -> None:
    spec = plain("llama-3.1-8b", "8xH100-SXM", tp=(2,), pp=(1,), dp=(3, 5))
    assert [(c.label, c.reason) for c in candidates(spec)] == [
        ("tp2-dp3", ""),
        ("tp2-dp5", "dp=5 replicas of 2 GPUs: 4 fit the cluster"),
    ]


def test_variants_are_named_by_what_differs_from_the_defaults() -> None:
    spec = small_search(tp=(2,), pp=(1,))
    assert labels(spec) == [
        "tp2-dp2",
        "tp2-dp2 least-loaded",
        "tp2-dp2 2048-tok",
        "tp2-dp2 2048-tok least-loaded",
    ]


def test_a_stated_default_budget_is_the_default() -> None:
    spec = small_search(tp=(4,), pp=(1,), max_num_batched_tokens=(8192, 4096))
    assert labels(spec) == ["tp4", "tp4 4096-tok"]
    assert [c.settings and c.settings.max_num_batched_tokens for c in candidates(spec)] == [
        8192,
        4096,
    ]


def test_a_budget_below_the_stated_sequences_is_refused_not_fatal() -> None:
    spec = small_search(tp=(4,), pp=(1,), max_num_batched_tokens=(64,), max_num_seqs=(128,))
    (found,) = candidates(spec)
    assert "max_num_seqs" in found.reason


def test_formats_and_routers_multiply_the_plans() -> None:
    spec = plain(
        "llama-3.1-8b",
        "2xH100-SXM",
        tp=(1,),
        pp=(1,),
        weight_formats=("bf16", "fp8"),
        kv_formats=("bf16", "fp8"),
        routers=(RoundRobin(), PrefixAware()),
    )
    assert labels(spec) == [
        "tp1-dp2",
        "tp1-dp2 prefix-aware",
        "tp1-dp2 kv-fp8",
        "tp1-dp2 kv-fp8 prefix-aware",
        "tp1-dp2 fp8",
        "tp1-dp2 fp8 prefix-aware",
        "tp1-dp2 fp8 kv-fp8",
        "tp1-dp2 fp8 kv-fp8 prefix-aware",
    ]


def test_plans_that_would_reject_requests_lose_to_those_that_serve_all() -> None:
    table = toy_table(0, 20, most_prompt=30_000)
    spec = plain("llama-3.1-70b", "4xH100-SXM", workload=table)
    reasons = {c.label: c.reason for c in candidates(spec)}
    assert reasons["tp4"] == ""
    assert "are longer" in reasons["tp2-dp2"]
    kept = {c.label: c.reason for c in candidates(small_search("llama-3.1-70b", prune=False))}
    assert kept["tp2-dp2"] == ""


def test_a_mixed_cluster_is_tried_whole_and_group_by_group() -> None:
    found = candidates(plain("llama-3.1-8b", "2xH100-SXM+2xL4", tp=(1,), pp=(1,)))
    assert [(c.label, c.reason) for c in found] == [
        ("tp1-dp4", ""),
        ("tp1-dp2 @1x2xH100-SXM", ""),
        ("tp1-dp2 @1x2xL4", ""),
    ]


def test_a_plan_leaves_out_the_groups_it_does_not_fit_and_says_so() -> None:
    found = candidates(plain("qwen3-32b", "2xH100-SXM+2xL4", tp=(2,), pp=(1,)))
    (fits,) = [c for c in found if not c.reason]
    assert fits.plan.dp == 1
    assert [group.gpu.name for group in fits.cluster.groups] == ["H100-SXM"]
    assert fits.note.startswith("leaves out 1x2xL4: ")


@pytest.mark.parametrize(
    ("model", "cluster", "label"),
    [
        ("llama-3.1-70b", "8xH100-SXM", "tp8"),
        ("llama-3.1-8b", "2x8xH100-SXM", "tp8-dp2"),
        ("llama-3.1-405b", "2x8xH100-SXM", "tp8-pp2"),
        ("llama-3.1-405b", "4x8xH100-SXM", "tp8-pp2-dp2"),
        ("deepseek-v3", "2x8xH200-SXM", "tp8-dp2"),
        ("mixtral-8x7b", "4xH100-SXM", "tp4"),
    ],
)
def test_the_heuristic_is_tp_inside_a_node_pp_across_dp_for_the_rest(
    model: str, cluster: str, label: str
) -> None:
    spec = small_search(model, cluster)
    found = candidates(spec)
    index = heuristic(spec, found)
    assert index is not None
    assert found[index].label == label


def test_no_heuristic_where_nothing_fits() -> None:
    spec = small_search("llama-3.1-405b", "8xL4")
    assert heuristic(spec, candidates(spec)) is None


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"objective": "speed"}, "unknown objective 'speed'"),
        ({"objective_statistic": "p42"}, "unknown statistic 'p42'"),
        ({"objective": "goodput"}, "needs an slo"),
        ({"objective": "gpus"}, "needs an slo"),
        ({"tp": (0,)}, r"search\.tp: expected ints >= 1"),
        ({"engine": {"block_token": 32}}, "did you mean 'block_tokens'"),
        ({"variants_within": 0.5}, r"search\.variants_within"),
        ({"jobs": -1}, r"search\.jobs"),
    ],
)
def test_impossible_questions_are_config_errors(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        small_search(**changes)


def test_goodput_needs_an_open_loop() -> None:
    with pytest.raises(ConfigError, match="no closed loop"):
        small_search(
            objective="goodput", slo=Slo(ttft_s=1.0), workload=small_table(max_concurrency=4)
        )


def test_workers_do_not_pay_for_tables_and_figures() -> None:
    code = (
        "import sys, simulator.search; "
        "print([m for m in ('pandas', 'matplotlib', 'rich', 'scipy') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
