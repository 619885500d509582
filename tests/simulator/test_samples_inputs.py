"""Requests with several answers as a user asks for them: refusals, traces, flags and files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from simulator.allocators import Buddy, Paged
from simulator.clashes import refuse_samples
from simulator.cli import app
from simulator.engine import run
from simulator.errors import ConfigError
from simulator.fragmentation import fragmentation
from simulator.recorder import COMPLETED, UNFINISHED
from simulator.request import Beams
from simulator.routers.llumnix import Llumnix
from simulator.schedulers import Rpm, VllmV0
from simulator.setup import Setup
from simulator.workloads import Table, sampled, transform
from tests.simulator.draws import draw
from tests.simulator.outcomes import BOOKED, every_combination
from tests.simulator.test_samples import one_request, used_blocks
from tests.simulator.toys import toy_setup, toy_table
from tests.simulator.watch import Audited, difference, is_cut, run_audited, token_ns


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"table": {"beams": Beams()}}, ("beam_width", "VllmV1", "vllm_v0")),
        ({"scheduler": Rpm()}, ("workload.n", "Rpm")),
        ({"scheduler": VllmV0(), "allocator": Buddy()}, ("workload.n", "Buddy", "paged")),
        ({"router": Llumnix()}, ("workload.n", "Llumnix")),
        ({"scheduler": VllmV0(), "window_pages": ((64, 1),)}, ("Paged", "windows: kept")),
    ],
)
def test_what_cannot_serve_several_answers_is_refused(
    changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    columns = changes.pop("table", {})
    setup = toy_setup(one_request(30, 5, 2, **columns), **changes)
    with pytest.raises(ConfigError) as error:
        run(setup)
    assert all(word in str(error.value) for word in words), error.value


def refusal(setup: Setup) -> str:
    """Why the set-up is refused; "" where it is not."""
    try:
        refuse_samples(setup)
    except ConfigError as error:
        return str(error)
    return ""


@every_combination
def test_answers_go_with_every_policy_that_does_not_refuse_them(
    policies: tuple[str, str, str],
) -> None:
    """Under all of the registries: runs coalesced and stepped alike, pages and tokens conserved."""
    setup = draw(*policies, 100).setup
    counts = np.random.default_rng(1).integers(1, 4, len(setup.table))
    setup = replace(setup, table=replace(setup.table, num_samples=counts))
    why = refusal(setup)
    if why:
        assert "workload.n" in why
        assert {"rpm", "llumnix", "vllm_v0"} & set(policies)
        return
    result = run(setup)
    audits: list[Audited] = []
    stepped = run_audited(replace(setup, coalesce=False), audits)
    assert difference(result, stepped, but=BOOKED) == ""
    assert result.samples is not None
    given_tokens = np.array([len(each) for each in token_ns(result.samples)])
    done = result.samples.status == COMPLETED
    assert np.array_equal(given_tokens[done], result.samples.table.output_tokens[done])
    if not is_cut(setup):
        assert [audit.taken for audit in audits] == [0] * len(audits)
        assert not (result.status == UNFINISHED).any()


def test_windows_that_are_kept_can_be_shared() -> None:
    setup = toy_setup(
        one_request(100, 50, 4),
        scheduler=VllmV0(),
        window_pages=((64, 2),),
        allocator=Paged(windows="kept"),
        coalesce=False,
    )
    assert used_blocks(run(setup))[:3] == [21, 30, 30]  # three pages a block


def test_lengths_of_answers_are_equal_or_drawn_from_the_workload() -> None:
    table = toy_table(1, 500)
    equal, drawn = sampled(table, 0, n=3), sampled(table, 0, n=3, lengths="drawn")
    assert np.array_equal(equal.answer_tokens, 3 * table.output_tokens)
    assert drawn.sample_tokens is not None
    each = drawn.sample_tokens.reshape(500, 3)
    assert np.array_equal(each[:, 0], table.output_tokens)
    assert np.array_equal(drawn.output_tokens, each.max(axis=1))
    assert abs(each[:, 1:].mean() / table.output_tokens.mean() - 1) < 0.05
    assert abs(np.corrcoef(each[:, 0], each[:, 1])[0, 1]) < 0.15
    again = sampled(table, 0, n=3, lengths="drawn")
    assert np.array_equal(drawn.sample_tokens, again.sample_tokens)


def test_a_beam_keeps_its_past_with_the_probability_asked_for() -> None:
    for persistence in (0.0, 0.5, 1.0):
        parents = np.array(Beams(persistence=persistence, seed=1).parents(3, 5000, 4))
        stays = (parents == np.arange(4)).mean()
        assert abs(stays - (persistence + (1 - persistence) / 4)) < 0.02
    again = Beams(persistence=1.0, seed=1).parents(3, 5000, 4)
    assert again == parents.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, "n must be an int >= 1"),
        ({"n": 2, "beam_width": 2}, "beam_width goes without n"),
        ({"beam_persistence": 0.5}, "needs a beam_width"),
        ({"beam_width": 2, "beam_persistence": 1.5}, "in \\[0, 1\\]"),
        ({"n": 2, "lengths": "long"}, "equal or drawn"),
    ],
)
def test_answers_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sampled(toy_table(1, 5), 0, **options)


def test_a_trace_states_the_answers_of_each_request(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,input_tokens,output_tokens,n\n0,40,8,3\n1,40,8,1\n2,50,9,2\n")
    table = Table(file=trace).requests(0)
    assert table.num_samples is not None
    assert table.num_samples.tolist() == [3, 1, 2]
    assert transform(table, start_s=1.0).answer_tokens.tolist() == [8, 18]
    trace.write_text("arrival_s,input_tokens,output_tokens,n\n0,40,8,0\n")
    with pytest.raises(ConfigError, match="csv:2: n must"):
        Table(file=trace).requests(0)


BASE = ("simulate", "--model", "llama-3.1-8b", "--cluster", "1xL40S", "--num-prompts", "20",
        "--input-len", "100", "--output-len", "20", "--request-rate", "20")  # fmt: skip


def summary_of(*flags: str) -> dict[str, Any]:
    outcome = CliRunner().invoke(app, [*BASE, *flags, "--json"])
    assert outcome.exit_code == 0, outcome.stderr
    found: dict[str, Any] = json.loads(outcome.stdout)
    return found


def test_answers_are_counted_at_the_command_line() -> None:
    one, many = summary_of(), summary_of("--n", "4")
    assert (many["completed"], many["completed_answers"]) == (20, 80)
    assert many["total_output_tokens"] == 4 * one["total_output_tokens"] == 1600
    assert many["total_input_tokens"] == one["total_input_tokens"]
    assert "completed_answers" not in one
    assert summary_of("--n", "1") == one
    v0 = ("--scheduler", "vllm_v0")
    forked, beams = summary_of(*v0, "--n", "4"), summary_of(*v0, "--beam-width", "4")
    assert 0.4 < forked["kv_saved_by_sharing"] < beams["kv_saved_by_sharing"] < 0.75
    refused = CliRunner().invoke(app, [*BASE, "--beam-width", "4"])
    assert refused.exit_code == 2
    assert "vllm_v0" in refused.stderr


def test_files_of_a_run_with_several_answers(tmp_path: Path) -> None:
    """A row a request in tables; a life each answer in the timeline."""
    names = ("requests.csv", "result.json", "timeline.json")
    flags = ("--requests-out", "--save-result", "--timeline")
    paths = [tmp_path / name for name in names]
    pairs = [str(x) for pair in zip(flags, paths, strict=True) for x in pair]
    summary_of("--n", "3", "--save-detailed", *pairs)
    requests = pd.read_csv(paths[0])
    assert (requests["n"] == 3).all()
    assert (requests["output_tokens"] == 60).all()
    result = json.loads(paths[1].read_text())
    assert [len(gaps) for gaps in result["itls"]] == [3 * 19] * 20
    lives = [event for event in json.loads(paths[2].read_text())["traceEvents"]
             if event["ph"] == "b" and "answer" in event["name"]]  # fmt: skip
    assert len(lives) == 60
    assert lives[4]["name"] == "request 01 answer 1"


def test_fragmentation_says_that_it_counts_single_answers() -> None:
    result = run(toy_setup(one_request(100, 50, 4), scheduler=VllmV0()))
    with pytest.raises(ConfigError, match=r"workload\.n"):
        fragmentation(result, np.array([0]))


def test_a_server_leaves_the_number_of_answers_to_its_clients(tmp_path: Path) -> None:
    file = tmp_path / "served.yaml"
    file.write_text(
        "model: llama-3.1-8b\ncluster: 1xL40S\nplan: {tp: 1}\n"
        "workload: {kind: synthetic, num_prompts: 2, input_len: 9, output_len: 9, n: 2}\n"
    )
    refused = CliRunner().invoke(app, ["serve", str(file), "--port", "0"])
    assert refused.exit_code == 2
    assert "workload.n" in refused.stderr
