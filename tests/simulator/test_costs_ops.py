from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.catalog import gpu_names, load_model
from simulator.costs.attention import attention_time
from simulator.costs.collectives import all_reduce, all_to_all, gather, point_to_point
from simulator.costs.ops import machine_of, op_bounds, op_time
from simulator.costs.roofline import layout_of
from simulator.errors import InfeasiblePlan
from simulator.spec import LinkSpec, ParallelPlan
from simulator.work import Gemm

from .costs_support import SETTINGS, node_group

FORMULA = replace(SETTINGS, calibration="roofline")

TOKENS = np.unique(np.round(np.geomspace(1, 16384, 60)))
MODELS = ["llama-3.1-8b", "gemma-2-9b", "deepseek-v3", "gpt-oss-120b", "mixtral-8x7b", "opt-13b"]
PLANS = [
    ParallelPlan(),
    ParallelPlan(tp=2),
    ParallelPlan(tp=8),
    ParallelPlan(tp=16, pp=2),
    ParallelPlan(tp=2, attention_dp=4, ep=8),
]
FORMATS = ["bf16", "fp8", "int8", "int4_g128", "mxfp4"]


@pytest.mark.parametrize("gpu", gpu_names())
def test_no_op_beats_the_roofline_and_none_gets_cheaper_with_more_tokens(gpu: str) -> None:
    group = node_group(gpu, num_nodes=4)
    for name in MODELS:
        for plan in PLANS:
            for weights in FORMATS:
                model = load_model(name).with_formats(weight_format=weights)
                try:
                    layout = layout_of(model, plan, group, SETTINGS)
                except InfeasiblePlan:
                    continue
                ops = [op for work in layout.kinds for op in work.linear + work.expert]
                ops += [op for stage in layout.stages for op in stage.before + stage.send]
                for op in {*ops, *layout.logits}:
                    time_s = op_time(op, TOKENS, layout.machine)
                    bounds = op_bounds(op, TOKENS, layout.machine)
                    least = np.maximum.reduce([bounds.compute_s, bounds.memory_s, bounds.network_s])
                    assert (time_s >= least).all(), (op, gpu)
                    assert (np.diff(time_s) >= -1e-15).all(), (op, gpu)


@pytest.mark.parametrize("gpu", gpu_names())
@pytest.mark.parametrize("kv_format", ["bf16", "fp8", "int4"])
def test_attention_never_beats_the_roofline(gpu: str, kv_format: str) -> None:
    group = node_group(gpu, num_nodes=4)
    seqs = np.array([1.0, 8.0, 64.0, 512.0])
    for name in MODELS:
        model = load_model(name).with_formats(kv_format=kv_format)
        for work in layout_of(model, ParallelPlan(tp=4), group, SETTINGS).kinds:
            spec, peak = work.attention, group.gpu.flops_per_s["bf16"]
            times = attention_time(spec, seqs, machine_of(group, SETTINGS))
            for context in (1.0, 100.0, 1e4, 1e5):
                kv = seqs * context
                decode = times.decode_base_s + times.decode_per_token_s * kv
                least = spec.kv_bytes_per_token * kv / group.gpu.memory_bytes_per_s
                assert (decode >= np.maximum(least, spec.decode_flops_per_token * kv / peak)).all()
            for new in (1.0, 100.0, 8192.0):
                pairs = new * (new + 1) / 2
                prefill = times.prefill_base_s + times.prefill_per_token_s * new
                prefill += times.prefill_per_pair_s * pairs
                moved = (spec.prefill_io_bytes_per_token + spec.kv_bytes_per_token) * new
                assert prefill >= spec.prefill_flops_per_pair * pairs / peak
                assert prefill >= moved / group.gpu.memory_bytes_per_s


@pytest.mark.parametrize(
    ("weight_mib", "bytes_per_s"),
    [(10, 1560e9), (40, 2800e9), (160, 3560e9), (508, 3970e9), (1200, 4080e9)],
)
def test_h200_weight_streaming_is_within_8_percent_of_the_published_rate(
    weight_mib: int, bytes_per_s: float
) -> None:
    weights = weight_mib * 2**20
    op = Gemm(name="g", in_size=8192, out_size=weights // (2 * 8192), format="bf16")
    time_s = op_time(op, np.array([1.0]), machine_of(node_group("H200-SXM"), FORMULA))[0]
    assert time_s == pytest.approx(op.weight_bytes / bytes_per_s, rel=0.08)


@pytest.mark.parametrize(
    ("num_tokens", "flops_per_s"), [(64, 220e12), (256, 685e12), (1024, 812e12), (8192, 741e12)]
)
def test_h200_gemm_rate_is_within_10_percent_of_the_published_medians(
    num_tokens: int, flops_per_s: float
) -> None:
    op = Gemm(name="g", in_size=8192, out_size=7424, format="bf16")  # 116 MiB
    tokens = np.array([float(num_tokens)])
    time_s = op_time(op, tokens, machine_of(node_group("H200-SXM"), FORMULA))[0]
    assert op.flops(tokens)[0] / time_s == pytest.approx(flops_per_s, rel=0.10)


@pytest.mark.parametrize(
    ("num_tokens", "flops_per_s"),
    [(1024, 244e12), (4096, 514e12), (8192, 586e12), (16384, 652e12)],
)
def test_h200_prefill_attention_is_within_14_percent_of_the_published_rate(
    num_tokens: int, flops_per_s: float
) -> None:
    group = node_group("H200-SXM")
    work = layout_of(load_model("llama-3.1-8b"), ParallelPlan(), group, SETTINGS).kinds[0]
    times = attention_time(work.attention, np.ones(1), machine_of(group, SETTINGS))
    pairs = num_tokens * (num_tokens + 1) / 2
    time_s = times.prefill_base_s + times.prefill_per_token_s * num_tokens
    time_s += times.prefill_per_pair_s * pairs
    rate = work.attention.prefill_flops_per_pair * pairs / time_s
    assert rate == pytest.approx(flops_per_s, rel=0.14)


@pytest.mark.parametrize(
    ("num_gpus", "payload", "seconds"),
    [
        (8, 1e3, 4.7e-6),
        (8, 2**16, 6.6e-6),
        (8, 2**20, 14e-6),
        (8, 2**24, 87e-6),
        (2, 1e3, 4.4e-6),
        (2, 2**16, 4.8e-6),
        (2, 2**20, 8.4e-6),
        (2, 2**24, 77e-6),
    ],
)
def test_h200_all_reduce_is_within_15_percent_of_the_published_table(
    num_gpus: int, payload: float, seconds: float
) -> None:
    gpu = node_group("H200-SXM").gpu
    time_s = all_reduce(np.array([payload]), num_gpus, num_gpus, gpu).time_s[0]
    assert time_s == pytest.approx(seconds, rel=0.15)


@pytest.mark.parametrize("gpu", gpu_names())
def test_collectives_grow_with_bytes_and_keep_to_their_bound(gpu: str) -> None:
    spec = node_group(gpu).gpu
    payload = np.geomspace(1, 1e10, 200)
    for num_gpus, local in ((2, 2), (4, 4), (8, 8), (16, 8), (32, 4)):
        for form in (all_reduce, gather, all_to_all):
            result = form(payload, num_gpus, local, spec)
            assert (result.time_s >= result.bound_s).all()
            assert (np.diff(result.time_s) >= 0).all()


def test_hierarchical_all_reduce_sends_its_slice_over_the_network() -> None:
    gpu = node_group().gpu
    payload = np.array([1e9])
    result = all_reduce(payload, 16, 8, gpu)
    inside = 2 * 7 / 8 * 1e9 / gpu.gpu_link.bytes_per_s
    across = 2 * 1 / 2 * 1e9 / 8 / gpu.inter_node.bytes_per_s
    assert result.bound_s[0] == pytest.approx(inside + across)


def test_point_to_point_is_latency_plus_bytes_over_rate() -> None:
    link = LinkSpec(name="wire", bytes_per_s=1e9, latency_s=20e-6)
    assert point_to_point(np.array([8e5]), link).time_s[0] == pytest.approx(20e-6 + 1e-3)
