"""Curves of one GPU on another: what carries over, what points correct, what is refused.

The real points are those of `points/`, samples of aiconfigurator's tables; the curves are bundled.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from calibration.columns import TIME
from calibration.evaluate import errors_of, misses_of
from calibration.fit import rows_of
from calibration.tables import Tables, read_tables, write_tables
from calibration.transfer import (
    PRIOR_POINTS,
    errors_by_op,
    left_out,
    read_source,
    shrunk,
    transfer,
)
from simulator.catalog import load_gpu
from simulator.cli import run
from simulator.costs.fitted import tables_of
from simulator.costs.forms import FORMS, points_of
from simulator.errors import OutsideCalibration
from simulator.spec import EngineSettings

POINTS = Path(__file__).parent / "points"
QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"
H100, H200, A100 = (load_gpu(name) for name in ("H100-SXM", "H200-SXM", "A100-80-SXM"))
SETTINGS = EngineSettings(max_num_batched_tokens=2048, max_num_seqs=256)
# Mean errors, percent, measured without a point and with twenty an op; a bound 1.2 times above.
MEASURED = {
    ("H200-SXM", "H100-SXM"): {
        "gemm": (6.2, 5.9),
        "prefill_attention": (12.9, 9.4),
        "decode_attention": (7.6, 5.3),
        "moe": (4.5, 4.6),
        "all_reduce": (3.5, 3.4),
    },
    ("H100-SXM", "H200-SXM"): {
        "gemm": (6.3, 6.4),
        "prefill_attention": (8.8, 7.5),
        "decode_attention": (5.5, 4.5),
        "moe": (6.5, 6.3),
        "all_reduce": (3.5, 3.3),
    },
}


def some(gpu: str, number: int, seed: int = 0) -> tuple[Tables, Tables]:
    """So many points of each op, and the others."""
    whole = read_tables(POINTS / gpu.lower(), gpu=gpu)
    rng = np.random.default_rng([seed, number])
    taken = {op: rng.permutation(len(t)) for op, t in whole.ops.items()}
    few = {op: t.iloc[taken[op][:number]] for op, t in whole.ops.items()}
    rest = {op: t.iloc[taken[op][number:]] for op, t in whole.ops.items()}
    return replace(whole, ops=few), replace(whole, ops=rest)


def mape(source: str, target: str, number: int, draws: int) -> dict[str, float]:
    """Mean error, percent, on the points not given, over several draws of those given."""
    errors: dict[str, list[float]] = {}
    for seed in range(draws):
        few, rest = some(target, number, seed)
        found = transfer(read_source(source), load_gpu(target), [few] if number else [])
        for op, table in rest.ops.items():
            curves = [curve for curve in found.curves if curve.op == op]
            misses = [misses_of(c, rows_of(op, table, c.label)) for c in curves]
            errors.setdefault(op, []).append(errors_of(misses).mape)
    return {op: float(np.mean(found)) for op, found in errors.items()}


@pytest.mark.parametrize("pair", MEASURED)
def test_transfer_within_a_generation_is_as_good_as_measured(pair: tuple[str, str]) -> None:
    bare, corrected = mape(*pair, 0, 1), mape(*pair, 20, 4)
    for op, (before, after) in MEASURED[pair].items():
        assert bare[op] < 1.2 * before, op
        assert corrected[op] < 1.2 * after, op


def test_points_correct_what_all_times_are_off_by() -> None:
    """Half as long again everywhere: one point takes a quarter of it, more the rest."""
    source = read_source("H200-SXM")
    curve = next(c for c in transfer(source, H100, []).curves if c.op == "decode_attention")
    table = read_tables(POINTS / "h100-sxm").ops["decode_attention"].iloc[::6]
    points = points_of("decode_attention", {n: table[n] for n in table.columns}, H100)
    seconds = 1.5 * curve.time_s(points, l2_bytes=2 * H100.l2_bytes)
    tables = read_tables(POINTS / "h100-sxm")
    for number in (1, 5, 10):
        rows = table.assign(**{TIME: seconds}).head(number)
        found = transfer(source, H100, [replace(tables, ops={"decode_attention": rows})])
        share = number / (number + PRIOR_POINTS)
        assert 1.5**share == pytest.approx(np.exp(found.corrections["decode_attention"]))
        errors = errors_by_op(found)["decode_attention"]
        assert errors["before"]["bias"] == pytest.approx(-100 / 3, abs=0.01)
        if number == 1:
            assert errors["after"] is None
        else:
            left = 100 * (1.5 ** ((number - 1) / (number - 1 + PRIOR_POINTS) - 1) - 1)
            assert errors["after"]["bias"] == pytest.approx(left, abs=0.01)


def test_one_wrong_point_among_many_moves_little() -> None:
    logs = np.array([0.1] * 9 + [2.3])
    assert 0.1 * 10 / 13 == pytest.approx(shrunk(logs))
    assert 0.0 == shrunk(np.zeros(0))


@pytest.mark.parametrize("number", [2, 3, 8, 9])
def test_each_point_is_left_out_in_turn(number: int) -> None:
    logs = np.random.default_rng(number).normal(size=number)
    expected = [shrunk(np.delete(logs, place)) for place in range(number)]
    assert expected == left_out(logs).tolist()


def test_no_corrected_time_is_below_the_targets_roofline() -> None:
    tables = read_tables(POINTS / "h100-sxm")
    ops = {op: table.assign(**{TIME: table[TIME] / 50}) for op, table in tables.ops.items()}
    found = transfer(read_source("H200-SXM"), H100, [replace(tables, ops=ops)])
    for curve in found.curves:
        rows = rows_of(curve.op, tables.ops[curve.op], curve.label)
        points = points_of(curve.op, {n: rows[n] for n in rows.columns}, H100)
        least = FORMS[curve.op].bounds(points, H100).least_s(0.0)
        assert curve.log_bias < -3.0
        assert (curve.time_s(points) >= least).all()


def test_kernels_the_target_does_not_have_are_left_out() -> None:
    found = transfer(read_source("H200-SXM"), A100, [])
    assert "only one of both GPUs multiplies fp8" == found.left["gemm fp8"]
    assert {"bf16"} == {c.label for c in found.curves if c.op == "gemm"}
    found = transfer(read_source("H200-SXM"), load_gpu("L40S"), [])
    assert "over NVLink 4, here PCIe 4 x16" == found.left["all_reduce graph"]


def test_a_transfer_says_so_wherever_its_prices_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few, _ = some("H100-SXM", 5)
    write_tables(few, tmp_path / "few")
    out = str(tmp_path / "h100")
    command = ["calibrate", "transfer", "H200-SXM", "--to", "H100-SXM", "--out", out]
    assert 0 == run([*command, "--points", str(tmp_path / "few" / "gemm.csv.gz"), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert {"points", "correction", "before", "after"} == set(found["ops"]["gemm"])
    assert ["gemm"] == list(found["ops"])
    card = yaml.safe_load((tmp_path / "h100" / "meta.yaml").read_text())
    assert "transferred from H200-SXM" in card["source"]
    assert ["bf16", "fp8"] == card["transferred"]["gemm"]
    assert {"gemm": 5} == card["measured"][0]["rows"]
    experiment = [str(QUICKSTART), "--max-requests", "20", "--calibration", out]
    assert 0 == run(["simulate", *experiment])
    first = " ".join(capsys.readouterr().out.split())
    assert first.startswith("costs: H100-SXM: transferred from H200-SXM (aiconfigurator-core")
    assert "corrected by 5 points" in first
    search = ["--model", "llama-3.1-8b", "--cluster", "1xH100-SXM", "--trace", "chat-1k"]
    assert 0 == run(["search", *search, "--max-requests", "20", "--calibration", out])
    assert "costs: H100-SXM: transferred" in " ".join(capsys.readouterr().out.split())


def test_beyond_the_sources_range_is_outside_calibration(tmp_path: Path) -> None:
    out = tmp_path / "h100"
    assert 0 == run(["calibrate", "transfer", "H200-SXM", "--to", "H100-SXM", "--out", str(out)])
    own = replace(SETTINGS, calibration=str(out))
    tables = tables_of(H100, own)
    assert tables is not None
    with pytest.raises(OutsideCalibration, match=r"transferred from H200-SXM.*error unknown"):
        tables.gemm_s("bf16", np.array([64.0]), 256_000, 3584)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["H200-SXM", "--out", "x"], "expected --to (got none)"),
        (["H200-SXM", "--to", "H100-SXM"], "expected --out (got none)"),
        (["H200-SXM", "--to", "H200-SXM", "--out", "x"], "is the GPU of"),
        (["A100-80-SXM", "--to", "H100-SXM", "--out", "x"], "H100-SXM is hopper, A100-80-SXM amp"),
        (["L4", "--to", "L40S", "--out", "x"], "unknown folder or GPU with curves 'L4'"),
        (
            ["/nowhere", "--to", "L40S", "--out", "x"],
            "unknown folder or GPU with curves '/nowhere'",
        ),
        (["H200-SXM", "--to", "H1000", "--out", "x"], "unknown GPU 'H1000'"),
    ],
)
def test_bad_transfers_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 2 == run(["calibrate", "transfer", *arguments])
    error = capsys.readouterr().err
    assert message in error
    assert 1 == error.count("\n")
    assert not Path("x").exists()


def test_another_gpus_points_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["calibrate", "transfer", "H200-SXM", "--to", "H100-SXM", "--out", str(out)]
    for points, message in (
        (POINTS / "a100-80-sxm", "gpu: expected H100-SXM (got A100-80-SXM)"),
        (POINTS / "h100-sxm" / "meta.yaml", "unknown op, by the name of"),
        (tmp_path / "none.csv", "does not exist"),
        (tmp_path, "tables without provenance are not used"),
    ):
        assert 2 == run([*command, "--points", str(points)])
        error = capsys.readouterr().err
        assert message in error
        assert 1 == error.count("\n")
        assert not out.exists()


def test_a_source_without_provenance_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curves = read_source("H200-SXM").folder / "curves.json"
    (tmp_path / "curves.json").write_bytes(curves.read_bytes())
    out = tmp_path / "out"
    command = ["calibrate", "transfer", str(tmp_path), "--to", "H100-SXM", "--out", str(out)]
    for text, message in (("", "missing provenance"), ("engine: vllm", "version: missing prov")):
        (tmp_path / "meta.yaml").write_text(text)
        assert 2 == run(command)
        error = capsys.readouterr().err
        assert message in error
        assert "meta.yaml" in error
        assert not out.exists()
