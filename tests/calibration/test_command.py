"""`headway calibrate` from the command line, and a simulation that uses what it wrote."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.cli import run

from .tables_support import gemm_folder

EXPLAIN = ["explain", "--model", "llama-3.1-8b", "--cluster", "1xH200-SXM", "--decode", "4@512"]


def test_fit_report_and_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = gemm_folder(tmp_path / "own")
    assert run(["calibrate", "fit", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["held_out"]["gemm"]["mape"] < 5.0
    assert set(found["held_out"]["gemm"]) == {"mape", "p90_ape", "bias", "n"}

    assert run(["calibrate", "report", str(folder), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) >= {"held_out", "twice_beyond", "figure"}
    assert (folder / "report.png").stat().st_size > 10_000

    assert run([*EXPLAIN, "--calibration", str(folder), "--extrapolate"]) == 0
    assert "curves fitted to synthetic" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["calibrate", "bake", "x"],
            "expected import, fit, errors, report, transfer or from-bench (got 'bake')",
        ),
        (["calibrate", "import", "aiconfigurator"], "expected --system (got none)"),
        (["calibrate", "fit", "/nowhere/at/all"], "no meta.yaml"),
        (
            ["calibrate", "import", "vidurr", "--system", "a", "--engine", "b", "--out", "c"],
            "unknown source of measurements 'vidurr'",
        ),
        ([*EXPLAIN, "--calibration", "/nowhere"], "headway calibrate fit"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
