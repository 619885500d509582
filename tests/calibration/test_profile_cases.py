"""Every point of every suite is a case the kernels know; refusals by comparison on the CPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from calibration.__main__ import Store, main  # noqa: E402
from calibration.columns import SCHEMAS  # noqa: E402
from calibration.measure import Rejected, Trial  # noqa: E402
from calibration.profile import build, config_label, kernels, maker, problem_of, trials  # noqa: E402
from calibration.suites import LAYERS, SUITES, grid, layer_parts  # noqa: E402
from calibration.system import CEILINGS, ceilings, shape_of  # noqa: E402

CPU = torch.device("cpu")
L2_BYTES = 60 << 20


def tiny(**providers):  # type: ignore[no-untyped-def]
    """A case of torch alone: x + 1."""
    return kernels("cases").Case(
        op="tiny", shape={"num_tokens": 4}, dtype="fp32", flops=4, bytes=32, tolerance=1e-6,
        make_inputs=lambda device, generator: (torch.randn(4, generator=generator),),
        reference=lambda x: x + 1, providers=providers,
    )  # fmt: skip


@pytest.mark.parametrize("suite", SUITES)
def test_every_point_has_its_tables_columns(suite: str) -> None:
    columns: dict[str, tuple[str, ...]] = {}
    for p in grid(suite):
        if p.maker == "layer":
            continue
        case, labels, names = build(p.maker, dict(p.arguments))
        found = (*labels, *shape_of(case.shape, names))
        assert columns.setdefault(p.table, found) == found, p.key
        assert set(SCHEMAS[p.table].key if p.table in SCHEMAS else ()) <= set(found), p.key
        assert case.providers, p.key


def test_ceilings_have_makers() -> None:
    assert {p.maker for s in SUITES for p in ceilings(s)} == set(CEILINGS)


@pytest.mark.parametrize("model", LAYERS)
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_the_ops_of_a_layer_fit_together(model: str, phase: str) -> None:
    parts = layer_parts(model, phase, 3, 8)
    sizes = {part: build(name, arguments)[0].shape for part, name, arguments in parts}
    hidden = sizes["norm_1"]["hidden_size"]
    assert hidden == sizes["qkv"]["k"] == sizes["out"]["n"]
    heads = sizes["attention"]["num_q_heads"] + 2 * sizes["attention"]["num_kv_heads"]
    assert 128 * heads == sizes["qkv"]["n"]
    assert 128 * sizes["attention"]["num_q_heads"] == sizes["out"]["k"]
    if "down" in sizes:
        assert 2 * sizes["gated"]["ffn_size"] == sizes["gate_up"]["n"]
        assert hidden == sizes["down"]["n"]


def test_our_kernels_configuration_is_named() -> None:
    for name in ("dense", "fp8", "int8", "int4_g128", "moe", "decode", "prefill", "mla"):
        p = next(p for p in grid("smoke") if p.maker == name)
        assert config_label(name, build(name, dict(p.arguments))[0], CPU), name


def test_only_a_kernel_that_agrees_is_timed() -> None:
    case = tiny(headway=lambda x: x + 1, wrong=lambda x: x + 2, absent=lambda x: x.nothing())
    found = {t.kernel: t for t in trials(case, CPU, L2_BYTES, "m16")}
    ours = found["headway"]
    assert isinstance(ours, Trial)
    assert (24, True, "m16") == (len(ours.calls), ours.flush, ours.config)
    assert isinstance(found["wrong"], Rejected)
    assert "relative error" in found["wrong"].reason
    assert isinstance(found["absent"], Rejected)
    assert "not available: AttributeError" in found["absent"].reason


def test_large_inputs_need_no_flush() -> None:
    case = replace(tiny(headway=lambda x: x + 1), bytes=9 * L2_BYTES)
    [trial] = trials(case, CPU, L2_BYTES)
    assert isinstance(trial, Trial)
    assert (1, False) == (len(trial.calls), trial.flush)


def test_a_chip_without_the_type_rejects_the_point() -> None:
    case = replace(tiny(headway=lambda x: x + 1), capability=120)
    [found] = trials(case, CPU, L2_BYTES)
    assert Rejected("*", "needs sm_120, this is sm_100") == found


def test_where_the_reference_does_not_fit_two_kernels_must_agree() -> None:
    def too_large(x):  # type: ignore[no-untyped-def]
        raise torch.cuda.OutOfMemoryError("no room")

    def ours(x):  # type: ignore[no-untyped-def]
        return x + 1

    case = replace(tiny(headway=ours, flash=lambda x: 1 + x), reference=too_large)
    assert "" == problem_of(case, ours, (torch.ones(4),))
    alone = replace(case, providers={"headway": ours})
    assert "no second kernel" in problem_of(alone, ours, (torch.ones(4),))
    other = replace(case, providers={"headway": ours, "flash": lambda x: x})
    assert "relative error" in problem_of(other, ours, (torch.ones(4),))


def test_a_point_becomes_a_row_shape_and_trials() -> None:
    p = next(p for p in grid("smoke") if p.maker == "decode")
    shape, _ = maker(CPU, L2_BYTES)(p)
    assert {"kv_format", "num_seqs", "kv_tokens", "window"} <= set(shape)


@pytest.mark.gpu
def test_smoke_runs_on_a_gpu(tmp_path: Path) -> None:
    assert 0 == main(["profile", "--suite", "smoke", "--budget-s", "300", "--out", str(tmp_path)])
    store = Store(tmp_path)
    assert {"gemm", "decode_attention", "prefill_attention", "moe", "layer"} <= set(store.tables())
    assert [] == [row for row in store.rows("rejected") if row["kernel"] in ("headway", "*")]
    assert all(float(row["time_s"]) > 0 for t in store.tables() for row in store.rows(t))
