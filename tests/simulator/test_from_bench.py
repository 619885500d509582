"""A profile fitted to results of `vllm bench serve`, from the command line to the next run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.cli import run
from simulator.profiles import load_profile

FILES = Path(__file__).parent / "bench_files"
LOAD = ["--model", "llama-3.1-8b", "--cluster", "1xH100-SXM"]
LOAD += ["--input-len", "256", "--output-len", "32"]


def result(folder: Path, name: str, rate: str) -> str:
    """What a server with a slow front end would have answered."""
    path = str(folder / f"{name}.json")
    slow = ["--set", "engine.host_overhead.request_s=30ms"]
    load = [*LOAD, "--num-prompts", "30", "--request-rate", rate, *slow]
    assert run(["simulate", *load, "--save-result", path, "--save-detailed", "--json"]) == 0
    return path


def test_two_results_give_a_profile_that_predicts_each_from_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = [result(tmp_path, "slow", "2"), result(tmp_path, "fast", "9")]
    capsys.readouterr()
    mine = tmp_path / "mine.yaml"
    where = ["--gpu", "H100-SXM", "--engine-version", "0.33", "--out", str(mine)]
    assert run(["calibrate", "from-bench", *results, *where, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["before"]["ttft_mean"]["mape"] > 20
    assert found["after"]["ttft_mean"]["mape"] < 5
    assert found["left_out"]["ttft_mean"]["mape"] < 0.3 * found["before"]["ttft_mean"]["mape"]
    assert load_profile(str(mine)).host["request_s"] == pytest.approx(30e-3, rel=0.15)
    assert run(["simulate", *LOAD, "--num-prompts", "5", "--set", f"engine.profile={mine}"]) == 0


@pytest.mark.parametrize("name", ["sglang.jsonl", "guidellm_poisson.json", "aiperf_rate"])
def test_results_of_every_tool_fit_a_profile(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--gpu", "H100-SXM", "--model", "llama-3.1-8b", "--engine-version", "0.33"]
    assert run(["calibrate", "from-bench", str(FILES / name), *where, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["runs"] == (2 if name == "sglang.jsonl" else 1)
    assert found["after"]["ttft_mean"]["mape"] < found["before"]["ttft_mean"]["mape"]
    assert found["after"]["tpot_mean"]["mape"] < 3


def test_what_a_result_does_not_state_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["calibrate", "from-bench", str(tmp_path / "r.json")]) == 2
    assert "expected --gpu, which a result does not state" in capsys.readouterr().err
