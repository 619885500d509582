"""The command line: its contract lines, one JSON document each, exit codes, files and help."""

from __future__ import annotations

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulator import cli
from simulator.catalog import gpu_names, model_names
from simulator.cli import run
from simulator.commands import flags

ROOT = Path(__file__).parents[2]
HEADWAY = [sys.executable, "-m", "simulator"]
SMALL = (
    "simulate --model llama-3.1-8b --cluster 1xH100-SXM --num-prompts 6 --input-len 100 "
    "--output-len 8 --request-rate 4"
)
COMMANDS = ("simulate", "search", "compare", "explain", "models", "hardware", "schema")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Six requests in the table format."""
    path = tmp_path / "trace.csv"
    rows = "".join(f"{0.5 * i},{100 + 10 * i},{5 + i}\n" for i in range(6))
    path.write_text(f"arrival_s,input_tokens,output_tokens\n{rows}")
    return path


def headway(line: str, capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    """Standard output of a command line that leaves standard error empty."""
    assert run(shlex.split(line)) == code
    out, err = capsys.readouterr()
    assert err == ""
    return str(out)


def document(line: str, capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """The one JSON document a command line prints; NaN and infinity are not JSON."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    parsed = json.loads(headway(line, capsys), parse_constant=refuse)
    assert isinstance(parsed, dict)
    return parsed


def test_simulate_of_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    summary = document(f"simulate {ROOT}/experiments/quickstart.yaml --json", capsys)
    assert summary["completed"] == 1000
    assert summary["request_goodput"] is not None
    for name in ("ttft", "tpot", "itl", "e2el"):
        assert f"p99_{name}_ms" in summary


def test_simulate_of_a_trace(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"simulate --model llama-3.1-8b --cluster 1xH100-SXM --trace {trace} --tp 1 --json"
    summary = document(line, capsys)
    assert (summary["completed"], summary["total_output_tokens"]) == (6, 45)


def test_search_of_a_trace(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"search --model llama-3.1-70b --cluster 8xH100-SXM --trace {trace} --jobs 1 --json"
    outcome = document(line, capsys)
    assert outcome["best"]["rank"] == 1  # type: ignore[index]
    assert str(outcome["command"]).startswith("vllm serve ")


def test_search_for_goodput(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        f"search --model llama-3.1-70b --cluster 8xH100-SXM --trace {trace} --objective goodput "
        "--slo ttft=1s --slo tpot=50ms --tp 8 --max-num-batched-tokens 8192 --jobs 1 --json"
    )
    outcome = document(line, capsys)
    assert outcome["objective"] == "goodput"


def test_search_of_a_file_with_flags_over_it(capsys: pytest.CaptureFixture[str]) -> None:
    line = f"search {ROOT}/experiments/plan_search.yaml --max-requests 20 --jobs 1"
    narrow = " --tp 8 --pp 1 --weight-format fp8 --max-num-batched-tokens 2048,8192 --json"
    plans = document(line + narrow, capsys)["plans"]
    assert {(plan["plan"]["tp"], plan["plan"]["weight_format"]) for plan in plans} == {(8, "fp8")}  # type: ignore[attr-defined]


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    line = (
        "explain --model llama-3.1-70b --cluster 8xH100-SXM --tp 8 --prefill 2048 "
        "--decode 64@1024 --json"
    )
    explained = document(line, capsys)
    ops = explained["ops"]
    assert isinstance(ops, list)
    assert sum(op["time_s"] for op in ops) == pytest.approx(explained["total_s"])
    assert explained["num_tokens"] == 2048 + 64


def test_explain_repeats_chunks_and_reads_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    line = f"explain {ROOT}/experiments/quickstart.yaml --prefill 512 --prefill 256@1024 --json"
    chunks = [
        {"tokens": 512, "context_tokens": 0},
        {"tokens": 256, "context_tokens": 1024},
    ]
    assert document(line, capsys)["prefill"] == chunks


def test_models_and_hardware(capsys: pytest.CaptureFixture[str]) -> None:
    models = json.loads(headway("models --json", capsys))
    assert [model["name"] for model in models] == model_names()
    llama = next(model for model in models if model["name"] == "llama-3.1-8b")
    assert (llama["params"], llama["kv_bytes_per_token"]) == (8_030_261_248, 131_072)
    hardware = json.loads(headway("hardware --json", capsys))
    assert [gpu["name"] for gpu in hardware] == gpu_names()


def test_schema_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert document("schema", capsys)["title"] == "Headway experiment"


@pytest.mark.parametrize(
    "line",
    [
        SMALL,
        "models",
        "hardware",
        "explain --model llama-3.1-8b --cluster 1xL4 --decode 8@512",
        "explain --model mixtral-8x7b --cluster 8xH100-SXM --pp 2 --tp 4 --prefill 900",
    ],
    ids=lambda line: " ".join(line.split()[:3]),
)
def test_tables_fit_100_columns(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = headway(line, capsys).splitlines()
    assert len(lines) > 5
    assert max(map(len, lines)) <= 100


def test_flags_are_keys_of_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "same.yaml"
    path.write_text(
        "{model: llama-3.1-8b, cluster: 2xH100-SXM, plan: {dp: 2}, seed: 3, kv_format: fp8,\n"
        "engine: {max_num_seqs: 8, prefix_caching: false, block_tokens: 32},\n"
        "router: least_loaded, slo: {ttft: 1 s}, coalesce: false,\n"
        "workload: {kind: synthetic, num_prompts: 20, request_rate: 5.0, max_concurrency: 6}}\n"
    )
    line = (
        "simulate --model llama-3.1-8b --cluster 2xH100-SXM --dp 2 --seed 3 --kv-format fp8 "
        "--max-num-seqs 8 --no-prefix-caching --set engine.block_tokens=32 --router least_loaded "
        "--slo ttft=1s --no-coalesce --num-prompts 20 --request-rate 5 --max-concurrency 6 --json"
    )
    assert document(f"simulate {path} --json", capsys) == document(line, capsys)


def test_flags_win_over_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    line = f"simulate {ROOT}/experiments/quickstart.yaml --max-requests 7 --cluster 2xL4 --tp 2"
    summary = document(line + " --json", capsys)
    assert (summary["completed"], summary["num_gpus"]) == (7, 2)


def test_a_trace_takes_a_concurrency_limit(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"simulate --model llama-3.1-8b --cluster 1xL4 --trace {trace} --max-concurrency 1"
    assert document(line + " --json", capsys)["max_running"] == 1


def test_a_horizon_cuts_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    summary = document(f"{SMALL} --horizon 500ms --json", capsys)
    assert (summary["completed"], summary["unfinished"]) == (3, 3)


def test_outputs_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    headway(f"{SMALL} --save-result r.json --save-detailed --requests-out q.csv", capsys)
    saved = json.loads(Path("r.json").read_text())
    assert (saved["completed"], len(saved["ttfts"]), saved["request_rate"]) == (6, 6, 4.0)
    assert len(list(csv.DictReader(Path("q.csv").read_text().splitlines()))) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.csv", "r.json"]


def test_no_feasible_plan_is_still_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    line = "search --model llama-3.1-405b --cluster 1xH100-SXM --num-prompts 2 --jobs 1 --json"
    assert run(line.split()) == 3
    out, err = capsys.readouterr()
    outcome = json.loads(out)
    assert outcome["best"] is None
    assert all(plan["reason"] for plan in outcome["plans"])
    assert re.fullmatch(r"error: no feasible plan among \d+ .*\n", err)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example_that_parses(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    text = " ".join(headway(f"{command} --help", capsys).split())
    assert f"Example: headway {command}" in text


def test_no_command_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    text = headway("", capsys)
    assert all(command in text for command in COMMANDS)


def test_flags_of_a_command_are_distinct() -> None:
    for table in (flags.SIMULATE, flags.SEARCH, flags.COMPARE, flags.EXPLAIN):
        names = [flag.parameter for flag in table]
        assert len(names) == len(set(names))


def test_a_bug_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> int:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.delenv(cli.DEBUG, raising=False)
    assert cli.exit_code(broken) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: bug in Headway: ZeroDivisionError: two lines")
    assert err.count("\n") == 1


def test_help_is_quick() -> None:
    environment = os.environ | {"COLUMNS": "80"}
    spent = []
    for _ in range(3):
        before = os.times()
        subprocess.run([*HEADWAY, "--help"], check=True, cwd=ROOT, env=environment, stdout=-3)
        after = os.times()
        spent.append(
            after.children_user
            + after.children_system
            - before.children_user
            - before.children_system
        )
    assert min(spent) < 0.5


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from simulator.cli import run; run(['--help']);"
        "heavy = {'numpy', 'pandas', 'pydantic', 'yaml', 'simpy', 'matplotlib', 'scipy'};"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_a_closed_pipe_is_silent() -> None:
    pipe = subprocess.Popen(
        [*HEADWAY, "models", "--json"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert pipe.stdout is not None
    assert pipe.stderr is not None
    pipe.stdout.close()
    assert pipe.stderr.read() == b""
    pipe.stderr.close()
    assert pipe.wait() == cli.BROKEN_PIPE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*HEADWAY, "models", "--json"], cwd=ROOT, stdout=full, stderr=-1, text=True
        )
    assert done.returncode == 2
    assert done.stderr == "error: stdout: No space left on device\n"


def test_ctrl_c_is_one_line_and_exit_code_130(tmp_path: Path) -> None:
    line = "simulate --model llama-3.1-8b --cluster 1xL4 --num-prompts 300000 --request-rate 2"
    out = tmp_path / "result.json"
    running = subprocess.Popen(
        [*HEADWAY, *line.split(), "--no-coalesce", "--save-result", str(out), "--json"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell that runs the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(2.0)
    running.send_signal(signal.SIGINT)
    stdout, stderr = running.communicate(timeout=30)
    assert (running.returncode, stdout, stderr) == (130, "", "error: interrupted\n")
    assert not out.exists()
