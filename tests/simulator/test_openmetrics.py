"""vLLM's metrics over simulated time: read by Prometheus' own parser, and true of the run."""

from __future__ import annotations

import shutil
import subprocess
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from simulator import engine
from simulator.cli import run
from simulator.errors import ConfigError
from simulator.itl import token_log, token_times
from simulator.latency import request_times
from simulator.openmetrics import LINES, save_metrics
from simulator.openmetrics.names import COUNTERS, GAUGES, HISTOGRAMS, SUCCESS, TOKEN_HISTOGRAMS
from simulator.recorder import Result
from simulator.request import RequestTable
from tests.simulator.toys import toy_setup, toy_table

STEP_S = 0.4
Points = dict[str, list[tuple[float, float]]]  # (seconds, value) by rank, or by rank and end


def crowded(**changes: Any) -> Result:
    """Two pipelined replicas with few pages: queues, preemptions."""
    options: dict[str, Any] = {"num_pages": 60, "num_lanes": 2, "num_replicas": 2} | changes
    return engine.run(toy_setup(toy_table(5, 80, rate=160), **options))


def written(folder: Path, result: Result, interval_s: float | None = STEP_S) -> str:
    path = folder / "run.prom"
    save_metrics(path, result, "toy", interval_s)
    return path.read_text()


def parsed(text: str) -> dict[str, dict[str, Points]]:
    """Metric, sample name, and its points; the parser refuses what the format forbids.

    Moment by moment: of several in one text, this parser takes all but the first sample of a
    histogram's later moments for doubles and drops them (0.26), where promtool keeps them.
    """
    lines = text.splitlines()
    heads: dict[str, list[str]] = defaultdict(list)
    moments: dict[str, list[str]] = {}
    name = ""
    for line in lines[:-1]:
        if line.startswith("#"):
            name = line.split()[2]
            heads[name].append(line)
        else:
            moment = moments.setdefault(line.split()[-1], [])
            if heads[name][0] not in moment:
                moment += heads[name]
            moment.append(line)
    check_order(lines)
    found: dict[str, dict[str, Points]] = {}
    for moment in moments.values():
        for family in text_string_to_metric_families("\n".join([*moment, "# EOF\n"])):
            samples = found.setdefault(family.name, defaultdict(lambda: defaultdict(list)))
            for sample in family.samples:
                assert sample.labels["model_name"] == "toy"
                assert sample.timestamp is not None
                where = sample.labels["engine"]
                where += f" {sample.labels['le']}" if "le" in sample.labels else ""
                suffix = sample.name.removeprefix(family.name)
                samples[suffix][where].append((float(sample.timestamp), float(sample.value)))
    return found


def check_order(lines: list[str]) -> None:
    """A family is in one place, a rank of it too, and there in the order of time."""
    seen: list[tuple[str, str]] = []
    before = -1.0
    family = ""
    for line in lines[:-1]:
        if line.startswith("# TYPE"):
            family = line.split()[2]
        if line.startswith("#"):
            continue
        place, time_s = (family, line.split('engine="')[1].split('"')[0]), float(line.split()[-1])
        if [place] != seen[-1:]:
            assert place not in seen
            seen.append(place)
            before = -1.0
        assert before <= time_s
        before = time_s
    assert "# EOF" == lines[-1]


def last(points: Points) -> float:
    """The sum over ranks at the end."""
    return sum(values[-1][1] for values in points.values())


def test_names_are_those_of_the_live_server(tmp_path: Path) -> None:
    found = parsed(written(tmp_path, crowded()))
    names = {*GAUGES, *COUNTERS, SUCCESS[0], *HISTOGRAMS, *TOKEN_HISTOGRAMS}
    assert {f"vllm:{name}" for name in names} == set(found)
    assert written(tmp_path, crowded()).endswith("\n# EOF\n")
    for samples in found.values():
        for points in samples.values():
            assert {"0", "1"} == {where.split()[0] for where in points}


@pytest.mark.parametrize("lanes", [1, 2])
def test_totals_at_the_end_are_those_of_the_run(lanes: int, tmp_path: Path) -> None:
    result = crowded(num_lanes=lanes)
    assert result.completed.all()
    assert result.preemptions.any()
    found = parsed(written(tmp_path, result))
    totals = {
        "num_preemptions": result.preemptions.sum(),
        "prompt_tokens": result.table.prompt_tokens.sum(),
        "generation_tokens": result.table.output_tokens.sum(),
        "prefix_cache_queries": result.table.prompt_tokens.sum(),
        "prefix_cache_hits": result.cached_tokens.sum(),
        "request_success": 80,
    }
    assert totals == {name: last(found[f"vllm:{name}"]["_total"]) for name in totals}
    log = token_log(result)
    times = request_times(result, log)
    gaps = [np.diff(ns) for ns in token_times(log, 80)]
    sums_s = {
        "time_to_first_token_seconds": times.ttft_s,
        "inter_token_latency_seconds": np.concatenate(gaps) / 1e9,
        "request_time_per_output_token_seconds": times.tpot_s[~np.isnan(times.tpot_s)],
        "e2e_request_latency_seconds": times.e2e_s,
        "request_queue_time_seconds": times.queueing_s,
        "request_prefill_time_seconds": times.prefill_s,
        "request_generation_tokens": result.table.output_tokens,
    }
    for name, values in sums_s.items():
        samples = found[f"vllm:{name}"]
        assert len(values) == last(samples["_count"])
        assert last(samples["_sum"]) == pytest.approx(float(values.sum())), name
        for end in (0.01, 0.1, 0.5, 100):
            inside = {k: v for k, v in samples["_bucket"].items() if float(k.split()[1]) == end}
            if inside:
                assert int((values <= end).sum()) == last(inside), (name, end)


def test_counters_never_fall_and_gauges_are_what_was_so(tmp_path: Path) -> None:
    result = crowded()
    found = parsed(written(tmp_path, result))
    for name, samples in found.items():
        for suffix, points in samples.items():
            for values in points.values():
                times = [time for time, _ in values]
                assert [STEP_S * i for i in range(len(times) - 1)] == pytest.approx(times[:-1])
                assert times[-1] == pytest.approx(result.end_ns / 1e9)
                if suffix:  # of a counter or a histogram
                    assert (np.diff([value for _, value in values]) >= 0).all(), name
    memory = [value for _, value in found["vllm:kv_cache_usage_perc"][""]["0"]]
    assert 0.8 < max(memory) <= 1
    for rank in (0, 1):
        mine = result.target == rank
        running = found["vllm:num_requests_running"][""][str(rank)]
        waiting = found["vllm:num_requests_waiting"][""][str(rank)]
        for (time_s, num_running), (_, num_waiting) in zip(running, waiting, strict=True):
            now = round(time_s * 1e9)
            present = mine & (result.sent_ns <= now) & (now < result.finish_ns)
            assert int(present.sum()) == num_running + num_waiting, time_s
        assert 0 == running[-1][1] == waiting[-1][1]
    busy = max(value for _, value in found["vllm:num_requests_waiting"][""]["0"])
    assert busy > 1


def test_stepped_and_coalesced_runs_have_the_same_metrics(tmp_path: Path) -> None:
    setup = toy_setup(toy_table(7, 60, rate=80), num_pages=200)
    texts = [
        written(tmp_path, engine.run(replace(setup, coalesce=coalesce)))
        for coalesce in (True, False)
    ]
    kept = [[x for x in text.splitlines() if "kv_cache_usage" not in x] for text in texts]
    assert kept[0] == kept[1]  # memory inside a coalesced segment is interpolated
    assert texts[0] == written(tmp_path, engine.run(setup))


def test_a_run_that_was_cut_and_a_request_that_never_fits(tmp_path: Path) -> None:
    table = RequestTable(
        arrival_ns=np.array([0, 0, 1000]),
        prompt_tokens=np.array([100, 5000, 200]),
        output_tokens=np.array([400, 10, 400]),
    )
    result = engine.run(toy_setup(table, num_pages=100, horizon_ns=50_000_000))
    found = parsed(written(tmp_path, result, 0.01))
    assert 300 == last(found["vllm:prompt_tokens"]["_total"])
    assert 0 == last(found["vllm:request_success"]["_total"])
    assert 2 == last(found["vllm:time_to_first_token_seconds"]["_count"])
    assert 0 < last(found["vllm:generation_tokens"]["_total"]) < 20
    assert 2 == last(found["vllm:num_requests_running"][""])


def test_size_is_bounded_and_too_much_is_refused(tmp_path: Path) -> None:
    result = crowded()
    late = result.end_ns + 10 * 86_400 * 10**9
    long = replace(result, end_ns=late)
    text = written(tmp_path, long, None)
    assert 0.5 * LINES < text.count("\n") < 1.1 * LINES
    check_order(text.splitlines())
    with pytest.raises(ConfigError, match=r"--metrics-interval: expected at least .* \(got 1 s\)"):
        written(tmp_path, long, 1.0)


def test_a_real_run_from_the_command_line(tmp_path: Path) -> None:
    words = "simulate experiments/quickstart.yaml --max-requests 100"
    path = tmp_path / "run.prom"
    assert 0 == run([*words.split(), "--metrics-out", str(path), "--metrics-interval", "5s"])
    lines = path.read_text().splitlines()
    total = [x for x in lines if x.startswith("vllm:request_success_total")]
    assert 'finished_reason="length"} 100 ' in total[-1]
    assert ["0.000000000", "5.000000000"] == [x.split()[-1] for x in total[:2]]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool on this machine")
def test_promtool_fills_a_database_with_every_sample(tmp_path: Path) -> None:
    text = written(tmp_path, crowded())
    tool = ["promtool", "tsdb", "create-blocks-from", "openmetrics"]
    command = [*tool, str(tmp_path / "run.prom"), str(tmp_path / "blocks")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    columns = done.stdout.splitlines()[1].split()
    samples = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(samples) == int(columns[4])
    assert len({line.rsplit(" ", 2)[0] for line in samples}) == int(columns[6])


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--metrics-interval 1s", "expected --metrics-out FILE with it"),
        ("--metrics-out m.prom --metrics-interval 0s", "expected at least 1 us"),
        ("--metrics-out m.prom --metrics-interval soon", "--metrics-interval"),
        ("--metrics-out m.json", "expected a file name ending in .prom or .txt or .om"),
    ],
)
def test_what_cannot_be_written_is_refused(
    words: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 2 == run(["simulate", "experiments/quickstart.yaml", *words.split()])
    assert expected in capsys.readouterr().err
    assert not Path("m.prom").exists()
