from __future__ import annotations

import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from simulator.catalog import load_model
from simulator.costs.explain import explain
from simulator.costs.price import price_iteration
from simulator.costs.roofline import compile_cost
from simulator.errors import ConfigError
from simulator.graphs import graph_sizes, padded_tokens
from simulator.spec import EngineSettings, ModelSpec, ParallelPlan

from .costs_support import ONE, SETTINGS, SMALL, node_group, tiny_model

CASES = [
    ("llama-3.1-8b", ParallelPlan()),
    ("llama-3.1-70b", ParallelPlan(tp=8)),
    ("llama-3.1-70b", ParallelPlan(tp=4, pp=4)),
    ("gemma-2-9b", ParallelPlan(tp=2, pp=2)),
    ("gpt-oss-120b", ParallelPlan(tp=4, ep=4)),
    ("mixtral-8x7b", ParallelPlan(tp=2)),
    ("deepseek-v3", ParallelPlan(tp=4, attention_dp=4, ep=16)),
]
BATCHES: list[tuple[list[tuple[int, int]], list[tuple[int, int]]]] = [
    ([], [(1, 512)]),
    ([], [(60, 900), (40, 5000)]),
    ([(700, 0)], []),
    ([(300, 4000), (17, 0)], [(33, 1000)]),
    ([(3, 0)], [(2, 10)]),
]


def decode_s(model: ModelSpec, plan: ParallelPlan, num_seqs: int, context: int) -> float:
    compiled = compile_cost(model, plan, node_group(), SETTINGS)
    return sum(price_iteration(compiled, [], [(num_seqs, context)]))


def test_llama_8b_decode_alone_on_h100_takes_what_vllm_takes() -> None:
    assert 5.5e-3 < decode_s(load_model("llama-3.1-8b"), ONE, 1, 512) < 8e-3


def test_llama_70b_tp8_decode_alone_on_h100_takes_what_vllm_takes() -> None:
    assert 8e-3 < decode_s(load_model("llama-3.1-70b"), ParallelPlan(tp=8), 1, 512) < 14e-3


def test_llama_8b_prefill_reaches_a_plausible_share_of_h100_peak() -> None:
    shown = explain(load_model("llama-3.1-8b"), ONE, node_group(), SETTINGS, [(8192, 0)], [])
    flops = sum(op.flops for op in shown.ops)
    assert 0.45 < flops / shown.total_s / 989e12 < 0.8


@pytest.mark.parametrize(("name", "plan"), CASES)
@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_explanation_adds_up_to_the_tables(
    name: str, plan: ParallelPlan, cuda_graphs: bool
) -> None:
    model, group = load_model(name), node_group(num_nodes=2)
    settings = replace(SMALL, cuda_graphs=cuda_graphs)
    compiled = compile_cost(model, plan, group, settings)
    for prefill, decode in BATCHES:
        shown = explain(model, plan, group, settings, prefill, decode)
        by_stage = price_iteration(compiled, prefill, decode)
        assert shown.total_s == pytest.approx(sum(by_stage), rel=1e-6)
        for stage, seconds in enumerate(by_stage):
            listed = sum(op.time_s for op in shown.ops if op.stage == stage)
            assert listed == pytest.approx(seconds, rel=1e-6)
        assert sum(op.share for op in shown.ops) == pytest.approx(1.0)
        assert all(0 <= op.efficiency <= 1 for op in shown.ops)
        assert {op.bound for op in shown.ops} <= {"compute", "memory", "network", "launch", "host"}


@pytest.mark.parametrize(("name", "plan"), CASES)
def test_every_table_is_whole_numbers_that_never_fall(name: str, plan: ParallelPlan) -> None:
    compiled = compile_cost(load_model(name), plan, node_group(num_nodes=2), SMALL)
    assert len(compiled.stages) == plan.pp
    assert len(compiled.host) == len(compiled.logits) == SMALL.max_num_seqs + 1
    tables = [compiled.logits, compiled.host]
    for stage in compiled.stages:
        assert len(stage.linear) == SMALL.max_num_batched_tokens + 1
        assert tuple(cost.window for cost in stage.attention) == compiled.windows
        tables += [stage.linear, *(cost.decode_base for cost in stage.attention)]
        tables += [table for table in (stage.expert, stage.send) if table]
        assert bool(stage.expert) == (plan.attention_dp > 1)
        assert stage.expert_stride == plan.attention_dp
    assert compiled.stages[-1].send == []
    for table in tables:
        assert table[0] == 0
        assert all(type(value) is int for value in table[:50])
        assert all(a <= b for a, b in pairwise(table))


def test_graph_sizes_are_those_of_vllm_0_33() -> None:
    h100, b200 = node_group().gpu, node_group("B200-SXM").gpu
    sizes = graph_sizes(h100, SETTINGS)
    assert sizes[:5] == (1, 2, 4, 8, 16)
    assert 248 in sizes
    assert 256 in sizes
    assert 264 not in sizes
    assert sizes[-1] == 512
    assert graph_sizes(b200, SETTINGS)[-1] == 1024
    few = EngineSettings(max_num_batched_tokens=64, max_num_seqs=16)
    assert graph_sizes(h100, few) == (1, 2, 4, 8, 16, 24, 32)
    assert graph_sizes(h100, replace(few, cuda_graphs=False)) == ()


def test_tokens_are_padded_up_to_a_graph_and_not_above_the_largest() -> None:
    padded = padded_tokens((1, 2, 4, 8, 16), 20).tolist()
    assert padded == [0, 1, 2, 4, 4, *[8] * 4, *[16] * 8, 17, 18, 19, 20]
    assert padded_tokens((), 5).tolist() == [0, 1, 2, 3, 4, 5]


def test_padding_costs_the_same_as_the_size_padded_to() -> None:
    compiled = compile_cost(tiny_model(), ONE, node_group(), SMALL)
    linear = compiled.stages[0].linear
    assert linear[9] == linear[16]
    assert linear[8] < linear[9]


def test_eager_mode_is_bound_by_launches_at_small_sizes() -> None:
    model = load_model("llama-3.1-8b")
    eager = compile_cost(model, ONE, node_group(), replace(SMALL, cuda_graphs=False))
    graphs = compile_cost(model, ONE, node_group(), SMALL)
    assert eager.stages[0].linear[1] > graphs.stages[0].linear[1]
    shown = explain(model, ONE, node_group(), replace(SMALL, cuda_graphs=False), [], [(1, 512)])
    assert "kernel_launches" in [op.name for op in shown.ops]


def test_equal_pipeline_stages_share_their_lists() -> None:
    compiled = compile_cost(
        load_model("llama-3.1-70b"), ParallelPlan(tp=2, pp=8), node_group(num_nodes=2), SMALL
    )
    middle = compiled.stages[1:-1]
    assert len({id(stage.linear) for stage in middle}) == 1
    assert len({id(stage.attention) for stage in middle}) == 1
    assert compiled.stages[3].send[100] > compiled.stages[2].send[100]  # leaves the node


def test_pipeline_stages_of_a_dense_model_add_up_to_the_whole() -> None:
    model = load_model("llama-3.1-70b")
    whole = compile_cost(model, ParallelPlan(tp=4), node_group(), SMALL)
    split = compile_cost(model, ParallelPlan(tp=4, pp=2), node_group(), SMALL)
    for tokens in (1, 100, 512):
        parts = sum(stage.linear[tokens] for stage in split.stages)
        assert parts == pytest.approx(whole.stages[0].linear[tokens], rel=1e-9)


def test_cost_scales_with_depth() -> None:
    group = node_group()
    shallow, deep = tiny_model(num_layers=2), tiny_model(num_layers=400)
    costs = [compile_cost(m, ONE, group, SMALL).stages[0].attention[0] for m in (shallow, deep)]
    assert costs[1].prefill_per_pair == pytest.approx(200 * costs[0].prefill_per_pair, rel=1e-3)


def test_compiling_an_80_layer_model_takes_under_50_ms() -> None:
    model, plan, group = load_model("llama-3.1-70b"), ParallelPlan(tp=8), node_group()
    best = 1.0
    for _ in range(5):
        start = time.process_time()
        compile_cost(model, plan, group, SETTINGS)
        best = min(best, time.process_time() - start)
    assert best < 0.05


def test_windowed_layers_are_priced_in_a_term_of_their_own() -> None:
    compiled = compile_cost(tiny_model(window=128), ONE, node_group(), SMALL)
    assert compiled.windows == (0, 128)
    full, sliding = compiled.stages[0].attention
    assert full.decode_per_token == sliding.decode_per_token
    short = price_iteration(compiled, [], [(4, 128)])[0]
    long = price_iteration(compiled, [], [(4, 1128)])[0]
    slope = full.decode_per_token[4] * 4 * 1000 / 2**20 / 1e9
    assert long - short == pytest.approx(slope, rel=1e-6)


def test_a_stage_without_a_window_prices_it_at_zero() -> None:
    model = replace(tiny_model(window=128), layer_order=(0, 0, 1, 1))
    compiled = compile_cost(model, ParallelPlan(pp=2), node_group(), SMALL)
    first, last = compiled.stages
    assert [cost.window for cost in first.attention] == [0, 128]
    assert first.attention[1].prefill_base == first.attention[1].decode_base[5] == 0
    assert last.attention[0].prefill_per_pair == 0


def fp8_kv_slope(settings: EngineSettings) -> float:
    """Price of a token of context in fp8 KV, as a share of its price in bf16."""
    model = load_model("llama-3.1-8b")
    bf16, fp8 = (
        compile_cost(m, ONE, node_group(), settings).stages[0].attention[0].decode_per_token[8]
        for m in (model, model.with_formats(kv_format="fp8"))
    )
    return fp8 / bf16


def test_8_bit_kv_is_hardly_faster_on_the_roofline() -> None:
    assert 0.9 < fp8_kv_slope(replace(SMALL, calibration="roofline")) < 1.0


def test_8_bit_kv_saves_less_than_its_bytes_on_the_fitted_curves() -> None:
    """The tables behind them say 388 against 688 us at 64 x 8,192: a share of 0.56."""
    assert 0.5 < fp8_kv_slope(SMALL) < 0.65


def test_gpus_without_fp8_run_weight_only_kernels() -> None:
    model = load_model("llama-3.1-8b")
    fp8 = model.with_formats(weight_format="fp8")
    a100 = node_group("A100-80-SXM")
    plain, quantised = (compile_cost(m, ONE, a100, SETTINGS).stages[0] for m in (model, fp8))
    assert quantised.linear[1] < 0.7 * plain.linear[1]  # half the weights to read
    assert quantised.linear[8192] > plain.linear[8192]  # bf16 arithmetic and dequantisation
    h100 = node_group()
    plain, quantised = (compile_cost(m, ONE, h100, SETTINGS).stages[0] for m in (model, fp8))
    assert quantised.linear[8192] < 0.75 * plain.linear[8192]


def test_int4_wins_at_low_load_and_loses_in_prefill_on_a100() -> None:
    model = load_model("llama-3.1-70b")
    group, plan = node_group("A100-80-SXM"), ParallelPlan(tp=4)
    stages = {
        name: compile_cost(model.with_formats(weight_format=name), plan, group, SETTINGS).stages[0]
        for name in ("bf16", "int8", "int4_g128")
    }
    assert stages["int4_g128"].linear[1] < stages["int8"].linear[1] < stages["bf16"].linear[1]
    assert stages["int8"].linear[8192] < stages["bf16"].linear[8192]
    assert stages["bf16"].linear[8192] < stages["int4_g128"].linear[8192]


def test_host_overheads_can_be_overridden_and_unknown_ones_are_refused() -> None:
    group = node_group()
    slow = replace(SMALL, host_overhead={"iteration_s": 5e-3, "seq_s": 0.0})
    assert compile_cost(tiny_model(), ONE, group, slow).host[7] == 5_000_000 << 20
    wrong = replace(SMALL, host_overhead={"iteration": 5e-3})
    with pytest.raises(ConfigError, match="did you mean 'iteration_s'"):
        compile_cost(tiny_model(), ONE, group, wrong)


def test_iterations_beyond_the_tables_are_refused() -> None:
    compiled = compile_cost(tiny_model(), ONE, node_group(), SMALL)
    with pytest.raises(ConfigError, match="expected 1 to 1024 tokens"):
        price_iteration(compiled, [(1025, 0)], [])
    with pytest.raises(ConfigError, match="at most 128 sequences"):
        price_iteration(compiled, [], [(129, 5)])


def test_expert_parallel_ranks_pay_for_the_tokens_of_all_ranks() -> None:
    model = load_model("deepseek-v3")
    plan = ParallelPlan(attention_dp=16, ep=16)
    compiled = compile_cost(model, plan, node_group(num_nodes=2), SMALL)
    expert = np.array(compiled.stages[0].expert)
    assert compiled.stages[0].expert_stride == 16
    assert len(expert) == SMALL.max_num_batched_tokens + 1
    assert expert[1] > 0
    assert expert[-1] > expert[1]
