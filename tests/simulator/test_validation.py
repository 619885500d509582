"""Measured runs as experiments: rows, loads, profiles, scores, fits and attributions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from simulator.errors import ConfigError
from simulator.profiles import bundled_profiles, profile_of_version
from simulator.validation.explain import explain
from simulator.validation.fit import DEPLOYMENT, fit
from simulator.validation.load import load_of, scored_requests
from simulator.validation.rows import read_rows
from simulator.validation.runner import attempt, outcome_of, validate
from simulator.validation.scenario import Choices, scenario_of
from simulator.validation.score import Outcome, summaries
from tests.simulator.validation_support import CELLS, measured_by, row, write_runs

HERE = Choices(folder=Path("."))
TRAIN = Path(__file__).parents[3] / "shared" / "e2e" / "train.csv"


def test_a_run_measured_by_the_simulator_is_predicted_exactly(tmp_path: Path) -> None:
    run = measured_by(row(), tmp_path)
    found = outcome_of(run, Choices(folder=tmp_path))
    assert max(abs(error) for error in found.error.values()) < 1e-3


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ({"model_hf": "acme/Unknown-9B"}, "unknown model"),
        ({"gpu": "H900"}, "unknown GPU"),
        ({"engine": "mystery"}, "unknown engine"),
        ({"engine_version": "99.1"}, "engine_version: expected one of vllm"),
        ({"engine_version": "nightly"}, "engine_version: expected one of vllm"),
        ({"tp": "two"}, "tp: expected a number (got 'two')"),
        ({"tp": "2"}, "n_gpus: expected at least 2"),
        ({"request_rate_rps": ""}, "request_rate_rps: expected a rate > 0"),
        ({"arrival_kind": "closed"}, "max_concurrency: a closed loop needs one"),
        ({"arrival_kind": "sometimes"}, "arrival_kind: expected file"),
        ({"input_len_kind": "odd"}, "input_len_kind: expected file"),
        ({"max_num_batched_tokens": "32"}, "max_num_batched_tokens: expected an int >="),
        ({"workload_file": "missing.csv.gz"}, "workload_file: missing.csv.gz: cannot be read"),
        ({"input_len_min": "900"}, "input_len_min: expected at most 500"),
        ({"n_prefill": "1"}, "n_prefill, n_decode: expected both or none"),
        ({"weight_dtype": "int3"}, "unknown weight format"),
        ({"request_index_to": "77"}, "request_index_to: expected an index from 0 to 59"),
    ],
)
def test_a_row_that_cannot_be_run_says_why(cells: dict[str, str], expected: str) -> None:
    reason = attempt(row(**cells), HERE)
    assert isinstance(reason, str)
    assert expected in reason
    assert "\n" not in reason


def test_other_rows_still_run(tmp_path: Path) -> None:
    rows = [row(run_id="bad", engine_version="0.1"), measured_by(row(), tmp_path)]
    found = validate(rows, Choices(folder=tmp_path), jobs=1)
    assert [run.run_id for run in found.runs] == ["small"]
    assert list(found.skipped) == ["bad"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda cells: {k: v for k, v in cells.items() if k != "tp"}, "columns missing: tp"),
        (lambda cells: {**cells, "run_id": ""}, "line 2: run_id: expected a name"),
    ],
)
def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, change: object, expected: str) -> None:
    path = write_runs(tmp_path / "runs.csv", [change(CELLS)])  # type: ignore[operator]
    with pytest.raises(ConfigError, match=expected):
        read_rows(path)


def test_a_run_twice_is_refused(tmp_path: Path) -> None:
    path = write_runs(tmp_path / "runs.csv", [CELLS, CELLS])
    with pytest.raises(ConfigError, match="line 3: run_id: 'small' is there twice"):
        read_rows(path)


def test_what_is_not_stated_is_the_default_of_the_version_and_is_noted() -> None:
    scenario = scenario_of(row(max_num_batched_tokens="", max_num_seqs=""), HERE)
    assert scenario.experiment.settings.max_num_batched_tokens == 8192
    assert "max_num_batched_tokens not stated: default of vllm-0.15" in scenario.notes
    guessed = row(assumed_settings="max_num_seqs: 256 (default, not stated)", max_num_seqs="256")
    assert scenario_of(guessed, HERE).experiment.settings.max_num_seqs == 1024


@pytest.mark.parametrize(
    ("version", "profile"),
    [
        ("0.8.5.x", "vllm-0.8"),
        ("vllm-openai:latest pulled in May (0.8.5.x)", "vllm-0.8"),
        ("0.10.2", "vllm-0.10"),
        (">=0.15.1 (2026, exact tag not stated)", "vllm-0.15"),
        ("0.19.0", "vllm-0.19"),
        ("v0.23.0", "vllm-0.22"),
        ("0.33.0", "vllm-0.33"),
        ("llm-d-dev vllm-nixl-0.0.6", "llm-d-0.0.6"),
    ],
)
def test_a_version_is_described_by_the_newest_profile_not_after_it(
    version: str, profile: str
) -> None:
    assert profile_of_version("vllm", version).name == profile


def test_every_profile_states_its_sources() -> None:
    folder = Path("configs/engines")
    assert {path.stem for path in folder.glob("*.yaml")} == {p.name for p in bundled_profiles()}
    for path in folder.glob("*.yaml"):
        assert "sources:" in path.read_text(), path


def test_cyclic_prompts_hit_the_cache_after_the_first_round() -> None:
    run = row(
        input_len_kind="shared_prefix",
        distinct_prompts="10",
        prompt_groups="2",
        shared_prefix_tokens="100",
    )
    result = scenario_of(run, HERE).simulate()
    assert result.cached_tokens[0] == 0
    assert (result.cached_tokens[10:] == 288).all()  # all whole blocks of 300 tokens but the last
    # The second prompt of a group shares the first six blocks of its system prompt.
    assert result.cached_tokens[1] == 96


def test_a_later_stage_finds_its_prompts_cached() -> None:
    cells = {"input_len_kind": "shared_prefix", "distinct_prompts": "10", "prompt_groups": "10"}
    run = row(run_id="r_stage1", **cells)
    table = load_of(run, Path("."), 0)
    scored = scored_requests(run, table)
    assert (len(table), scored.start) == (70, 10)
    result = scenario_of(run, HERE).simulate()
    assert (result.cached_tokens[scored] == 288).all()


def test_a_closed_loop_keeps_its_concurrency() -> None:
    run = row(arrival_kind="closed", max_concurrency="4", request_rate_rps="inf")
    result = scenario_of(run, HERE).simulate()
    events = [(t, 1) for t in result.sent_ns] + [(t, -1) for t in result.finish_ns]
    in_flight = np.cumsum([change for _, change in sorted(events)])
    assert int(in_flight.max()) == 4


def test_prefill_and_decode_apart_give_each_request_its_tokens_once() -> None:
    cells = {"n_prefill": "1", "n_decode": "1", "n_gpus": "2", "deployment": "pd-disaggregated"}
    scenario = scenario_of(row(**cells), HERE)
    result = scenario.simulate()
    assert result.completed.all()
    together = scenario_of(row(), HERE).simulate()
    assert result.table.output_tokens.sum() == together.table.output_tokens.sum()
    # The KV is moved after the prefill, and one more iteration gives the first token.
    ttft = np.sort(result.first_token_ns - result.sent_ns)
    assert ttft.min() > np.sort(together.first_token_ns - together.sent_ns).min()


def test_one_run_already_helps_the_others_of_its_deployment(tmp_path: Path) -> None:
    slow = {"request_s": 25e-3, "iteration_s": 1.5e-3}
    loads = [
        measured_by(row(run_id=f"r{rate}", request_rate_rps=rate), tmp_path, **slow)
        for rate in ("2", "6", "12")
    ]
    choices = Choices(folder=tmp_path, profile="vllm-0.15")
    found = fit(loads[:1], choices, jobs=1)
    others = loads[1:]
    before = [outcome_of(r, choices) for r in others]
    fitted = Choices(folder=tmp_path, profile="vllm-0.15", host=dict(found.values))
    after = [outcome_of(r, fitted) for r in others]
    for name in ("ttft_mean", "tpot_mean", "e2e_mean"):
        worst_before = max(abs(run.error[name]) for run in before)
        worst_after = max(abs(run.error[name]) for run in after)
        assert worst_after < 0.4 * worst_before, name
    assert set(found.values) == set(DEPLOYMENT)
    assert min(found.values.values()) >= 0


def test_a_gap_is_attributed_to_its_cause(tmp_path: Path) -> None:
    run = measured_by(row(), tmp_path, request_s=40e-3, prompt_token_s=0.0)
    found = explain(scenario_of(run, Choices(folder=tmp_path)), run.measured())
    share = {cause.name: cause.share["ttft_mean"] for cause in found.causes}
    assert found.gap["ttft_mean"] < -20
    assert min(share, key=lambda name: share[name]) == "front end"
    assert abs(found.gap["tpot_mean"]) < 1.0


def test_summaries_are_of_absolute_and_signed_errors() -> None:
    labels = {"load_level": "low", "model": "m", "gpu": "g", "engine": "e"}
    measured = {"ttft_mean": 100.0}
    runs = [
        Outcome(run_id=str(i), labels=labels, measured=measured, predicted={"ttft_mean": value})
        for i, value in enumerate((110.0, 80.0, 100.0))
    ]
    summary = summaries(runs)
    assert summary["ttft_mean"] == {
        "n": 3,
        "mape": pytest.approx(10.0),
        "median_ape": pytest.approx(10.0),
        "bias": pytest.approx(-10 / 3),
    }
    by_load = summary["by_load"]
    assert isinstance(by_load, dict)
    assert by_load["high"]["ttft_mean"]["n"] == 0


def headway(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "simulator", "validate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_prints_json_and_draws(tmp_path: Path) -> None:
    rows = [measured_by(row(run_id=f"r{n}", num_requests=n), tmp_path) for n in ("20", "30")]
    runs = write_runs(tmp_path / "runs.csv", [*rows, row(run_id="odd", engine="mystery")])
    figure = tmp_path / "figure.png"
    done = headway(str(runs), "--json", "--figure", str(figure), "--jobs", "1")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [run["run_id"] for run in found["runs"]] == ["r20", "r30"]
    assert found["skipped"][0]["run_id"] == "odd"
    assert found["summary"]["ttft_mean"]["mape"] < 1e-3
    assert found["summary"]["by_load"]["low"]["e2e_p99"]["n"] == 2
    assert figure.stat().st_size > 1000


def test_the_command_filters_and_explains(tmp_path: Path) -> None:
    rows = [measured_by(row(run_id=f"r{n}", num_requests=n), tmp_path) for n in ("20", "30")]
    runs = str(write_runs(tmp_path / "runs.csv", rows))
    assert "1 runs simulated" in headway(runs, "--where", "num_requests == 20").stdout
    assert "front end" in headway(runs, "--explain", "r20").stdout
    for arguments, expected in (
        (("--where", "tp == 9"), "--where: no row of 2 fulfils 'tp == 9'"),
        (("--where", "nothing ="), "--where: 'nothing =' cannot be read"),
        (("--explain", "r99"), "--explain: no run 'r99'"),
        (("--profile", "vllm-7"), "unknown engine profile 'vllm-7'"),
    ):
        done = headway(runs, *arguments)
        assert done.returncode == 2
        assert expected in done.stderr
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not TRAIN.exists(), reason="the measured runs are not at hand")
def test_measured_runs_are_predicted_within_their_bounds() -> None:
    chosen = [
        r
        for r in read_rows(TRAIN)
        if r.text("source_id") == "S8" and r.text("max_concurrency") in ("4", "8", "16")
        and "70B" in r.text("model_hf")
    ]  # fmt: skip
    found = validate(chosen, Choices(folder=TRAIN.parent))
    assert not found.skipped
    summary = summaries(found.runs)
    assert len(found.runs) == 27
    assert summary["tpot_mean"]["mape"] < 6  # type: ignore[index]
    assert summary["ttft_mean"]["mape"] < 14  # type: ignore[index]
