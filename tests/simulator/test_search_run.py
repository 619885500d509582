from __future__ import annotations

import json
import math
import os
import signal
import threading
from typing import Any

import pytest

from simulator.errors import InvariantViolation
from simulator.search import PlanRecord, run_search
from simulator.search import trial as trial_module
from simulator.search.outcome import BUG, CRASHED, INFEASIBLE, NOT_RUN, PRUNED, SIMULATED
from simulator.spec import Slo
from tests.simulator.search_support import small_search, small_table
from tests.simulator.toys import toy_table


def test_the_best_plan_has_the_least_mean_e2e_of_all() -> None:
    outcome = run_search(small_search("llama-3.1-70b", prune=False))
    assert outcome.best is not None
    ranked = [r for r in outcome.records if r.rank is not None]
    values = [record.metrics["mean_e2el_ms"] for record in ranked]
    assert values == sorted(values)
    assert [record.rank for record in ranked] == list(range(1, len(ranked) + 1))
    assert outcome.best is ranked[0]
    assert outcome.heuristic is not None
    times = outcome.heuristic.metrics["mean_e2el_ms"] / outcome.best.metrics["mean_e2el_ms"]
    assert outcome.speedup_over_heuristic == times
    assert all(record.why for record in ranked[1:])
    assert outcome.best.why == ""


@pytest.mark.parametrize(
    ("objective", "statistic", "metric"),
    [
        ("ttft", "p99", "p99_ttft_ms"),
        ("tpot", "p50", "median_tpot_ms"),
        ("e2e", "p90", "p90_e2el_ms"),
    ],
)
def test_other_statistics_rank_by_their_own_metric(
    objective: str, statistic: str, metric: str
) -> None:
    spec = small_search(
        objective=objective, objective_statistic=statistic, scheduler_variants=False
    )
    outcome = run_search(spec)
    ranked = [r for r in outcome.records if r.rank is not None]
    values = [record.metrics[metric] for record in ranked]
    assert outcome.metric == metric
    assert values == sorted(values)


@pytest.mark.parametrize(
    "changes",
    [
        {"objective": "e2e"},
        {"objective": "ttft"},
        {"objective": "tpot", "objective_statistic": "p90"},
        {"objective": "e2e", "workload": toy_table(5, 80, rate=200.0, most_output=40)},
        {"objective": "cost"},
        {"objective": "energy"},
        {"objective": "cost", "slo": Slo(tpot_s=0.006, attainment=0.9)},
        {"objective": "goodput", "slo": Slo(ttft_s=0.06, tpot_s=0.012, attainment=0.9)},
    ],
)
def test_pruning_never_changes_the_winner(changes: dict[str, Any]) -> None:
    fields = {"workload": small_table(25), "tp": (1, 2, 4), "variants_within": math.inf}
    fields |= changes
    whole = run_search(small_search(prune=False, **fields))
    pruned = run_search(small_search(prune=True, **fields))
    assert whole.best is not None
    assert pruned.best is not None
    assert pruned.best.label == whole.best.label
    metrics = [{**outcome.best.metrics, "probes": []} for outcome in (pruned, whole)]
    assert metrics[0] == metrics[1]
    simulated = {r.label: r.metrics for r in whole.records if r.status == SIMULATED}
    for record in pruned.records:
        if record.status == PRUNED:
            assert record.label in simulated
            assert record.reason


def test_pruning_saves_simulations() -> None:
    outcome = run_search(small_search("llama-3.1-70b", "8xH100-SXM", prune=True))
    assert outcome.counts()["pruned"] > 10


def test_by_default_only_variants_of_plans_are_pruned() -> None:
    outcome = run_search(small_search("llama-3.1-70b", "8xH100-SXM"))
    for record in outcome.records:
        if not record.candidate.is_variant:
            assert record.status in (SIMULATED, INFEASIBLE)
    assert outcome.counts()["pruned"] > 0


def test_variants_are_tried_only_of_plans_near_the_best() -> None:
    outcome = run_search(small_search("deepseek-v2-lite", variants_within=1.2))
    plain = {
        str(record.candidate.plan): record.metrics["mean_e2el_ms"]
        for record in outcome.records
        if not record.candidate.is_variant and record.status == SIMULATED
    }
    far = [record for record in outcome.records if "settings hardly help" in record.reason]
    assert far
    assert outcome.best is not None
    for record in far:
        assert record.candidate.is_variant
        assert plain[str(record.candidate.plan)] > 1.2 * outcome.best.metrics["mean_e2el_ms"]


def test_equal_searches_have_equal_json_whatever_the_number_of_jobs() -> None:
    table = small_table(20)
    found = [
        run_search(small_search(workload=table, jobs=jobs, prune=prune)).to_json()
        for prune in (None, True)
        for jobs in (1, 2, 1)
    ]
    for outcome in found:
        assert outcome.pop("wall_s") > 0
    texts = [json.dumps(outcome, allow_nan=False) for outcome in found]
    assert texts[0] == texts[1] == texts[2]
    assert texts[3] == texts[4] == texts[5]


def test_no_feasible_plan_is_an_answer_with_reasons() -> None:
    outcome = run_search(small_search("llama-3.1-405b", "1xL4"))
    assert outcome.best is None
    assert outcome.heuristic is None
    assert outcome.speedup_over_heuristic is None
    assert {record.status for record in outcome.records} == {INFEASIBLE}
    assert all(record.reason for record in outcome.records)
    json.dumps(outcome.to_json(), allow_nan=False)


def test_progress_counts_every_plan_once() -> None:
    calls: list[tuple[int, int, PlanRecord | None]] = []
    outcome = run_search(
        small_search(), progress=lambda done, total, best: calls.append((done, total, best))
    )
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)
    assert calls[-1][0] == calls[-1][1] == len(outcome.records)
    assert calls[-1][2] is outcome.best


def crash_on(plan: str, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trial_module.simulate

    def simulate(experiment: Any) -> Any:
        if str(experiment.plan) == plan:
            raise error
        return real(experiment)

    monkeypatch.setattr(trial_module, "simulate", simulate)


def test_a_crashing_plan_is_recorded_and_the_search_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    crash_on("tp4", ZeroDivisionError("no"), monkeypatch)
    outcome = run_search(small_search(scheduler_variants=False))
    records = {record.label: record for record in outcome.records}
    assert records["tp4"].status == CRASHED
    assert records["tp4"].reason == "ZeroDivisionError: no"
    assert outcome.best is not None
    assert outcome.heuristic is records["tp4"]
    assert outcome.speedup_over_heuristic is None


def test_a_broken_invariant_is_reported_as_our_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    crash_on("tp2-dp2", InvariantViolation("1 != 2"), monkeypatch)
    outcome = run_search(small_search(scheduler_variants=False))
    (bug,) = outcome.bugs
    assert bug.status == BUG
    assert bug.reason == "bug in the simulator: 1 != 2"


def test_a_plan_that_kills_its_process_does_not_take_others_with_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = trial_module.simulate

    def simulate(experiment: Any) -> Any:
        if str(experiment.plan) == "tp2-pp2":
            os.kill(os.getpid(), signal.SIGKILL)
        return real(experiment)

    monkeypatch.setattr(trial_module, "simulate", simulate)
    monkeypatch.setattr("simulator.search.runner.threading.active_count", lambda: 1)
    outcome = run_search(small_search(scheduler_variants=False, jobs=2))
    statuses = {record.label: record.status for record in outcome.records}
    assert statuses.pop("tp2-pp2") == CRASHED
    assert set(statuses.values()) == {SIMULATED}


def test_workers_start_beside_other_threads() -> None:
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    try:
        beside = run_search(small_search(scheduler_variants=False, jobs=2))
    finally:
        ended.set()
        thread.join()
    alone = run_search(small_search(scheduler_variants=False))
    assert {**beside.to_json(), "wall_s": 0} == {**alone.to_json(), "wall_s": 0}


def test_ctrl_c_keeps_what_is_finished() -> None:
    def stop(done: int, total: int, best: PlanRecord | None) -> None:
        if best is not None:
            raise KeyboardInterrupt

    outcome = run_search(small_search(scheduler_variants=False), progress=stop)
    assert outcome.interrupted
    assert outcome.best is not None
    assert outcome.counts()["simulated"] == 1
    assert outcome.counts()["not_run"] == len(outcome.records) - 1
    assert NOT_RUN in {record.status for record in outcome.records}
