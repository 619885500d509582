"""The timeline file: the rules of the Trace Event format, and that it tells what the run did."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator import engine
from simulator.cli import run
from simulator.itl import token_log
from simulator.latency import request_times
from simulator.recorder import REJECTED, Result
from simulator.request import RequestTable
from simulator.timeline import REQUESTS, default_window_ns, end_of, events, save_timeline
from tests.simulator.toys import toy_setup, toy_table

NEEDED = {
    "X": {"name", "cat", "pid", "tid", "ts", "dur", "args"},
    "b": {"name", "cat", "pid", "tid", "ts", "id2"},
    "e": {"name", "cat", "pid", "tid", "ts", "id2"},
    "C": {"name", "pid", "tid", "ts", "args"},
    "M": {"name", "pid", "tid", "args"},
    "i": {"name", "cat", "pid", "tid", "ts", "s", "args"},
}


def crowded(num_requests: int = 80, **changes: Any) -> Result:
    """Two pipelined replicas with few pages: queues, preemptions."""
    options: dict[str, Any] = {"num_pages": 60, "num_lanes": 2, "num_replicas": 2} | changes
    table = toy_table(5, num_requests, rate=160)
    return engine.run(toy_setup(table, **options))


def read(path: Path) -> list[dict[str, Any]]:
    document = json.loads(path.read_text())
    assert {"displayTimeUnit", "traceEvents", "otherData"} == set(document)
    found: list[dict[str, Any]] = document["traceEvents"]
    return found


def check_format(found: list[dict[str, Any]]) -> None:
    """Every event has the fields of its type; async spans nest; a thread does one thing a time."""
    open_spans: dict[tuple[object, ...], list[tuple[str, float]]] = defaultdict(list)
    threads: dict[tuple[int, int], float] = {}
    for event in found:
        kind = event["ph"]
        assert NEEDED[kind] <= set(event)
        assert isinstance(event["pid"], int)
        assert isinstance(event["tid"], int)
        assert kind == "M" or event["ts"] >= 0
        if kind == "X":
            place = (event["pid"], event["tid"])
            assert event["dur"] > 0
            assert event["ts"] >= threads.get(place, 0) - 1e-3
            threads[place] = event["ts"] + event["dur"]
        elif kind == "b":
            open_spans[event["cat"], event["id2"]["local"], event["pid"]].append(
                (event["name"], event["ts"])
            )
        elif kind == "e":
            name, begun = open_spans[event["cat"], event["id2"]["local"], event["pid"]].pop()
            assert name == event["name"]
            assert event["ts"] >= begun
        elif kind == "C":
            assert all(isinstance(value, int) for value in event["args"].values())
    assert not any(open_spans.values())


def spans_ms(found: list[dict[str, Any]], name: str) -> dict[int, float]:
    """Time of each request in a phase, ms."""
    total: dict[int, float] = defaultdict(float)
    for event in found:
        if event["name"] == name and event["ph"] in "be":
            total[event["id2"]["local"]] += event["ts"] / 1e3 * (1 if event["ph"] == "e" else -1)
    return total


def test_a_crowded_pipeline_is_told_as_it_was(tmp_path: Path) -> None:
    result = crowded()
    assert result.preemptions.any()
    save_timeline(tmp_path / "trace.json", result)
    found = read(tmp_path / "trace.json")
    check_format(found)
    iterations = [event for event in found if event["ph"] == "X"]
    assert sum(len(lane.end_ns) for lane in result.lanes) == len(iterations)
    assert len({(lane.replica, lane.rank, lane.lane) for lane in result.lanes}) == len(
        {(event["pid"], event["tid"]) for event in iterations}
    )
    for column, key in (("prefill_tokens", "prefill_tokens"), ("num_decode", "decode_seqs")):
        total = sum(
            int(np.dot(lane.segments["iterations"], lane.segments[column])) for lane in result.lanes
        )
        assert total == sum(event["args"][key] for event in iterations)
    # Spans with an id of their process, one for each replica, apart from its lanes and counters.
    pids = {event["pid"] for event in found if event["ph"] == "b"}
    assert {REQUESTS + 1, REQUESTS + 2} == pids
    names = {e["args"]["name"] for e in found if e["name"] == "process_name" and e["pid"] in pids}
    assert {"replica 0 requests", "replica 1 requests"} == names
    times = request_times(result, token_log(result))
    phases = {
        "queued": times.queueing_s,
        "prefill": times.prefill_s,
        "decode": times.decode_s,
        "preempted": times.preempted_s,
    }
    for name, expected_s in phases.items():
        found_ms = spans_ms(found, name)
        measured = [found_ms.get(number, 0.0) for number in range(len(result.table))]
        assert measured == pytest.approx(expected_s * 1e3, abs=2e-3), name


def test_counters_start_and_end_empty() -> None:
    result = crowded()
    last: dict[tuple[int, str], int] = {}
    most: Counter[str] = Counter()
    for event in events(result, (0, end_of(result))):
        if event["ph"] == "C":
            (value,) = event["args"].values()
            last[event["pid"], event["name"]] = value
            most[event["name"]] = max(most[event["name"]], value)
    for (_, name), value in last.items():
        assert name.startswith("KV blocks") or value == 0
    assert most["running"] > 1
    assert most["waiting"] > 1
    assert 60 >= most["KV blocks, rank 0"] > 50


def test_a_window_keeps_what_overlaps_it() -> None:
    result = crowded()
    end_ns = end_of(result)
    window = (end_ns // 3, end_ns // 2)
    found = list(events(result, window))
    check_format(found)
    whole = list(events(result, (0, end_ns)))
    kept = [
        e
        for e in whole
        if e["ph"] == "X"
        and e["ts"] * 1e3 < window[1] - 0.5
        and (e["ts"] + e["dur"]) * 1e3 > window[0] + 0.5
    ]
    assert kept == [event for event in found if event["ph"] == "X"]
    assert 0 < len(kept) < sum(event["ph"] == "X" for event in whole)
    assert {event["id2"]["local"] for event in found if event["ph"] == "b"} == {
        number
        for number in range(len(result.table))
        if result.sent_ns[number] < window[1] and result.finish_ns[number] > window[0]
    }


def test_requests_that_never_fit_and_a_cut_run() -> None:
    table = RequestTable(
        arrival_ns=np.array([0, 0, 1000]),
        prompt_tokens=np.array([100, 5000, 200]),
        output_tokens=np.array([400, 10, 400]),
    )
    result = engine.run(toy_setup(table, num_pages=100, horizon_ns=50_000_000))
    assert result.status[1] == REJECTED
    found = list(events(result, (0, end_of(result))))
    check_format(found)
    assert [1] == [event["args"]["request"] for event in found if event["ph"] == "i"]
    assert end_of(result) / 1e6 == pytest.approx(
        max(event["ts"] for event in found if event["ph"] == "e") / 1e3
    )


def test_the_default_window_bounds_ten_thousand_requests(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "trace.json"
    words = "--model llama-3.1-8b --cluster 1xH100-SXM --num-prompts 10000 --input-len 200"
    words += f" --output-len 120 --request-rate 20 --timeline {file}"
    assert 0 == run(["simulate", *words.split()])
    assert "the run takes" in capsys.readouterr().out
    assert 20e6 < file.stat().st_size < 50e6
    check_format(read(file))
    assert default_window_ns(crowded()) == (0, end_of(crowded()))


@pytest.mark.parametrize("text", ["10s", "5s:2s", "a:b", "3:4", ":0s"])
def test_a_window_that_is_none_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["experiments/quickstart.yaml", "--timeline", "x.json", "--timeline-window", text]
    assert 2 == run(["simulate", *words])
    assert "--timeline-window" in capsys.readouterr().err
    assert not Path("x.json").exists()


def test_a_window_alone_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert 2 == run(["simulate", "experiments/quickstart.yaml", "--timeline-window", "1s:2s"])
    assert "expected --timeline FILE" in capsys.readouterr().err
