from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from simulator.search import run_search
from simulator.search.capacity import MAX_PROBES, TOLERANCE, at_the_given_rate, highest_rate
from simulator.spec import Slo
from tests.simulator.search_support import small_search, small_table

SLO = Slo(ttft_s=1.0, attainment=0.9)


def drive(
    attainment: Callable[[float], float], offered: float = 10.0, beat_scale: float = 0.0
) -> dict[str, Any]:
    """Answer the probes of a bisection from a formula of the rate."""
    probe = highest_rate(SLO, offered, 4, beat_scale)
    scale = next(probe)
    while True:
        try:
            share = attainment(scale * offered)
            scale = probe.send({"slo_attainment": share, "scale": scale})
        except StopIteration as stop:
            return dict(stop.value)


@pytest.mark.parametrize("capacity", [0.013, 0.9, 9.99, 10.0, 10.4, 37.0, 5_000.0])
def test_bisection_finds_the_knee_within_its_tolerance(capacity: float) -> None:
    found = drive(lambda rate: 1.0 if rate <= capacity else 0.5)
    assert capacity / (1 + TOLERANCE) <= found["goodput_rate_per_s"] <= capacity
    assert found["goodput_rate_per_s_per_gpu"] == found["goodput_rate_per_s"] / 4
    assert found["rate_is_bracketed"] is True
    assert len(found["probes"]) <= 16


def test_bisection_of_a_smooth_fall_stops_at_the_attainment() -> None:
    found = drive(lambda rate: math.exp(-rate / 100))
    knee = -100 * math.log(0.9)
    assert knee / (1 + TOLERANCE) <= found["goodput_rate_per_s"] <= knee


def test_metrics_are_those_of_the_rate_found() -> None:
    found = drive(lambda rate: 1.0 if rate <= 33 else 0.0)
    assert found["scale"] * 10.0 == pytest.approx(found["goodput_rate_per_s"], rel=1e-12)
    assert found["slo_attainment"] == 1.0


def test_a_plan_that_never_holds_has_rate_zero_in_few_probes() -> None:
    found = drive(lambda _: 0.0)
    assert found["goodput_rate_per_s"] == 0.0
    assert found["rate_is_bracketed"] is True
    assert len(found["probes"]) < 10


def test_a_plan_that_always_holds_says_it_found_no_limit() -> None:
    found = drive(lambda _: 1.0)
    assert found["goodput_rate_per_s"] > 1e6
    assert found["rate_is_bracketed"] is False
    assert len(found["probes"]) < MAX_PROBES


def test_a_plan_that_must_beat_another_stops_at_its_first_miss() -> None:
    probe = highest_rate(SLO, 10.0, 1, beat_scale=3.0)
    assert next(probe) == 3.0
    with pytest.raises(StopIteration) as stop:
        probe.send({"slo_attainment": 0.5})
    assert stop.value.value["goodput_rate_per_s"] is None


@pytest.mark.parametrize("capacity", [13.0, 13.1, 40.0, 700.0])
def test_a_plan_that_beats_another_gets_the_rate_it_gets_alone(capacity: float) -> None:
    def attainment(rate: float) -> float:
        return 1.0 if rate <= capacity else 0.5

    other = drive(lambda rate: 1.0 if rate <= 13.0 else 0.5)
    beaten = drive(attainment, beat_scale=other["goodput_rate_scale"])
    alone = drive(attainment)
    assert beaten["goodput_rate_per_s"] == alone["goodput_rate_per_s"]
    assert beaten["scale"] == alone["scale"]
    assert len(beaten["probes"]) <= len(alone["probes"])


def test_an_undefined_attainment_is_a_miss() -> None:
    probe = highest_rate(SLO, 10.0, 1)
    next(probe)
    assert probe.send({"slo_attainment": None}) < 1.0


def test_other_objectives_simulate_once_at_the_given_rate() -> None:
    probe = at_the_given_rate()
    assert next(probe) == 1.0
    with pytest.raises(StopIteration) as stop:
        probe.send({"mean_ttft_ms": 3.0})
    assert stop.value.value == {"mean_ttft_ms": 3.0}


def test_goodput_is_the_highest_rate_that_holds_the_slos() -> None:
    spec = small_search(
        "llama-3.1-8b",
        "1xL4",
        workload=small_table(60),
        objective="goodput",
        slo=Slo(ttft_s=1.0, tpot_s=0.15, attainment=0.9),
        scheduler_variants=False,
    )
    outcome = run_search(spec)
    assert outcome.best is not None
    metrics = outcome.best.metrics
    probes = dict(metrics["probes"])
    rate = metrics["goodput_rate_per_s"]
    assert probes[rate] >= 0.9
    above = [share for probed, share in probes.items() if probed > rate]
    assert above
    assert max(above) < 0.9
    assert metrics["slo_attainment"] == probes[rate]


def test_the_fewest_gpus_that_hold_the_slos_win() -> None:
    table = small_table(60, rate=30.0)
    spec = small_search(
        workload=table, objective="gpus", slo=Slo(ttft_s=0.5, tpot_s=0.02, attainment=0.95)
    )
    pruned = run_search(spec)
    assert pruned.best is not None
    least = pruned.best.candidate.plan.num_gpus
    everything = run_search(
        small_search(workload=table, objective="gpus", slo=spec.slo, prune=False)
    )
    holds = [r for r in everything.records if (r.metrics.get("slo_attainment") or 0) >= 0.95]
    assert least == min(r.candidate.plan.num_gpus for r in holds)
    assert everything.best is not None
    assert everything.best.label == pruned.best.label


@pytest.mark.parametrize(
    ("objective", "metric"),
    [("cost", "usd_per_million_output_tokens"), ("energy", "energy_j_per_output_token")],
)
def test_cost_and_energy_are_least_among_plans_that_hold_the_slos(
    objective: str, metric: str
) -> None:
    spec = small_search(
        workload=small_table(60, rate=30.0),
        objective=objective,
        slo=Slo(tpot_s=0.008, attainment=0.9),
        prune=False,
        scheduler_variants=False,
    )
    outcome = run_search(spec)
    assert outcome.best is not None
    holds = [r for r in outcome.records if (r.metrics.get("slo_attainment") or 0) >= 0.9]
    assert 0 < len(holds) < outcome.counts()["simulated"]
    assert outcome.best.metrics[metric] == min(r.metrics[metric] for r in holds)


def test_no_plan_that_holds_the_slos_is_no_answer() -> None:
    spec = small_search(objective="gpus", slo=Slo(tpot_s=1e-5), scheduler_variants=False)
    outcome = run_search(spec)
    assert outcome.best is None
    assert outcome.command == ""
    assert outcome.to_json()["best"] is None
    ranked = [record for record in outcome.records if record.rank is not None]
    assert ranked
    assert all("SLO" in record.why for record in ranked)
