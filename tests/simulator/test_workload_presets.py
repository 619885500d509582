"""Presets follow the statistics they name: WL-1, mean within 5 %, quantiles and CVs within 10 %."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.cli import run
from simulator.config import read_document, resolve_experiment
from simulator.errors import ConfigError
from simulator.request import RequestTable
from simulator.workloads import find_preset, presets

QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"
PLENTY: dict[str, dict[str, Any]] = {  # enough to see the statistics
    "synthetic": {"num_prompts": 40_000},
    "clients": {"duration_s": "12000 s"},
    "sessions": {"num_sessions": 40_000},
}
PHASES = ("drift", "ramp")  # their clients come and go, so a longer run is another workload
NAMES = sorted(presets())


def table_of(name: str, seed: int = 0, **keys: Any) -> RequestTable:
    document = read_document(QUICKSTART).override("workload", {"preset": name, **keys}, "")
    return resolve_experiment(document.override("seed", seed, "")).workload


def plenty(name: str) -> RequestTable:
    """A preset's requests, many of them."""
    if name in PHASES:
        tables = [table_of(name, seed) for seed in range(10)]
        return replace(
            tables[0],
            prompt_tokens=np.concatenate([t.prompt_tokens for t in tables]),
            output_tokens=np.concatenate([t.output_tokens for t in tables]),
            arrival_ns=np.concatenate([t.arrival_ns + i * 10**12 for i, t in enumerate(tables)]),
            client=None,
        )
    return table_of(name, **PLENTY[find_preset(name).workload["kind"]])


def check(tokens: Any, row: dict[str, float]) -> None:
    assert tokens.mean() == pytest.approx(row["mean"], rel=0.05)
    for key, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99)):
        if key in row:
            assert np.quantile(tokens, share) == pytest.approx(row[key], rel=0.1), key


@pytest.mark.parametrize("name", NAMES)
def test_lengths_follow_the_row(name: str) -> None:
    row, table = find_preset(name).row, plenty(name)
    check(table.output_tokens, row["output"])
    if "input" in row:
        check(table.prompt_tokens, row["input"])
        return
    assert table.parent is not None
    first = table.parent < 0
    check(table.prompt_tokens[first], row["first_prompt"])
    before = table.prompt_tokens[table.parent] + table.output_tokens[table.parent]
    check((table.prompt_tokens - before)[~first], row["turn_input"])
    assert len(first) == row["turns"] * first.sum()


@pytest.mark.parametrize("name", [name for name in NAMES if "rate" in presets()[name].row])
def test_rates_clients_and_burstiness_follow_the_row(name: str) -> None:
    row = find_preset(name).row
    tables = [table_of(name, seed) for seed in range(8)]
    seconds = 120 if name in PHASES else 600
    rates = [len(t) / (seconds if "clients" in row else t.duration_s) for t in tables]
    assert np.mean(rates) == pytest.approx(row["rate"], rel=0.05)
    if "clients" in row:
        seen = np.concatenate([t.client for t in tables if t.client is not None])
        assert set(seen.tolist()) == set(range(row["clients"]))
    if "gap_cv" in row:
        gaps = np.diff(plenty(name).arrival_ns)
        assert gaps.std() / gaps.mean() == pytest.approx(row["gap_cv"], rel=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_a_seed_gives_the_same_requests(name: str) -> None:
    one, two, other = table_of(name, 3), table_of(name, 3), table_of(name, 4)
    for column in ("arrival_ns", "prompt_tokens", "output_tokens"):
        assert np.array_equal(getattr(one, column), getattr(two, column))
    assert not np.array_equal(one.output_tokens, other.output_tokens) or "on_off" == name


def test_arena_has_few_heavy_tenants_and_keeps_the_rate_of_each() -> None:
    table = plenty("arena_clients")
    counts = np.sort(np.bincount(table.client))[::-1]  # type: ignore[arg-type]
    published = np.array([296, 262, 199, 120, 67, 66, 56]) / 1500
    assert counts[:7] / counts.sum() == pytest.approx(published, rel=0.1)


def test_on_off_is_silent_every_other_minute() -> None:
    table = table_of("on_off")
    minute = table.arrival_ns // 60_000_000_000
    second = table.client == 1
    assert set(minute[second] % 2) == {0}
    assert set(minute[~second] % 2) == {0, 1}


def test_drift_and_ramp_change_when_they_say() -> None:
    table = table_of("drift")
    late = table.arrival_ns >= 60_000_000_000
    assert table.prompt_tokens[~late].mean() == pytest.approx(517, rel=0.05)
    assert table.prompt_tokens[~late].std() < 100 < table.prompt_tokens[late].std()
    phases = np.bincount(table_of("ramp").arrival_ns // 40_000_000_000)
    assert phases / 40 == pytest.approx([1, 16, 48], rel=0.4)


def test_keys_of_its_kind_are_laid_over_a_preset() -> None:
    table = table_of("lmsys_chat", num_prompts=70, request_rate="2 /s", max_concurrency=5)
    assert (len(table), table.max_concurrency) == (70, 5)
    assert table.arrival_ns[-1] == 35_000_000_000
    half = table_of("lmsys_chat", num_prompts=70, rate_scale=0.5)
    assert half.duration_s == pytest.approx(2 * table_of("lmsys_chat", num_prompts=70).duration_s)
    assert np.array_equal(half.prompt_tokens, table.prompt_tokens)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"preset": "lmsys_chatt"}, "lmsys_chat"),
        ({"preset": "lmsys_chat", "kind": "sessions"}, "the preset 'lmsys_chat' has the kind"),
        ({"preset": "lmsys_chat", "num_promts": 3}, "num_prompts"),
        ({"preset": 3}, "name of a preset"),
    ],
)
def test_unusable_presets_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_experiment(read_document(QUICKSTART).override("workload", keys, ""))


def test_the_command_line_takes_and_lists_them(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["simulate", str(QUICKSTART), "--trace", "mt_bench", "--max-requests", "20"]
    assert run([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["completed"] == 20
    assert run(["workloads", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in listed["presets"]] == list(presets())
    assert "chat-1k" in listed["files"]
    assert run(["workloads"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES)
    assert max(len(line) for line in out.splitlines()) <= 100
