"""Intervals on predictions: drawn errors of prices, the same for every plan that shares an op."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulator.catalog import CONFIGS, load_gpu, load_model, parse_cluster
from simulator.cli import run
from simulator.costs import ops
from simulator.costs.error import PriceError, Profile, price_error, read_errors
from simulator.costs.roofline import compile_cost
from simulator.engine import simulate
from simulator.experiment import Experiment
from simulator.metrics import summarise
from simulator.search import run_search
from simulator.spec import EngineSettings, GpuSpec, NodeGroup, ParallelPlan, PriceDraw, Slo
from simulator.uncertainty import RunUncertainty, run_uncertainty, search_uncertainty
from simulator.work import Elementwise, ExpertGemm, Gemm
from tests.simulator.search_support import small_search, small_table

SETTINGS = EngineSettings(max_num_batched_tokens=2048, max_num_seqs=64)
H100 = CONFIGS / "calibrated" / "h100-sxm"
TOKENS = np.arange(1.0, 4097.0)
QUICK = ["--model", "llama-3.1-8b", "--cluster", "2xH100-SXM", "--num-prompts", "20"]
QUICK += ["--request-rate", "8", "--input-len", "300", "--output-len", "20"]


def small(settings: EngineSettings = SETTINGS, **changes: object) -> Experiment:
    experiment = Experiment(
        model=load_model("llama-3.1-8b"),
        cluster=parse_cluster("1xH100-SXM"),
        plan=ParallelPlan(),
        settings=settings,
        workload=small_table(20),
    )
    return replace(experiment, **changes)  # type: ignore[arg-type]


def uncertainty(experiment: Experiment, num_draws: int = 6, jobs: int = 1) -> RunUncertainty:
    summary = summarise(experiment, simulate(experiment))
    return run_uncertainty(experiment, summary, num_draws, jobs=jobs)


def drawn(number: int = 0, gpu: str = "H100-SXM", calibration: str = "") -> PriceError:
    draw = PriceDraw(seed=0, number=number)
    found = price_error(load_gpu(gpu), replace(SETTINGS, draw=draw, calibration=calibration))
    assert found is not None
    return found


def gemm(out_size: int = 6144, fmt: str = "bf16") -> Gemm:
    return Gemm(name="qkv", in_size=4096, out_size=out_size, format=fmt)


def factors(op: Gemm | ExpertGemm | Elementwise, error: PriceError) -> np.ndarray:  # type: ignore[type-arg]
    tables = ops.tables_of(load_gpu(error.gpu), SETTINGS)
    return error.op_factor(op, TOKENS, tables)


def without_errors(error: PriceError) -> PriceError:
    """The same draw of errors that are all zero."""

    def zero(profiles: dict[str, Profile]) -> dict[str, Profile]:
        return {name: replace(p, rows=0.0 * p.rows) for name, p in profiles.items()}

    tables = error.tables
    if tables is not None:
        tables = replace(tables, ops=zero(dict(tables.ops)))
    return replace(error, session=0.0, tables=tables, roofline=zero(dict(error.roofline)))


@pytest.mark.parametrize(
    ("model", "gpu"),
    [
        ("llama-3.1-8b", "H100-SXM"),
        ("qwen3-30b-a3b", "H200-SXM"),
        ("deepseek-v2-lite", "H100-SXM"),
        ("gemma-2-9b", "L4"),
    ],
)
def test_errors_of_zero_leave_every_price_as_it_is(
    model: str, gpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, settings = ParallelPlan(tp=2), replace(SETTINGS, draw=PriceDraw(seed=0, number=0))
    group = NodeGroup(num_nodes=1, gpus_per_node=8, gpu=load_gpu(gpu))
    bare = compile_cost(load_model(model), plan, group, SETTINGS)
    erring = compile_cost(load_model(model), plan, group, settings)
    assert bare != erring

    def zero(gpu: GpuSpec, settings: EngineSettings) -> PriceError:
        error = price_error(gpu, settings)
        assert error is not None
        return without_errors(error)

    monkeypatch.setattr(ops, "price_error", zero)
    assert bare == compile_cost(load_model(model), plan, group, settings)


def test_an_op_errs_alike_wherever_it_is_used_and_others_on_their_own() -> None:
    error = drawn()
    assert (factors(gemm(), error) == factors(replace(gemm(), name="up"), error)).all()
    assert (factors(gemm(), error) != factors(gemm(5120), error)).any()
    assert (factors(gemm(), error) != factors(gemm(fmt="fp8"), error)).any()
    assert (factors(gemm(), error) != factors(gemm(), drawn(1))).any()
    assert (factors(gemm(), error) != factors(gemm(), drawn(gpu="H200-SXM"))).any()


def test_both_gemms_of_an_expert_layer_err_alike() -> None:
    shape = {"format": "bf16", "num_experts": 8, "local_experts": 8, "experts_per_token": 2}
    up = ExpertGemm(name="expert_up", in_size=4096, out_size=28672, **shape)  # type: ignore[arg-type]
    down = ExpertGemm(name="expert_down", in_size=14336, out_size=4096, **shape)  # type: ignore[arg-type]
    assert (factors(up, drawn()) == factors(down, drawn())).all()


def test_factors_follow_the_stored_distribution() -> None:
    errors = [drawn(k) for k in range(150)]
    logs = np.array([np.log(factors(gemm(), error)) - error.session for error in errors])
    rows = read_errors(H100 / "errors.json").ops["gemm bf16"].rows
    for tokens, octave in ((1, 0), (64, 6), (2048, 11)):
        assert logs[:, tokens - 1].std() == pytest.approx(rows[:, octave].std(), rel=0.3)
    assert (np.abs(logs) <= np.abs(rows).max() + 1e-12).all()
    sessions = [error.session for error in errors]
    assert np.std(sessions) == pytest.approx(0.027, rel=0.2)


def test_what_no_table_prices_errs_by_more() -> None:
    norm = Elementwise(name="norm", bytes_per_token=16384.0)
    spread = {
        name: np.std([np.log(factors(op, drawn(k))[63]) for k in range(60)])
        for name, op in (("measured", gemm()), ("int8", gemm(fmt="int8")), ("norm", norm))
    }
    assert spread["int8"] > 1.5 * spread["measured"]
    assert spread["norm"] > 1.5 * spread["measured"]


def test_no_price_falls_below_the_roofline() -> None:
    group = NodeGroup(num_nodes=1, gpus_per_node=8, gpu=load_gpu("H100-SXM"))
    for number in range(20):
        settings = replace(SETTINGS, draw=PriceDraw(seed=1, number=number))
        machine = ops.machine_of(group, settings)
        bounds = ops.op_bounds(gemm(), TOKENS, machine)
        least = np.maximum(bounds.compute_s, bounds.memory_s)
        assert (ops.op_time(gemm(), TOKENS, machine) >= least).all()


def test_draws_are_the_seed_s_whatever_the_number_of_workers() -> None:
    first = uncertainty(small())
    assert first == uncertainty(small())
    assert first == uncertainty(small(), jobs=2)
    assert first != uncertainty(small(seed=1))
    tpot = first.metrics["mean_tpot_ms"]
    assert tpot.low < tpot.median < tpot.high
    assert 0.8 < tpot.low / tpot.point
    assert tpot.high / tpot.point < 1.25


def test_twice_the_error_of_an_op_widens_the_interval(tmp_path: Path) -> None:
    found = {}
    for times in (1, 2):
        folder = tmp_path / str(times)
        shutil.copytree(H100, folder)
        data = json.loads((folder / "errors.json").read_text())
        entry = data["ops"]["gemm bf16"]
        entry["rows"] = [[times * error for error in row] for row in entry["rows"]]
        (folder / "errors.json").write_text(json.dumps(data))
        own = replace(SETTINGS, calibration=str(folder), extrapolate=True)
        found[times] = uncertainty(small(own), 10).metrics["mean_tpot_ms"]
    assert found[1].point == found[2].point
    assert found[2].high - found[2].low > 1.3 * (found[1].high - found[1].low)


def test_a_calibration_without_errors_says_how_to_find_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "own"
    shutil.copytree(H100, folder)
    stated = json.loads((folder / "errors.json").read_text())
    (folder / "errors.json").unlink()
    own = ["--calibration", str(folder), "--extrapolate"]
    assert 0 == run(["simulate", *QUICK, *own])
    capsys.readouterr()
    assert 2 == run(["simulate", *QUICK, *own, "--uncertainty", "2"])
    error = capsys.readouterr().err
    assert f"headway calibrate errors {folder}" in error
    assert 1 == error.count("\n")

    del stated["ops"]["gemm fp8"]
    (folder / "errors.json").write_text(json.dumps(stated))
    assert 2 == run(["search", *QUICK, *own, "--uncertainty", "2"])
    error = capsys.readouterr().err
    assert "ops: gemm fp8: missing" in error
    assert 1 == error.count("\n")


@pytest.mark.parametrize("objective", ["tpot", "cost", "goodput"])
def test_shares_of_the_best_plans_add_up_to_the_draws(objective: str) -> None:
    slo = Slo(ttft_s=2.0, tpot_s=0.05)
    tp = (4,) if objective == "goodput" else (1, 2, 4)
    spec = small_search(objective=objective, tp=tp, slo=slo, scheduler_variants=False)
    outcome = run_search(spec)
    calls: list[tuple[int, int]] = []
    found = search_uncertainty(spec, outcome, 4, progress=lambda *call: calls.append(call))
    assert 4 == sum(plan.best_in for plan in found.plans) + found.none_in
    assert [plan.record.rank for plan in found.plans] == list(range(1, len(found.plans) + 1))
    assert (4 * len(found.plans),) * 2 == calls[-1]
    assert outcome.best is found.plans[0].record
    assert found == search_uncertainty(spec, outcome, 4)
    spread = found.plans[0].spread
    assert spread is not None
    assert spread.low <= spread.median <= spread.high


def test_a_plan_that_cannot_hold_the_target_in_a_draw_is_not_the_best_in_it() -> None:
    spec = small_search(tp=(1,), cluster="1xH100-SXM", scheduler_variants=False, objective="cost")
    outcome = run_search(spec)
    assert outcome.best is not None
    tpot_s = outcome.best.metrics["p99_tpot_ms"] / 1000
    strict = replace(spec, slo=Slo(tpot_s=tpot_s, attainment=0.99))
    found = search_uncertainty(strict, run_search(strict), 12)
    assert 0 < found.none_in < 12
    assert 12 == found.none_in + found.plans[0].best_in


def test_the_terminal_shows_intervals_and_json_carries_them(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert 0 == run(["simulate", *QUICK, "--uncertainty", "3"])
    shown = capsys.readouterr().out
    assert "Uncertainty: 3 draws of the errors of kernel prices" in shown
    assert all(len(line) <= 100 for line in shown.splitlines())
    assert 0 == run(["simulate", *QUICK, "--uncertainty", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {"draws": 20, "interval": 0.8} == {
        key: found["uncertainty"][key] for key in ("draws", "interval")
    }
    ttft = found["uncertainty"]["metrics"]["p99_ttft_ms"]
    assert found["p99_ttft_ms"] == ttft["point"]
    assert ttft["low"] <= ttft["median"] <= ttft["high"]

    search = ["search", *QUICK, "--jobs", "1", "--uncertainty=3"]
    assert 0 == run(search)
    shown = " ".join(capsys.readouterr().out.split())
    assert "best in" in shown
    assert "of 3" in shown
    assert 0 == run([*search, "--json"])
    plans = json.loads(capsys.readouterr().out)["uncertainty"]["plans"]
    assert 3 == sum(plan["best_in"] for plan in plans)


@pytest.mark.parametrize("number", ["0", "-3", "1", "2.5", "10,001", "1000000"])
@pytest.mark.parametrize("command", ["simulate", "search"])
def test_a_number_no_interval_comes_from_is_one_line(
    command: str, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 2 == run([command, "--uncertainty", number, *QUICK])
    expected = f"error: --uncertainty: expected an int from 2 to 10,000 (got {number})\n"
    assert expected == capsys.readouterr().err


def test_the_point_estimate_is_what_it_is_without_draws(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert 0 == run(["simulate", *QUICK, "--json"])
    bare = capsys.readouterr().out
    assert 0 == run(["simulate", *QUICK, "--json", "--uncertainty", "2"])
    found = json.loads(capsys.readouterr().out)
    del found["uncertainty"]
    assert json.loads(bare) == found
