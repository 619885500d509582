"""Simulates every row of a runs.csv, side by side, and keeps what fails with its reason."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace

from simulator.errors import ConfigError, InfeasiblePlan, OutsideCalibration
from simulator.memory import kv_capacity
from simulator.validation.rows import Row
from simulator.validation.scenario import Choices, Scenario, scenario_of
from simulator.validation.score import Outcome, Validation, mean_of, predicted_of

REPEATS = 5  # of a run whose requests are drawn, where they are few
FEW_REQUESTS = 1000

Progress = Callable[[int, int, str], None]


def validate(
    rows: Sequence[Row],
    choices: Choices,
    *,
    jobs: int = 0,
    progress: Progress | None = None,
) -> Validation:
    """Every row simulated and compared; rows that cannot be run are listed with the reason."""
    found: dict[int, Outcome | str] = {}
    order = sorted(range(len(rows)), key=lambda i: -_requests(rows[i]))  # the longest first
    jobs = min(jobs or os.cpu_count() or 1, len(rows))
    if jobs == 1:
        for i in order:
            found[i] = attempt(rows[i], choices)
            if progress is not None:
                progress(len(found), len(rows), rows[i].run_id)
    else:
        with ProcessPoolExecutor(jobs) as pool:
            waiting = {pool.submit(attempt, rows[i], choices): i for i in order}
            for future in as_completed(waiting):
                i = waiting[future]
                found[i] = future.result()
                if progress is not None:
                    progress(len(found), len(rows), rows[i].run_id)
    results = [(rows[i], found[i]) for i in range(len(rows))]
    return Validation(
        runs=tuple(result for _, result in results if isinstance(result, Outcome)),
        skipped={row.run_id: result for row, result in results if isinstance(result, str)},
    )


def _requests(row: Row) -> float:
    try:
        return row.number("num_requests") or 0.0
    except ConfigError:
        return 0.0


def attempt(row: Row, choices: Choices) -> Outcome | str:
    """The row's outcome, or why there is none."""
    try:
        return outcome_of(row, choices)
    except (ConfigError, InfeasiblePlan, OutsideCalibration) as error:
        return str(error)


def outcome_of(row: Row, choices: Choices) -> Outcome:
    """One row simulated and compared.

    Raises:
        ConfigError, InfeasiblePlan: the row cannot be simulated.
    """
    begin = time.perf_counter()
    scenario = scenario_of(row, choices)
    measured = row.measured()
    predictions = [prediction_of(scenario)]
    if not row.text("workload_file") and len(scenario.experiment.workload) < FEW_REQUESTS:
        for extra in range(1, REPEATS):
            again = scenario_of(row, replace(choices, seed=choices.seed + extra))
            predictions.append(prediction_of(again))
    return Outcome(
        run_id=row.run_id,
        labels=labels_of(scenario),
        measured=measured,
        predicted=mean_of(predictions) | _blocks(scenario, measured),
        notes=scenario.notes,
        wall_s=time.perf_counter() - begin,
    )


def prediction_of(scenario: Scenario) -> dict[str, float]:
    """Statistics of one simulation of the run."""
    return predicted_of(scenario.simulate(), scenario.scored)


def labels_of(scenario: Scenario) -> dict[str, str]:
    """What runs are grouped by."""
    row, experiment = scenario.row, scenario.experiment
    return {
        "load_level": row.text("load_level", "not stated"),
        "model": experiment.model.name,
        "gpu": experiment.cluster.groups[0].gpu.name,
        "engine": scenario.profile.name,
    }


def _blocks(scenario: Scenario, measured: Mapping[str, float]) -> dict[str, float]:
    """KV blocks as they would have been predicted, where the run recorded them."""
    if "kv_blocks" not in measured:
        return {}
    experiment = scenario.experiment
    gpu = experiment.cluster.groups[0].gpu
    settings = replace(experiment.settings, num_blocks=0)
    capacity = kv_capacity(experiment.model, experiment.plan, gpu, settings)
    return {"kv_blocks": float(capacity.num_blocks)}
