"""Comparisons: common random numbers, exact nothings, honest pairings."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.commands.overrides import varied
from simulator.comparison import Comparison, compare
from simulator.comparison.metrics import METRICS
from simulator.comparison.outcome import (
    INFEASIBLE,
    PAIRED_REQUESTS,
    PAIRED_SEEDS,
    UNPAIRED_REQUESTS,
    VALUES_ONLY,
    WELCH,
)
from simulator.comparison.replicates import fingerprint, seeded
from simulator.config import Document
from simulator.engine import simulate
from simulator.errors import InfeasiblePlan
from simulator.metrics import summarise
from simulator.report.figures_comparison import forest_figure
from simulator.request import RequestTable
from tests.simulator.compare_support import POLICIES, drawn


def trace(folder: Path, num: int = 400, name: str = "trace.csv", every_s: float = 0.12) -> Document:
    rng = np.random.default_rng(0)
    rows = zip(rng.integers(50, 2000, num), rng.integers(5, 80, num), strict=True)
    lines = "".join(f"{every_s * i},{a},{b}\n" for i, (a, b) in enumerate(rows))
    (folder / name).write_text(f"arrival_s,input_tokens,output_tokens\n{lines}")
    return drawn(workload={"file": str(folder / name)})


def under(text: str, document: Document) -> Document:
    return varied(document, text)[1]


def of(found: Comparison, name: str) -> Any:
    return next(arm for arm in found.arms if arm.name == name)


@pytest.fixture(scope="module")
def policies() -> Comparison:
    arms = {"V1": drawn()} | {name: under(text, drawn()) for name, text in POLICIES.items()}
    return compare(arms, num_seeds=4, jobs=1)


def test_an_experiment_against_itself_differs_by_exactly_nothing() -> None:
    found = compare({"A": drawn(), "again": drawn()}, num_seeds=3, jobs=1)
    again = of(found, "again")
    assert again.pairing == PAIRED_SEEDS
    assert set(again.differences) == {metric.key for metric in METRICS}
    for difference in again.differences.values():
        interval = difference.interval
        assert (difference.change, interval.low, interval.high) == (0, 0, 0)
        assert difference.verdict == "same"
    assert again.each == found.baseline.each


def test_under_one_seed_every_policy_meets_the_same_requests() -> None:
    documents = [drawn(), *(under(text, drawn()) for text in POLICIES.values())]
    for seed in (4, 5):
        tables = [seeded(document, seed).workload for document in documents]
        for table in tables[1:]:
            assert np.array_equal(table.arrival_ns, tables[0].arrival_ns)
            assert np.array_equal(table.prompt_tokens, tables[0].prompt_tokens)
            assert np.array_equal(table.output_tokens, tables[0].output_tokens)
    other = seeded(documents[0], 6).workload
    assert not np.array_equal(other.arrival_ns, tables[0].arrival_ns)
    assert not np.array_equal(other.prompt_tokens, tables[0].prompt_tokens)


def test_every_column_of_requests_is_in_their_fingerprint() -> None:
    table = seeded(drawn(), 0).workload
    known = fingerprint(table)
    ignored = {"max_concurrency", "name", "notes"}
    for name in {field.name for field in fields(RequestTable)} - ignored:
        columns = {each.name: getattr(table, each.name) for each in fields(RequestTable)}
        before = columns[name]
        columns[name] = np.ones(len(table), np.int64) if before is None else before + 1
        changed = fingerprint(RequestTable(**columns))
        assert 1 == sum(changed[part] != known[part] for part in known), name


def test_values_and_intervals_are_those_of_single_runs(policies: Comparison) -> None:
    runs = []
    for name, text in (("V1", "name=V1"), ("vllm_v0", POLICIES["vllm_v0"])):
        experiments = [seeded(under(text, drawn()), seed) for seed in (4, 5, 6, 7)]
        summaries = [summarise(each, simulate(each)) for each in experiments]
        runs.append(np.array([summary["mean_tpot_ms"] for summary in summaries], dtype=float))
        assert of(policies, name).each["mean_tpot_ms"] == runs[-1].tolist()
    assert (4, 5, 6, 7) == policies.seeds
    difference = of(policies, "vllm_v0").differences["mean_tpot_ms"]
    ratio = runs[1].mean() / runs[0].mean()
    assert difference.change == pytest.approx(100 * (ratio - 1))
    # Three comparisons hold together: t(3) at 1 - 0.05 / 6 is 4.8567.
    reach = 4.8567 * (runs[1] - ratio * runs[0]).std(ddof=1) / 2 / runs[0].mean()
    assert difference.interval.high == pytest.approx(100 * (ratio - 1 + reach), rel=1e-4)
    met = [np.array(of(policies, name).each["slo_attainment"]) for name in ("V1", "small chunks")]
    gaps = 100 * (met[1] - met[0])
    points = of(policies, "small chunks").differences["slo_attainment"]
    assert (points.unit, points.change) == ("pt", pytest.approx(gaps.mean()))
    reach = 4.8567 * gaps.std(ddof=1) / 2
    assert points.interval.low == pytest.approx(gaps.mean() - reach, rel=1e-4)


def test_verdicts_follow_what_is_known_of_the_policies(policies: Comparison) -> None:
    assert 3 == policies.num_compared
    static = of(policies, "static").differences
    assert {"worse"} == {static[key].verdict for key in ("mean_ttft_ms", "mean_e2el_ms")}
    assert "worse" == static["usd_per_million_output_tokens"].verdict
    chunks = of(policies, "small chunks").differences
    assert "worse" == chunks["mean_ttft_ms"].verdict
    assert chunks["p99_tpot_ms"].change < 0
    assert 1 < np.median(policies.narrowing())


def test_other_requests_are_compared_unpaired_and_say_so() -> None:
    shorter = under("workload.output_len=20", drawn())
    found = of(compare({"A": drawn(), "B": shorter}, num_seeds=3, jobs=1), "B")
    assert found.pairing == WELCH
    assert "(output lengths differ): compared unpaired (Welch's t)" in found.reason
    assert np.isnan(found.differences["mean_e2el_ms"].interval.unpaired_width)
    assert found.differences["mean_e2el_ms"].verdict == "better"


def test_a_trace_is_run_once_and_paired_by_request(tmp_path: Path) -> None:
    base = trace(tmp_path)
    seen: list[int] = []
    found = compare(
        {"A": base, "A again": base, "V0": under("scheduler=vllm_v0", base)},
        jobs=1,
        progress=lambda done, total, _: seen.append(total),
    )
    assert [3, 3, 3] == seen
    assert 1 == len(found.seeds)
    again, v0 = of(found, "A again"), of(found, "V0")
    assert (again.pairing, v0.pairing) == (PAIRED_REQUESTS, PAIRED_REQUESTS)
    assert {"same"} == {difference.verdict for difference in again.differences.values()}
    assert v0.differences["output_throughput"].interval is None
    tpot = v0.differences["mean_tpot_ms"].interval
    assert tpot.low < v0.differences["mean_tpot_ms"].change < tpot.high
    assert tpot.times_narrower > 1
    assert tpot.block_requests >= 1


def test_one_seed_pairs_requests_and_another_trace_is_drawn_apart(tmp_path: Path) -> None:
    one = compare({"A": drawn(), "B": under("scheduler=vllm_v0", drawn())}, num_seeds=1, jobs=1)
    assert of(one, "B").pairing == PAIRED_REQUESTS
    assert "its intervals may be too narrow" in of(one, "B").notes[0]  # 60 requests
    faster = trace(tmp_path, name="faster.csv", every_s=0.1)
    apart = of(compare({"A": trace(tmp_path), "B": faster}, jobs=1), "B")
    assert apart.pairing == UNPAIRED_REQUESTS
    assert "(arrivals differ)" in apart.reason
    fixed = of(compare({"A": drawn(), "B": faster}, num_seeds=2, jobs=1), "B")
    assert fixed.pairing == VALUES_ONLY
    assert fixed.differences["mean_ttft_ms"].interval is None


def test_what_cannot_run_is_shown_and_the_next_is_the_baseline() -> None:
    large = drawn(model="llama-3.1-405b")
    split = drawn(plan__tp=2)
    arms = {"405b": large, "A": drawn(), "tp2": split, "B": under("scheduler=vllm_v0", drawn())}
    found = compare(arms, num_seeds=2, jobs=1)
    assert "A" == found.baseline.name
    assert [INFEASIBLE, INFEASIBLE] == [of(found, name).kind for name in ("405b", "tp2")]
    assert "weights 812 GB per GPU exceed" in of(found, "405b").reason
    assert ["B"] == [arm.name for arm in found.others]
    assert 1 == found.num_compared
    with pytest.raises(InfeasiblePlan, match="nothing to compare: 1 of 3 can run"):
        compare({"405b": large, "A": drawn(), "tp2": split}, num_seeds=2, jobs=1)


def test_requests_that_do_not_complete_and_other_targets_are_noted() -> None:
    short = drawn(engine={"max_model_len": 1500}, slo={"ttft": "1 s"})
    notes = of(compare({"A": drawn(), "B": short}, num_seeds=2, jobs=1), "B").notes
    assert re.match(r"\d+ of 120 requests did not complete: latencies are of the others", notes[0])
    assert "its SLOs are not the baseline's" == notes[1]


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_keeps_the_seeds_that_all_finished(jobs: int) -> None:
    def stop(done: int, total: int, note: str) -> None:
        if done == 7:
            raise KeyboardInterrupt

    arms = {"A": drawn(), "B": under("scheduler=vllm_v0", drawn())}
    found = compare(arms, num_seeds=50, jobs=jobs, progress=stop)
    assert found.interrupted
    assert (4, 5, 6) == found.seeds
    whole = compare(arms, num_seeds=6, jobs=1)
    for seed, value in zip(found.seeds, of(found, "B").each["mean_ttft_ms"], strict=True):
        assert value == of(whole, "B").each["mean_ttft_ms"][seed - 4]

    def stop_early(done: int, total: int, note: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(arms, num_seeds=50, jobs=jobs, progress=stop_early)


def test_the_figure_shows_every_interval_and_which_leave_out_zero(policies: Comparison) -> None:
    (axes,) = forest_figure(policies).axes
    rows = [text.get_text() for text in axes.get_yticklabels()]
    assert "TTFT mean" == rows[0]
    assert "SLO met, pt" in rows
    assert "preemptions" not in rows  # of which there are none
    assert ["vllm_v0", "small chunks", "static"] == [
        text.get_text() for text in axes.get_legend().get_texts()
    ]
    marks = [line for line in axes.lines if 1 == len(line.get_xdata())]
    assert 3 * len(rows) == len(marks)
    filled = [line for line in marks if "white" != line.get_markerfacecolor()]
    shown = {m.key for m in policies.metrics} - {"preemptions"}
    clear = [
        arm.differences[key].interval.excludes_zero for arm in policies.others for key in shown
    ]
    assert 0 < sum(clear) == len(filled) < len(marks)
    left, right = axes.get_xlim()
    assert all(left < x < right for line in marks for x in line.get_xdata())
    (nothing,) = forest_figure(compare({"A": drawn(), "B": drawn()}, num_seeds=2, jobs=1)).axes
    assert ["no difference"] == [text.get_text() for text in nothing.texts]
