"""`headway compare`: its table, JSON, figure, flags and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from simulator.cli import run
from simulator.commands.overrides import varied
from simulator.comparison import read_measured
from simulator.comparison.metrics import METRICS
from simulator.comparison.outcome import (
    MEASURED,
    VALUES_ONLY,
)
from tests.simulator.compare_support import DRAWN, POLICIES, drawn


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("chat.yaml").write_text(DRAWN)
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    assert code == run(["compare", *arguments])
    out, err = capsys.readouterr()
    assert "" == err
    return str(out)


VARY = [word for name, text in POLICIES.items() for word in ("--vary", f"{name}: {text}")]


def test_the_table_fits_100_columns_and_says_how(
    chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "scheduler=sarathi; scheduler.token_budget=128; engine.max_num_seqs=64"
    out = printed(capsys, "chat.yaml", *VARY, "--vary", long, "--seeds", "2", "--jobs", "1")
    assert max(map(len, out.splitlines())) <= 100
    assert "4 others against chat (the baseline)" in out
    assert "2 seeds (4 to 5), which draw arrivals, prompt lengths, output lengths." in out
    assert "hold together for 4 experiments (Bonferroni)" in " ".join(out.split())
    assert re.search(r"Pairing made intervals \S+ times narrower than unpaired", out)
    for name in ("vllm_v0", "small chunks", "static", "better", "worse", "unclear"):
        assert name in out
    one = printed(capsys, "chat.yaml", "chat.yaml", "--seeds", "2", "--jobs", "1")
    assert max(map(len, one.splitlines())) <= 100
    assert re.search(r"TTFT mean +\S+ ms +\S+ ms +0 % +0 … 0 +same", one)


def test_json_has_stable_keys_and_does_not_depend_on_jobs(
    chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("chat.yaml", *VARY[:4], "--vary", "plan.tp=2", "--seeds", "2", "--json")
    out = printed(capsys, *arguments, "--jobs", "1")
    assert out == printed(capsys, *arguments, "--jobs", "2")
    found = json.loads(out)
    top = "level adjusted_over_arms seeds drawn interrupted baseline median_times_narrower units"
    assert [*top.split(), "better", "arms"] == list(found)
    assert ["chat", "vllm_v0", "small chunks", "plan.tp=2"] == [a["name"] for a in found["arms"]]
    assert ["simulated"] * 3 + ["infeasible"] == [arm["kind"] for arm in found["arms"]]
    assert ["name", "kind", "reason", "pairing", "notes", "metrics"] == list(found["arms"][1])
    metrics = found["arms"][1]["metrics"]
    assert [metric.key for metric in METRICS] == list(metrics)
    keys = "value replicates change change_unit low high significant verdict"
    for arm in found["arms"]:
        for entry in arm["metrics"].values():
            assert [*keys.split(), "times_narrower"] == list(entry)
    assert 2 == len(metrics["mean_ttft_ms"]["replicates"])
    assert found["arms"][0]["metrics"]["mean_ttft_ms"]["change"] is None


def test_a_measured_result_stands_beside_the_simulation(
    chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 0 == run(["simulate", "chat.yaml", "--save-result", "server.json"])
    capsys.readouterr()
    value = json.loads(Path("server.json").read_text())["mean_ttft_ms"]
    assert read_measured("server.json").metrics["mean_ttft_ms"] == pytest.approx(value, rel=1e-12)
    out = printed(capsys, "chat.yaml", "server.json", "--seeds", "2", "--jobs", "1", "--json")
    chart = json.loads(out)["arms"][1]
    assert (MEASURED, VALUES_ONLY) == (chart["kind"], chart["pairing"])
    entry = chart["metrics"]["mean_ttft_ms"]
    assert (pytest.approx(value, rel=1e-12), None) == (entry["value"], entry["low"])
    assert entry["change"] != 0
    text = printed(capsys, "server.json", "chat.yaml", "--seeds", "1", "--jobs", "1")
    assert "chat against server (the baseline)" in text
    assert "a measured run has requests of its own: values only" in text
    twice = {"completed": 9, "mean_ttft_ms": 2 * value, "p99_ttft_ms": None}
    Path("other.json").write_text(json.dumps(twice))
    text = printed(capsys, "server.json", "other.json")
    assert re.search(r"TTFT mean .*\+100 %", text)
    assert re.search(r"TPOT mean +\S+ ms +– +– +–", text)


def test_the_figure_is_drawn_whole_and_the_same_again(
    chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    drawings = []
    for name in ("one.png", "two.png"):
        printed(capsys, "chat.yaml", *VARY, "--seeds", "2", "--jobs", "1", "--figure", name)
        drawings.append(Path(name).read_bytes())
    assert drawings[0].startswith(b"\x89PNG")
    assert drawings[0] == drawings[1]
    assert {"one.png", "two.png", "chat.yaml"} == {path.name for path in chat.iterdir()}


def test_a_variation_may_have_a_name_and_several_keys() -> None:
    name, document = varied(drawn(), "small: scheduler=sarathi; scheduler.token_budget=64")
    assert ("small", {"kind": "sarathi", "token_budget": 64}) == (name, document.data["scheduler"])
    assert "--vary scheduler.token_budget" == document.where("scheduler.token_budget")
    name, document = varied(drawn(), "scheduler=my_module:Mine")  # the colon is of the value
    assert ("scheduler=my_module:Mine", "my_module:Mine") == (
        name,
        document.data["scheduler"]["kind"],
    )
    assert "scheduler" not in drawn().data


def test_flags_apply_to_every_experiment_and_need_no_file(
    chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--num-prompts", "5", "--seed", "9", "--seeds", "2", "--jobs", "1", "--json"]
    found = json.loads(printed(capsys, "chat.yaml", "--vary", "scheduler=vllm_v0", *flags))
    assert [9, 10] == found["seeds"]
    bare = ["--model", "llama-3.1-8b", "--cluster", "1xH100-SXM", "--tp", "1"]
    more = json.loads(
        printed(capsys, *bare, "--vary", "a: scheduler.chunked_prefill=false", *flags)
    )
    assert ["baseline", "a"] == [arm["name"] for arm in more["arms"]]
    assert "paired by request" == more["arms"][1]["pairing"]  # all at once, of one length


BAD = {
    "none": ([], "expected two or more experiments, or one and --vary"),
    "one": (["chat.yaml"], r"expected two or more experiments.* \(got chat.yaml\)"),
    "no file": (["chat.yaml", "no.yaml"], "no.yaml: cannot read the file"),
    "key": (["chat.yaml", "--vary", "schedular=x"], "did you mean 'scheduler'"),
    "kind": (["chat.yaml", "--vary", "scheduler=sarati"], "did you mean 'sarathi'"),
    "policy key": (
        ["chat.yaml", "--vary", "scheduler=sarathi; scheduler.tokn_budget=4"],
        "--vary scheduler.tokn_budget: unknown key 'tokn_budget'; did you mean 'token_budget'",
    ),
    "no value": (["chat.yaml", "--vary", "scheduler"], "--vary: expected KEY=VALUE"),
    "seed": (["chat.yaml", "--vary", "seed=3"], "--vary seed: expected another key"),
    "clash": (["chat.yaml", "--vary", "scheduler=static"], "scheduler=static: .* clash"),
    "seeds": (["chat.yaml", "chat.yaml", "--seeds", "0"], "--seeds: expected an int from 1"),
    "many": (["chat.yaml", "chat.yaml", "--seeds", "999999"], r"to 10,000 \(got 999999\)"),
    "jobs": (["chat.yaml", "chat.yaml", "--jobs", "x"], "--jobs: expected an int from 1"),
    "figure": (["chat.yaml", "chat.yaml", "--figure", "a.gif"], "ending in .png"),
    "stated seed": (["chat.yaml", "chat.yaml", "--seed", "x"], "--seed: expected an int"),
    "no JSON": (["chat.yaml", "broken.json"], "broken.json: not valid JSON"),
    "other JSON": (["chat.yaml", "other.json"], "other.json: expected a result of"),
    "vary JSON": (["good.json", "--vary", "plan.tp=2"], "--vary: expected an experiment first"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    name: str, chat: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("broken.json").write_text('{"a": ')
    Path("other.json").write_text("[1]")
    Path("good.json").write_text('{"duration": 1, "completed": 1, "mean_ttft_ms": 3}')
    before = sorted(chat.iterdir())
    arguments, says = BAD[name]
    assert 2 == run(["compare", *arguments])
    out, err = capsys.readouterr()
    assert ("", 1) == (out, err.count("\n"))
    assert re.search(says, err), err
    assert before == sorted(chat.iterdir())


def test_nothing_to_compare_is_exit_code_3(chat: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert 3 == run(["compare", "chat.yaml", "--vary", "plan.tp=2"])
    out, err = capsys.readouterr()
    assert "" == out
    assert err.startswith("error: nothing to compare: 1 of 2 can run (plan.tp=2: ")
