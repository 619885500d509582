"""Results of load generators as measured runs, and `headway validate RESULT...`."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.bench_results import BenchResult, read_bench
from simulator.cli import run
from simulator.errors import ConfigError
from simulator.validation.bench import row_of_result, rows_of_results
from simulator.validation.load import load_of
from simulator.validation.runner import attempt, outcome_of
from simulator.validation.scenario import Choices, scenario_of
from simulator.validation.score import Outcome

FILES = Path(__file__).parent / "bench_files"
EVERY = sorted(str(path) for path in FILES.iterdir() if path.suffix != ".md")
H100 = {"gpu": "H100-SXM", "model_hf": "llama-3.1-8b", "engine_version": "0.33"}
EXPERIMENT = """
name: mine
model: llama-3.1-8b
cluster: 1xH100-SXM
workload: {kind: synthetic, num_prompts: 3, input_len: 9, output_len: 9}
"""


def validated(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert run(["validate", *words, "--json", "--jobs", "1"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert run(["validate", *words]) == 2
    out, err = capsys.readouterr()
    assert ("", 1) == (out, err.count("\n"))
    return err


def test_every_tools_runs_are_simulated_as_they_were_sent(tmp_path: Path) -> None:
    rows = rows_of_results(EVERY, H100, tmp_path)
    assert 10 == len(rows) == len({row.run_id for row in rows})
    for row in rows:
        found = outcome_of(row, Choices(folder=tmp_path))
        # The server that was measured is the simulator, behind HTTP and a client in Python, which
        # take time before the first token.
        assert abs(found.error["tpot_mean"]) < 3, row.run_id
        assert -50 < found.error["ttft_mean"] < 5 or "0.3" in row.run_id, row.run_id
        assert -10 < found.error["e2e_mean"] < 5 or "0.3" in row.run_id, row.run_id


def test_a_detailed_result_is_replayed_request_by_request(tmp_path: Path) -> None:
    result = read_bench(FILES / "vllm_detailed.json")
    row = row_of_result(result, H100, tmp_path)
    table = load_of(row, tmp_path, 0)
    assert ("file", 0) == (row.text("arrival_kind"), table.max_concurrency)
    assert result.sent_s is not None
    assert np.allclose(result.sent_s, table.arrival_ns / 1e9)
    assert result.output_tokens is not None
    assert result.output_tokens.tolist() == table.output_tokens.tolist()


def test_a_closed_loop_keeps_its_limit_and_its_lengths(tmp_path: Path) -> None:
    row = row_of_result(read_bench(FILES / "aiperf_concurrency"), H100, tmp_path)
    table = load_of(row, tmp_path, 0)
    assert ("closed", 4, 12) == (row.text("arrival_kind"), table.max_concurrency, len(table))
    assert [24] * 12 == table.output_tokens.tolist()
    assert 0 == table.arrival_ns.max()


def test_constant_gaps_are_constant(tmp_path: Path) -> None:
    bare = replace(
        read_bench(FILES / "vllm_detailed.json"),
        burstiness=math.inf,
        input_tokens=None,
        output_tokens=None,
        sent_s=None,
    )
    table = load_of(row_of_result(bare, H100, tmp_path), tmp_path, 0)
    assert {250_000_000} == set(np.diff(table.arrival_ns).tolist())


def test_lengths_that_were_drawn_are_drawn_again(tmp_path: Path) -> None:
    opened, closed = rows_of_results([FILES / "sglang.jsonl"], H100, tmp_path)
    assert "file" == opened.text("input_len_kind")  # stated one by one
    table = load_of(closed, tmp_path, 0)
    assert 150 <= table.prompt_tokens.min() < table.prompt_tokens.max() <= 300
    assert 12 <= table.output_tokens.min() < table.output_tokens.max() <= 24
    assert () == tuple(
        x for x in scenario_of(closed, Choices(folder=tmp_path)).notes if "length" in x
    )


def test_what_is_assumed_is_said(tmp_path: Path) -> None:
    row = row_of_result(read_bench(FILES / "guidellm_poisson.json"), H100, tmp_path)
    assert "engine not stated: vllm assumed" in scenario_of(row, Choices(folder=tmp_path)).notes
    row = row_of_result(read_bench(FILES / "vllm_closed.json"), H100, tmp_path)
    notes = scenario_of(row, Choices(folder=tmp_path)).notes
    assert "the length of each request not stated: the mean of all assumed" in notes


@pytest.mark.parametrize(
    ("engine", "version", "profile"),
    [
        ("sglang", "0.5.23", "sglang-0.5"),
        ("tensorrt-llm", "1.1.0", "tensorrt-llm-1.1"),
        ("trtllm", "", "tensorrt-llm-1.1"),
    ],
)
def test_runs_of_other_engines_are_run_with_their_profiles(
    engine: str, version: str, profile: str, tmp_path: Path
) -> None:
    cells = {**H100, "engine": engine, "engine_version": version}
    row = row_of_result(read_bench(FILES / "vllm_detailed.json"), cells, tmp_path)
    found = attempt(row, Choices(folder=tmp_path))
    assert isinstance(found, Outcome), found
    assert profile == found.labels["engine"]
    assert abs(found.error["tpot_mean"]) < 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"is_replay": True, "sent_s": None, "request_rate_per_s": None}, "the times of a trace"),
        ({"request_rate_per_s": None}, "states neither a request rate nor a concurrency"),
        ({"total_output_tokens": None}, "output tokens: expected some"),
        ({"completed": 0}, "input tokens: expected some in completed requests"),
    ],
)
def test_a_load_that_is_not_stated_is_not_guessed(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    result: BenchResult = replace(read_bench(FILES / "vllm_detailed.json"), **changes)
    with pytest.raises(ConfigError, match=words):
        row_of_result(result, H100, tmp_path)


def test_records_alone_with_the_load_that_was_set(tmp_path: Path) -> None:
    result = read_bench(FILES / "aiperf_rate" / "profile_export.jsonl")
    row = row_of_result(result, {**H100, "arrival_kind": "file"}, tmp_path)
    assert abs(outcome_of(row, Choices(folder=tmp_path)).error["tpot_mean"]) < 3


def test_measured_beside_simulated(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["validate", str(FILES / "vllm_detailed.json"), "--gpu", "H100-SXM"]
    assert run([*words, "--engine-version", "0.33", "--jobs", "1"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["measured", "simulated", "error"] in lines
    ttft = next(line for line in lines if line[:2] == ["TTFT", "mean"])
    assert ["19.4", "ms"] == ttft[2:4]
    assert ["ms", "%"] == [ttft[5], ttft[7]]


def test_an_experiment_says_what_served_and_the_result_how_it_was_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(EXPERIMENT)
    result = str(FILES / "vllm_detailed.json")
    against = validated(capsys, result, "--against", str(file))
    stated = validated(capsys, result, "--gpu", "H100-SXM", "--engine-version", "0.33")
    assert against["runs"][0]["predicted"] == stated["runs"][0]["predicted"]
    file.write_text(EXPERIMENT + "engine: {host_overhead: {request_s: 50ms}}\n")
    slow = validated(capsys, result, "--against", str(file))["runs"][0]
    assert slow["predicted"]["ttft_mean"] > 40 + stated["runs"][0]["predicted"]["ttft_mean"]
    file.write_text(EXPERIMENT.replace("llama-3.1-8b", "qwen3-8b"))
    notes = validated(capsys, result, "--against", str(file))["runs"][0]["notes"]
    assert notes == ["measured with meta-llama/Llama-3.1-8B-Instruct, simulated with qwen3-8b"]


def test_a_figure_and_an_explanation_of_a_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, figure = str(FILES / "vllm_detailed.json"), tmp_path / "figure.png"
    validated(capsys, result, "--gpu", "H100-SXM", "--figure", str(figure))
    assert figure.stat().st_size > 1000
    assert run(["validate", result, "--gpu", "H100-SXM", "--explain", "vllm_detailed"]) == 0
    assert "front end" in capsys.readouterr().out


def test_flags_that_do_not_fit_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    result, yaml = str(FILES / "vllm_detailed.json"), "experiments/quickstart.yaml"
    assert "expected --gpu (or --against" in refused(capsys, result)
    for words in (("--gpu", "H100-SXM"), ("--set", "gpu=H100-SXM"), ("--profile", "vllm-0.33")):
        name = words[0].removeprefix("--") if words[0] != "--set" else "gpu"
        expected = f"--against: {name}: expected it in {yaml}"
        assert expected in refused(capsys, result, "--against", yaml, *words)
    assert "--gpu: expected results" in refused(capsys, "runs.csv", "--gpu", "H100-SXM")
    assert "--against: expected results" in refused(capsys, "runs.csv", "--against", yaml)
    assert "or one runs.csv alone" in refused(capsys, result, "runs.csv")
    assert "--set: expected COLUMN=VALUE" in refused(
        capsys, result, "--gpu", "H100-SXM", "--set", "tp"
    )
    assert "did you mean 'max_num_seqs'" in refused(
        capsys, result, "--gpu", "H100-SXM", "--set", "max_seqs=3"
    )
    assert "unknown GPU 'H900'" in refused(capsys, result, "--gpu", "H900")
