"""The curves that ship: small, with provenance, as good as they say; and how they are asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from calibration.evaluate import errors_of, misses_of
from calibration.fit import rows_of
from calibration.tables import read_tables
from simulator.catalog import CONFIGS, load_gpu, load_model
from simulator.costs.attention import attention_time
from simulator.costs.attention_fit import fit_decode, fit_prefill, head_points
from simulator.costs.fitted import read_curves, source_of, tables_of
from simulator.costs.forms import weight_points
from simulator.costs.mla_fit import INSIDE
from simulator.costs.ops import op_time
from simulator.costs.roofline import compile_cost, layout_of
from simulator.errors import OutsideCalibration
from simulator.spec import EngineSettings, NodeGroup, ParallelPlan

POINTS = Path(__file__).parent / "points"
GPUS = ("A100-80-SXM", "H100-SXM", "H200-SXM", "B200-SXM")
BARS = {  # percent; all-reduce and collectives are fitted to eight points
    "gemm": 5.0,
    "prefill_attention": 5.0,
    "decode_attention": 3.0,
    "mla_prefill_block": 4.0,
    "mla_decode_block": 2.5,
    "moe": 6.5,
    "all_reduce": 6.5,
    "collective": 13.0,
}
SETTINGS = EngineSettings(max_num_batched_tokens=2048, max_num_seqs=256)
TOKENS = np.unique(np.round(np.geomspace(1, 60_000, 300)))


def group(gpu: str) -> NodeGroup:
    return NodeGroup(num_nodes=1, gpus_per_node=8, gpu=load_gpu(gpu))


@pytest.mark.parametrize("gpu", GPUS)
def test_curves_are_small_and_say_where_they_come_from(gpu: str) -> None:
    folder = CONFIGS / "calibrated" / gpu.lower()
    assert (folder / "curves.json").stat().st_size < 300_000
    card = yaml.safe_load((folder / "meta.yaml").read_text())
    assert card["gpu"] == gpu
    assert "aiconfigurator-core 0.12.0" in card["source"]
    assert card["licence"].startswith("Apache-2.0")
    assert card["held_out"] == read_curves(folder / "curves.json")["held_out"]


@pytest.mark.parametrize("gpu", GPUS)
def test_curves_reproduce_a_sample_of_the_measurements_within_their_stated_error(gpu: str) -> None:
    sample = read_tables(POINTS / gpu.lower(), gpu=gpu)
    stated = read_curves(CONFIGS / "calibrated" / gpu.lower() / "curves.json")["held_out"]
    tables = tables_of(load_gpu(gpu), SETTINGS)
    assert tables is not None
    for op, table in sample.ops.items():
        labels = [label for name, label in tables.curves if name == op]
        misses = [misses_of(tables.curves[op, x], rows_of(op, table, x)) for x in labels]
        found = errors_of(misses)
        assert found.n == len(table)
        assert found.mape < stated[op]["mape"] + 0.5, op
        assert abs(found.bias) < 2.0, op


@pytest.mark.parametrize("gpu", ["H100-SXM", "H200-SXM"])
def test_the_stated_error_of_a_fit_to_a_tenth_is_small_on_hopper(gpu: str) -> None:
    stated = read_curves(CONFIGS / "calibrated" / gpu.lower() / "curves.json")["held_out"]
    assert set(stated) == set(BARS)
    for op, bar in BARS.items():
        assert stated[op]["mape"] <= bar, op
        assert abs(stated[op]["bias"]) < 2.5, op


@pytest.mark.parametrize("gpu", GPUS)
def test_times_never_fall_with_tokens(gpu: str) -> None:
    tables = tables_of(load_gpu(gpu), SETTINGS)
    assert tables is not None
    for out_size, in_size in ((8, 4096), (6144, 4096), (28672, 8192), (256_000, 3584)):
        times = tables.gemm_s("bf16", TOKENS, out_size, in_size)
        assert times is not None
        assert (np.diff(times) >= 0).all()
    sums = tables.collective_s("all_reduce", TOKENS * 16384, 8)
    assert sums is not None
    assert (np.diff(sums) >= 0).all()


def test_a_price_does_not_depend_on_what_else_is_asked() -> None:
    tables = tables_of(load_gpu("H200-SXM"), SETTINGS)
    assert tables is not None
    whole = tables.gemm_s("bf16", TOKENS, 6144, 4096)
    assert whole is not None
    for place in (0, 30, 120, 200):
        alone = tables.gemm_s("bf16", TOKENS[place : place + 1], 6144, 4096)
        assert alone is not None
        assert alone[0] == whole[place]


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen3-30b-a3b"])
def test_the_affine_forms_stay_close_to_the_curve(gpu: str, name: str) -> None:
    tables = tables_of(load_gpu(gpu), SETTINGS)
    work = layout_of(load_model(name), ParallelPlan(), group(gpu), SETTINGS).kinds[0].attention
    assert tables is not None
    decode, prefill = fit_decode(work, tables), fit_prefill(work, tables)
    assert decode is not None
    assert prefill is not None
    seqs = np.repeat([1.0, 8.0, 64.0, 256.0], 4)
    context = np.tile([256.0, 1024.0, 4096.0, 8192.0], 4)
    points = head_points(work, 16) | {"num_seqs": seqs, "kv_tokens": context}
    measured = tables.attention_s("decode_attention", points)
    assert measured is not None
    affine = np.interp(seqs, decode.seqs, decode.base_s) + decode.per_token_s * seqs * context
    assert np.abs(affine / measured - 1.0).mean() < 0.10


@pytest.mark.parametrize("gpu", ["H100-SXM", "H200-SXM", "B200-SXM"])
@pytest.mark.parametrize("tp", [1, 8])
def test_a_block_of_latent_attention_adds_up_to_its_measured_curve(gpu: str, tp: int) -> None:
    model = load_model("deepseek-v3", weight_format="bf16")
    layout = layout_of(model, ParallelPlan(tp=tp), group(gpu), SETTINGS)
    layer, machine = layout.kinds[0], layout.machine
    inside = [op for op in layer.linear if op.name in INSIDE]
    assert sorted(op.name for op in inside) == sorted(INSIDE)
    assert machine.tables is not None
    seqs, contexts = np.repeat([1.0, 8.0, 64.0, 256.0], 3), np.tile([512.0, 2048.0, 8192.0], 4)
    points = {"num_seqs": seqs, "kv_tokens": contexts, "num_q_heads": np.full(12, 128.0 / tp)}
    points |= weight_points(np.full(12, "bf16", dtype=object), machine.gpu)
    measured = machine.tables.attention_s(
        "mla_decode_block", points | {"kv_bits": np.full(12, 16.0)}
    )
    assert measured is not None
    times = attention_time(layer.attention, seqs, machine)
    priced = sum((op_time(op, seqs, machine) for op in inside), 0.0 * seqs)
    priced += times.decode_base_s + times.decode_per_token_s * seqs * contexts
    assert np.abs(priced / measured - 1.0).mean() < 0.08


def test_latent_attention_of_other_models_uses_the_same_measurements() -> None:
    settings = replace(SETTINGS, calibration="roofline")
    for name, plan in (("deepseek-v3", ParallelPlan(tp=8)), ("deepseek-v2-lite", ParallelPlan())):
        fitted, bare = (
            attention_time(layout.kinds[0].attention, np.array([64.0]), layout.machine)
            for layout in (
                layout_of(load_model(name), plan, group("H200-SXM"), found)
                for found in (SETTINGS, settings)
            )
        )
        assert fitted.decode_base_s[0] > 2.0 * bare.decode_base_s[0]
        assert fitted.prefill_base_s > bare.prefill_base_s
        # Both hold 16 heads on a GPU.
        assert fitted.decode_base_s[0] == pytest.approx(64e-6, rel=0.2)


def test_without_curves_the_roofline_prices_and_says_so() -> None:
    assert tables_of(load_gpu("L4"), SETTINGS) is None
    bare = replace(SETTINGS, calibration="roofline")
    assert tables_of(load_gpu("H200-SXM"), bare) is None
    assert source_of(load_gpu("H200-SXM"), bare) != source_of(load_gpu("H200-SXM"), SETTINGS)
    assert "curves fitted to aiconfigurator-core 0.12.0" in source_of(
        load_gpu("H200-SXM"), SETTINGS
    )


def test_a_folder_is_not_stretched_far_beyond_its_range_unless_asked() -> None:
    own = replace(SETTINGS, calibration=str(CONFIGS / "calibrated" / "h200-sxm"))
    tables = tables_of(load_gpu("H200-SXM"), own)
    assert tables is not None
    assert tables.gemm_s("bf16", TOKENS, 128_256, 4096) is not None  # within twice
    with pytest.raises(OutsideCalibration, match="gemm bf16: out_size 256000 is more than twice"):
        tables.gemm_s("bf16", TOKENS, 256_000, 3584)
    stretched = tables_of(load_gpu("H200-SXM"), replace(own, extrapolate=True))
    assert stretched is not None
    assert stretched.gemm_s("bf16", TOKENS, 256_000, 3584) is not None


def test_measured_tables_and_roofline_agree_on_a_dense_model() -> None:
    model, plan = load_model("llama-3.1-8b"), ParallelPlan()
    fitted, bare = (
        compile_cost(model, plan, group("H200-SXM"), replace(SETTINGS, calibration=name))
        for name in ("", "roofline")
    )
    for tokens in (1, 64, 512, 2048):
        ratio = fitted.stages[0].linear[tokens] / bare.stages[0].linear[tokens]
        assert 0.8 < ratio < 1.2
