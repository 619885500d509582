"""A profile fitted to results of `vllm bench serve`, from the command line to the next run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.cli import run
from simulator.errors import ConfigError
from simulator.profiles import load_profile
from simulator.validation.bench import row_of_result

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


def test_a_detailed_result_is_replayed_request_by_request(tmp_path: Path) -> None:
    path = Path(result(tmp_path, "run", "4"))
    row = row_of_result(path, {"gpu": "H100-SXM", "engine_version": "0.33"}, tmp_path)
    assert row.text("arrival_kind") == "file"
    assert len((tmp_path / row.text("workload_file")).read_text().splitlines()) == 31
    assert row.measured()["ttft_mean"] > 30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "not valid JSON"),
        ("[]", "expected a result of `vllm bench serve`"),
        ('{"mean_ttft_ms": 3}', "KeyError: 'num_prompts'"),
    ],
)
def test_a_file_that_is_no_result_says_so(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.json") as error:
        row_of_result(path, {"gpu": "H100-SXM"}, tmp_path)
    assert expected in str(error.value)


def test_what_a_result_does_not_state_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["calibrate", "from-bench", str(tmp_path / "r.json")]) == 2
    assert "expected --gpu, which a result does not state" in capsys.readouterr().err
