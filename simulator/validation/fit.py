"""A few of an engine's times fitted to measured runs: never the physics, always towards a prior.

Gauss-Newton on the logarithm of measured / predicted, with a Gaussian prior on each value and
errors far out counted by their size, not its square. One run already helps: what it says is
weighed against the prior.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulator.costs.efficiency import HostProfile
from simulator.errors import ConfigError
from simulator.profiles import load_profile
from simulator.validation.rows import Row
from simulator.validation.runner import Progress, validate
from simulator.validation.scenario import Choices
from simulator.validation.score import Outcome

Floats = NDArray[np.float64]

FITTED = ("ttft_mean", "tpot_mean", "e2e_mean", "itl_mean")
NOISE = 0.05  # run-to-run spread of a mean: 2-12 % on TTFT, 5-16 % on TPOT in repeated runs
ROUNDS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A time that may be fitted: the step of its derivative, and how far from the prior it goes."""

    step: float
    spread: float  # standard deviation of the prior
    low: float = 0.0
    high: float = np.inf


# Of a deployment: what its host, client and front end do, and how its engine's kernels compare
# with those that were measured. No price falls below the roofline, whatever these say.
DEPLOYMENT: Mapping[str, Value] = {
    "request_s": Value(step=5e-3, spread=2e-2),
    "iteration_s": Value(step=3e-4, spread=1e-3),
    "decode_kernels": Value(step=0.05, spread=0.1, low=0.8, high=1.5),
    "prefill_kernels": Value(step=0.05, spread=0.2, low=0.7, high=3.0),
}
# Of all runs together: what `configs/engines` states as fitted.
SHARED: Mapping[str, Value] = {
    "request_s": Value(step=3e-3, spread=5e-3),
    "prompt_token_s": Value(step=1e-6, spread=2e-6),
    "decode_spread": Value(step=0.2, spread=0.3, high=1.0),
    "expert_popularity": Value(step=0.2, spread=0.3, high=2.0),
    "sort_logit_bytes": Value(step=60.0, spread=100.0),
    "sustained_bf16": Value(step=-0.05, spread=0.08, high=1.0),
    "sustained_fp8": Value(step=-0.05, spread=0.08, high=1.0),
    "cold_expert_s": Value(step=0.3, spread=0.5),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Fitted values and the errors before and after."""

    values: Mapping[str, float]
    before: tuple[Outcome, ...]
    after: tuple[Outcome, ...]


def fit(
    rows: Sequence[Row],
    choices: Choices,
    values: Mapping[str, Value] = DEPLOYMENT,
    *,
    start: Mapping[str, float] | None = None,
    jobs: int = 0,
    progress: Progress | None = None,
) -> Fit:
    """The values that bring the runs closest, not far from where they start.

    Raises:
        ConfigError: no row can be simulated, or none states a latency.
    """
    prior = dict(start or starting_values(choices, values))
    at = dict(prior)
    before: tuple[Outcome, ...] = ()
    for _ in range(ROUNDS):
        base = _outcomes(rows, choices, at, jobs, progress)
        before = before or base
        residual = gaps(base)
        if len(residual) == 0:
            raise ConfigError("no run states a TTFT, TPOT, ITL or E2E to fit to")
        columns = []
        for name, value in values.items():
            moved = at | {name: max(0.0, at[name] + value.step)}
            other = _outcomes(rows, choices, moved, jobs, progress)
            columns.append((residual - gaps(other)) / (moved[name] - at[name]))
        at = _step(at, prior, values, residual, np.array(columns).T)
    return Fit(values=at, before=before, after=_outcomes(rows, choices, at, jobs, progress))


def starting_values(choices: Choices, values: Mapping[str, Value]) -> dict[str, float]:
    """The profile's own values, or the defaults of a host."""
    host = HostProfile(**(load_profile(choices.profile).host if choices.profile else {}))
    return {name: choices.host.get(name, getattr(host, name)) for name in values}


def _outcomes(
    rows: Sequence[Row],
    choices: Choices,
    at: Mapping[str, float],
    jobs: int,
    progress: Progress | None,
) -> tuple[Outcome, ...]:
    found = validate(
        rows, replace(choices, host={**choices.host, **at}), jobs=jobs, progress=progress
    )
    if not found.runs:
        reasons = "; ".join(f"{name}: {why}" for name, why in list(found.skipped.items())[:3])
        raise ConfigError(f"no run can be simulated ({reasons})")
    return found.runs


def gaps(outcomes: Sequence[Outcome]) -> Floats:
    """log(measured / predicted) of every fitted statistic of every run, in order."""
    return np.array(
        [
            np.log(run.measured[name] / run.predicted[name])
            for run in outcomes
            for name in FITTED
            if name in run.measured and run.predicted.get(name, 0.0) > 0
        ]
    )


def _step(
    at: Mapping[str, float],
    prior: Mapping[str, float],
    values: Mapping[str, Value],
    residual: Floats,
    jacobian: Floats,
) -> dict[str, float]:
    """One regularised step, kept inside the bounds."""
    weight = 1.0 / (NOISE * np.maximum(NOISE, np.abs(residual)))
    spread = np.array([value.spread for value in values.values()])
    away = np.array([prior[name] - at[name] for name in values])
    left = jacobian.T @ (weight[:, None] * jacobian) + np.diag(spread**-2)
    right = jacobian.T @ (weight * residual) + away / spread**2
    moved = np.linalg.solve(left, right)
    return {
        name: float(np.clip(at[name] + change, value.low, value.high))
        for (name, value), change in zip(values.items(), moved, strict=True)
    }


def cross_fit(
    rows: Sequence[Row],
    choices: Choices,
    label: str = "model",
    *,
    jobs: int = 0,
    progress: Progress | None = None,
) -> tuple[dict[str, dict[str, float]], tuple[Outcome, ...]]:
    """Each group of runs predicted with `SHARED` values fitted to the other groups alone.

    One Gauss-Newton step from the values of `NEUTRAL`; saturated runs are predicted but not fitted
    to. Returns the values of each group that was left out, and all outcomes.
    """
    base = _outcomes(rows, choices, NEUTRAL, jobs, progress)
    fitted = [run for run in base if run.labels["load_level"] != "saturated"]
    columns = []
    for name, value in SHARED.items():
        moved = {**NEUTRAL, name: NEUTRAL[name] + value.step}
        other = {run.run_id: run for run in _outcomes(rows, choices, moved, jobs, progress)}
        change = gaps(fitted) - gaps([other[run.run_id] for run in fitted])
        columns.append(change / value.step)
    jacobian, residual = np.array(columns).T, gaps(fitted)
    owner = np.array([run.labels[label] for run in fitted for _ in range(len(gaps([run])))])
    groups = {run.run_id: run.labels[label] for run in base}
    values: dict[str, dict[str, float]] = {}
    found: list[Outcome] = []
    for name in sorted(set(groups.values())):
        kept = owner != name
        step = _step(NEUTRAL, NEUTRAL, SHARED, residual[kept], jacobian[kept])
        values[name] = {**NEUTRAL, **step}
        mine = [row for row in rows if groups.get(row.run_id) == name]
        found += _outcomes(mine, choices, values[name], jobs, progress)
    return values, tuple(found)


# Where a fit of `SHARED` values starts when nothing has been fitted: round numbers, no effect at
# all for what nobody has measured apart (popularity, cold starts, sorting).
NEUTRAL: Mapping[str, float] = {
    "request_s": 5e-3,
    "prompt_token_s": 1e-6,
    "decode_spread": 0.5,
    "expert_popularity": 0.5,
    "sort_logit_bytes": 150.0,
    "sustained_bf16": 0.75,
    "sustained_fp8": 0.65,
    "cold_expert_s": 0.5,
    "mxfp4_prefill": 1.0,  # of one model only: what is left out must not know it
}
