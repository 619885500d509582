from __future__ import annotations

from dataclasses import replace

import pytest

from simulator import params
from simulator.batch import PageLayout
from simulator.catalog import gpu_names, load_gpu, load_model, model_names
from simulator.errors import InfeasiblePlan
from simulator.memory import activation_bytes, kv_capacity, stage_weight_bytes
from simulator.spec import EngineSettings, ParallelPlan

from .costs_support import ONE, SETTINGS, tiny_model

H100 = load_gpu("H100-SXM")
OLD = EngineSettings(max_num_batched_tokens=2048, max_num_seqs=128, gpu_memory_utilization=0.9)


@pytest.mark.parametrize("name", model_names())
def test_weights_of_one_gpu_are_those_of_the_model(name: str) -> None:
    model = load_model(name)
    assert stage_weight_bytes(model, ONE, 0) == pytest.approx(params.weight_bytes(model), rel=2e-3)


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("llama-3.1-70b", ParallelPlan(tp=4)),
        ("llama-3.1-70b", ParallelPlan(tp=2, pp=2)),
        ("mixtral-8x7b", ParallelPlan(tp=2, ep=2)),
        ("qwen3-30b-a3b", ParallelPlan(tp=4)),
    ],
)
def test_sharded_weights_add_up_to_the_model(name: str, plan: ParallelPlan) -> None:
    model = load_model(name)
    total = sum(plan.gpus_per_stage * stage_weight_bytes(model, plan, s) for s in range(plan.pp))
    assert total == pytest.approx(params.weight_bytes(model), rel=2e-3)


def test_llama_2_7b_on_h100_has_what_vllm_0_15_logs_within_1_percent() -> None:
    # 16 tokens * 512 KiB a block; vLLM left 58.3 GiB of 79.1 GiB * 0.9 for the cache.
    capacity = kv_capacity(load_model("llama-2-7b"), ONE, H100, replace(OLD, reserve_graphs=False))
    assert capacity.block_bytes == 16 * 512 * 1024
    assert capacity.kv_bytes == pytest.approx(58.3 * 2**30, rel=0.01)
    assert capacity.num_blocks == int(capacity.kv_bytes // capacity.block_bytes)
    assert capacity.tokens == 16 * capacity.num_blocks
    assert (capacity.blocks_full_weight, capacity.window_weights) == (1, ())


def test_terms_add_up_to_the_budget() -> None:
    capacity = kv_capacity(load_model("llama-3.1-70b"), ParallelPlan(tp=8), H100, SETTINGS)
    used = capacity.weight_bytes + capacity.activation_bytes + capacity.graph_bytes
    used += capacity.other_bytes + capacity.kv_bytes
    assert used == pytest.approx(H100.memory_bytes * SETTINGS.gpu_memory_utilization)


def test_mla_latent_gains_no_blocks_from_tp_but_gqa_does() -> None:
    mla = load_model("deepseek-v3").with_formats(weight_format="fp8")
    gqa = load_model("llama-3.1-70b")
    b200 = load_gpu("B200-SXM")
    bytes_by_tp = [
        [kv_capacity(model, ParallelPlan(tp=tp), b200, OLD).block_bytes for tp in (8, 16)]
        for model in (mla, gqa)
    ]
    assert bytes_by_tp[0][0] == bytes_by_tp[0][1]
    assert bytes_by_tp[1][0] == bytes_by_tp[1][1] == 16 * 2 * 128 * 2 * 80  # one head, replicated


def test_weights_that_do_not_fit_say_how_much_they_are() -> None:
    with pytest.raises(InfeasiblePlan, match=r"weights 141 GB per GPU exceed 78\.1 GB \(0\.92 of"):
        kv_capacity(load_model("llama-3.1-70b"), ONE, H100, SETTINGS)


def test_no_room_for_one_block_lists_every_term() -> None:
    a10g = load_gpu("A10G")
    wide = EngineSettings(max_num_batched_tokens=65536, max_num_seqs=1024)
    with pytest.raises(InfeasiblePlan, match=r"activations .* leave no room for a KV block"):
        kv_capacity(load_model("llama-3.1-8b"), ONE, a10g, wide)


def test_one_request_of_the_stated_length_must_fit() -> None:
    settings = replace(SETTINGS, max_model_len=10_000_000)
    with pytest.raises(InfeasiblePlan, match="less than one request of max_model_len=10000000"):
        kv_capacity(load_model("llama-3.1-8b"), ONE, H100, settings)


def test_stated_number_of_blocks_overrides_the_computed_one() -> None:
    settings = replace(SETTINGS, num_blocks=777)
    capacity = kv_capacity(load_model("llama-3.1-8b"), ONE, H100, settings)
    assert (capacity.num_blocks, capacity.tokens) == (777, 777 * 16)


def test_hybrid_groups_follow_the_vllm_worked_example() -> None:
    # 10 full and 20 sliding layers, block 16, window 32: 112 tokens hold 7 + 2 groups of windows.
    model = replace(
        tiny_model(window=32, num_layers=30),
        layer_order=tuple(0 if i % 3 == 0 else 1 for i in range(30)),
    )
    capacity = kv_capacity(model, ONE, H100, SETTINGS)
    assert (capacity.blocks_full_weight, capacity.window_weights) == (1, ((32, 2),))
    assert capacity.block_bytes == 16 * 10 * 2 * 4 * 64 * 2
    layout = PageLayout(16, capacity.blocks_full_weight, capacity.window_weights)
    assert layout.pages(112) == 7 + 2 * 3  # the window and the block being filled
    longest = capacity.tokens
    assert layout.pages(longest) <= capacity.num_blocks < layout.pages(longest + 16)


def test_hybrid_group_of_nearly_equal_types_is_padded_to_the_larger() -> None:
    model = replace(tiny_model(window=32, num_layers=9), layer_order=(0, 1, 0, 1, 0, 1, 0, 1, 1))
    capacity = kv_capacity(model, ONE, H100, SETTINGS)
    assert (capacity.blocks_full_weight, capacity.window_weights) == (1, ((32, 1),))
    assert capacity.block_bytes == 16 * 5 * 2 * 4 * 64 * 2


def test_model_of_windows_alone_holds_sequences_of_any_length() -> None:
    model = replace(tiny_model(window=32), layer_order=(1, 1, 1, 1))
    capacity = kv_capacity(model, ONE, H100, SETTINGS)
    assert (capacity.blocks_full_weight, capacity.window_weights) == (0, ((32, 1),))
    assert capacity.tokens == model.max_context_tokens


def test_more_memory_for_the_cache_with_more_gpus_and_fewer_batched_tokens() -> None:
    model = load_model("llama-3.1-8b")
    blocks = [
        kv_capacity(model, ParallelPlan(tp=tp), H100, SETTINGS).num_blocks for tp in (1, 2, 4)
    ]
    assert blocks == sorted(blocks)
    fewer = replace(SETTINGS, max_num_batched_tokens=2048, max_num_seqs=128)
    assert activation_bytes(model, ONE, fewer) < activation_bytes(model, ONE, SETTINGS)


@pytest.mark.parametrize("gpu", gpu_names())
def test_every_bundled_gpu_holds_a_small_model_or_says_why(gpu: str) -> None:
    spec = load_gpu(gpu)
    capacity = kv_capacity(load_model("gemma-2-2b"), ONE, spec, OLD)
    assert capacity.num_blocks > 0
    assert capacity.kv_bytes < spec.memory_bytes
