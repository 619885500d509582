"""Intervals on a prediction: the same requests again under draws of the errors of kernel prices.

Everything but prices stays: workload, seeds, arrivals, memory. Draw k errs alike in every plan, so
plans are compared under equal luck. Simulations run in worker processes as those of a search do;
results depend on the seed and the draws alone, not on how many workers there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from simulator.costs.error import price_error
from simulator.costs.fitted import tables_of
from simulator.errors import InvariantViolation
from simulator.experiment import Experiment
from simulator.search.candidates import Candidate
from simulator.search.capacity import Probe, at_the_given_rate, highest_rate
from simulator.search.objective import GOODPUT, Metrics, metric_name
from simulator.search.outcome import SIMULATED, PlanRecord, SearchOutcome
from simulator.search.rank import is_answer, ranked
from simulator.search.runner import Runner
from simulator.search.spec import SearchSpec
from simulator.search.store import Store
from simulator.spec import ClusterSpec, EngineSettings, PriceDraw

LEVEL = 0.8  # share of the draws inside an interval
MOST_PLANS = 5  # best plans of a search that are drawn again
STATISTICS = ("mean", "median", "p90", "p99")
LATENCIES = ("ttft", "tpot", "itl", "e2el")
RATES = (
    *("request_throughput", "output_throughput", "total_token_throughput"),
    *("request_goodput", "slo_attainment", "usd_per_million_output_tokens"),
)
KEYS = (*(f"{name}_{what}_ms" for what in LATENCIES for name in STATISTICS), *RATES)

Progress = Callable[[int, int], None]  # simulations done, all simulations


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """One metric over the draws."""

    point: float  # prices as they are
    median: float
    low: float  # ends of the interval
    high: float

    def to_json(self) -> dict[str, float]:
        return {"point": self.point, "median": self.median, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunUncertainty:
    """How far the metrics of one plan may be off."""

    num_draws: int
    metrics: Mapping[str, Spread]  # those defined in every draw

    def to_json(self) -> dict[str, Any]:
        spreads = {key: spread.to_json() for key, spread in self.metrics.items()}
        return {"draws": self.num_draws, "interval": LEVEL, "metrics": spreads}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanUncertainty:
    """One plan of a search under the draws."""

    record: PlanRecord
    spread: Spread | None  # of the objective; None where some draw leaves it undefined
    best_in: int  # draws


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchUncertainty:
    """How often the best plan stays the best."""

    num_draws: int
    metric: str
    plans: tuple[PlanUncertainty, ...]  # in the order of the ranking
    none_in: int  # draws in which no plan serves the workload and holds what it must

    def to_json(self) -> dict[str, Any]:
        return {
            "draws": self.num_draws,
            "interval": LEVEL,
            "metric": self.metric,
            "none_in": self.none_in,
            "plans": [
                {
                    "rank": plan.record.rank,
                    "label": plan.record.label,
                    "best_in": plan.best_in,
                    "objective": plan.spread.to_json() if plan.spread else None,
                }
                for plan in self.plans
            ],
        }


def check_errors(cluster: ClusterSpec, calibration: str) -> None:
    """See that errors are known of every curve that prices a cluster, before anything is run.

    Raises:
        ConfigError: a calibration folder without errors, or with those of other curves.
    """
    for group in cluster.groups:
        settings = EngineSettings(
            max_num_batched_tokens=1,
            max_num_seqs=1,
            calibration=calibration,
            draw=PriceDraw(seed=0, number=0),
        )
        tables, error = tables_of(group.gpu, settings), price_error(group.gpu, settings)
        if tables is not None and error is not None and error.tables is not None:
            for op, label in tables.curves:
                error.tables.profile(op, label)


def run_uncertainty(
    experiment: Experiment,
    summary: Metrics,
    num_draws: int,
    *,
    jobs: int = 0,
    progress: Progress | None = None,
) -> RunUncertainty:
    """Simulate an experiment under so many draws; `summary` holds its metrics without errors.

    Raises:
        ConfigError: see `check_errors`.
    """
    check_errors(experiment.cluster, experiment.settings.calibration)
    spec = SearchSpec(
        model=experiment.model,
        cluster=experiment.cluster,
        workload=experiment.workload,
        slo=experiment.slo,
        scheduler=experiment.scheduler,
        seed=experiment.seed,
        jobs=jobs,
        horizon_s=experiment.horizon_s,
    )
    plan = Candidate(
        plan=experiment.plan,
        cluster=experiment.cluster,
        model=experiment.model,
        settings=experiment.settings,
        router=experiment.router,
    )
    (drawn,) = _simulate(spec, [plan], num_draws, progress, None)
    spreads = {key: _spread(summary, drawn, key) for key in KEYS}
    known = {key: spread for key, spread in spreads.items() if spread is not None}
    return RunUncertainty(num_draws=num_draws, metrics=known)


def search_uncertainty(
    spec: SearchSpec,
    outcome: SearchOutcome,
    num_draws: int,
    *,
    progress: Progress | None = None,
    store: str | Path | None = None,
) -> SearchUncertainty:
    """Simulate the best plans of a search under equal draws.

    Plans that the search pruned are not drawn: their bounds are those of prices as they are.

    Raises:
        ConfigError: see `check_errors`.
    """
    check_errors(spec.cluster, str(spec.engine.get("calibration", "")))
    records = [record for record in outcome.records if record.rank is not None][:MOST_PLANS]
    drawn = _simulate(spec, [r.candidate for r in records], num_draws, progress, store)
    winners = [_winner(spec, records, metrics) for metrics in zip(*drawn, strict=True)]
    metric = metric_name(spec.objective, spec.objective_statistic)
    return SearchUncertainty(
        num_draws=num_draws,
        metric=metric,
        plans=tuple(
            PlanUncertainty(
                record=record,
                spread=_spread(record.metrics, metrics, metric),
                best_in=winners.count(number),
            )
            for number, (record, metrics) in enumerate(zip(records, drawn, strict=True))
        ),
        none_in=winners.count(None),
    )


def _winner(
    spec: SearchSpec, records: Sequence[PlanRecord], metrics: Sequence[Metrics]
) -> int | None:
    """Which plan is best by its metrics of one draw, as a search would rank them."""
    again = [
        PlanRecord(candidate=record.candidate, status=SIMULATED, metrics=found)
        for record, found in zip(records, metrics, strict=True)
    ]
    first = ranked(spec, again)[0]
    return again.index(first) if is_answer(spec, first) else None


def _simulate(
    spec: SearchSpec,
    plans: Sequence[Candidate],
    num_draws: int,
    progress: Progress | None,
    store: str | Path | None,
) -> list[list[Metrics]]:
    """Metrics of each plan in each draw."""
    candidates = [_drawn(plan, spec.seed, k) for plan in plans for k in range(num_draws)]
    opened = None if store is None else Store(store)
    runner = Runner(spec, candidates, opened)
    found: dict[int, Metrics] = {}
    try:
        probes = {i: _probe(spec, candidate) for i, candidate in enumerate(candidates)}
        for index, verdict in runner.run(probes):
            if verdict.error:
                name = f"{candidates[index].label}, draw {index % num_draws}"
                raise InvariantViolation(f"{name}: {verdict.error}")
            found[index] = verdict.metrics
            if progress is not None:
                progress(len(found), len(candidates))
    finally:
        runner.close()
        if opened is not None:
            opened.close()
    every = [found[index] for index in range(len(candidates))]
    return [every[i : i + num_draws] for i in range(0, len(every), num_draws)]


def _drawn(plan: Candidate, seed: int, number: int) -> Candidate:
    assert plan.settings is not None
    return replace(plan, settings=replace(plan.settings, draw=PriceDraw(seed=seed, number=number)))


def _probe(spec: SearchSpec, candidate: Candidate) -> Probe:
    if spec.objective != GOODPUT:
        return at_the_given_rate()
    return highest_rate(spec.slo, spec.offered_rate_per_s, candidate.plan.num_gpus)


def _spread(point: Metrics, drawn: Sequence[Metrics], key: str) -> Spread | None:
    """A metric over the draws; None where it is not defined in all of them."""
    values = [point.get(key), *(metrics.get(key) for metrics in drawn)]
    if any(value is None for value in values):
        return None
    first, *others = (float(value) for value in values if value is not None)
    low, median, high = np.quantile(others, ((1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2)).tolist()
    return Spread(point=first, median=median, low=low, high=high)
