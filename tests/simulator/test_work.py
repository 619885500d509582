from __future__ import annotations

import numpy as np
import pytest

from simulator import params
from simulator.catalog import load_model, model_names
from simulator.sharding import embedding_work, layer_work, logits_work
from simulator.spec import ParallelPlan
from simulator.work import ExpertGemm, Gemm, attention_work, prefill_pairs

from .costs_support import ONE, tiny_model


def test_prefill_pairs_equal_a_count_of_every_query_and_key() -> None:
    for context in (0, 1, 5, 9):
        for tokens in (1, 2, 7, 12):
            for window in (0, 1, 4, 8, 100):
                counted = sum(
                    min(context + i, window) if window else context + i
                    for i in range(1, tokens + 1)
                )
                assert counted == prefill_pairs(tokens, context, window)


def test_gemm_counts_are_the_textbook_ones() -> None:
    op = Gemm(name="g", in_size=512, out_size=256, format="fp8")
    tokens = np.array([3.0])
    assert op.weight_bytes == 512 * 256
    assert op.flops(tokens) == 2 * 3 * 512 * 256
    assert op.memory_bytes(tokens) == 512 * 256 + 2 * 3 * (512 + 256)


@pytest.mark.parametrize("name", model_names())
def test_weights_of_all_ops_add_up_to_the_model(name: str) -> None:
    model = load_model(name)
    total = sum(
        count * layer_work(model.layer_kinds[kind], model, ONE, 8).weight_bytes
        for kind, count in model.kind_counts().items()
    )
    ends = embedding_work(model, ONE, 8)
    ends += () if model.tied_embeddings else logits_work(model, ONE, 8)
    total += sum(op.weight_bytes for op in ends)
    assert total == pytest.approx(params.weight_bytes(model), rel=5e-3)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "deepseek-v3", "mixtral-8x7b", "gpt-oss-120b"])
def test_tensor_parallel_shards_halve_the_flops(name: str) -> None:
    model = load_model(name)
    tokens = np.array([64.0])
    layer = model.layer_kinds[-1]

    def flops(tp: int, kinds: tuple[type, ...]) -> float:
        ops = layer_work(layer, model, ParallelPlan(tp=tp), 8).linear
        chosen = [op for op in ops if isinstance(op, kinds) and "_a_" not in op.name]
        return sum(float(op.flops(tokens)[0]) for op in chosen if op.name != "router")

    assert flops(2, (Gemm, ExpertGemm)) == pytest.approx(flops(1, (Gemm, ExpertGemm)) / 2)


def test_kv_heads_replicate_when_tp_exceeds_them() -> None:
    spec = load_model("qwen3-30b-a3b").layer_kinds[0].attention
    assert spec.num_kv_heads == 4
    by_tp = [attention_work(spec, "bf16", tp).kv_bytes_per_token for tp in (1, 2, 4, 8)]
    assert by_tp == [2048, 1024, 512, 512]


def test_mla_latent_is_whole_on_every_gpu() -> None:
    spec = load_model("deepseek-v3").layer_kinds[0].attention
    assert {attention_work(spec, "bf16", tp).kv_bytes_per_token for tp in (1, 8)} == {1152}


def test_mla_projection_weights_equal_the_six_matrices() -> None:
    model = load_model("deepseek-v3")
    layer = model.layer_kinds[0]
    ops = layer_work(layer, model, ONE, 8).linear
    attention = [op for op in ops if isinstance(op, Gemm) and not op.name.startswith("ffn")]
    counted = sum(op.in_size * op.out_size * op.batch for op in attention)
    assert counted == params.attention_params(layer, model)


def test_experts_hit_follow_the_coupon_formula() -> None:
    op = ExpertGemm(
        name="e",
        in_size=8,
        out_size=8,
        format="bf16",
        num_experts=8,
        local_experts=8,
        experts_per_token=2,
    )
    tokens = np.array([1.0, 2.0, 1000.0])
    assert op.experts_hit(tokens) == pytest.approx([2.0, 3.5, 8.0])
    assert op.rows(tokens) == pytest.approx(2 * tokens)


def test_busiest_expert_gpu_tends_to_the_mean_and_never_exceeds_all_tokens() -> None:
    op = ExpertGemm(
        name="e",
        in_size=8,
        out_size=8,
        format="bf16",
        num_experts=64,
        local_experts=8,
        experts_per_token=4,
    )
    tokens = np.array([1.0, 16.0, 1e6])
    rows = op.rows(tokens)
    assert (rows <= 4 * tokens).all()
    assert (rows >= 0.5 * tokens).all()
    assert rows[-1] == pytest.approx(0.5 * tokens[-1], rel=0.01)
    skewed = ExpertGemm(
        name="e",
        in_size=8,
        out_size=8,
        format="bf16",
        num_experts=64,
        local_experts=8,
        experts_per_token=4,
        skew=0.5,
    )
    assert (skewed.rows(tokens) >= rows).all()


def test_pooled_experts_are_apart_from_the_ranks_own_ops() -> None:
    model = tiny_model(num_experts=8)
    alone = layer_work(model.layer_kinds[0], model, ParallelPlan(tp=2, ep=2), 8)
    pooled = layer_work(model.layer_kinds[0], model, ParallelPlan(attention_dp=4, ep=4), 8)
    assert alone.expert == ()
    assert any(isinstance(op, ExpertGemm) for op in alone.linear)
    assert pooled.expert[0].name == "expert_all_gather"
    assert not any(isinstance(op, ExpertGemm) for op in pooled.linear)
