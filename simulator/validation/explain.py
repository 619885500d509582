"""Why a prediction misses a measured run: the gap split over what could cause it.

Each cause is tried by itself (kernels 10 % slower, an iteration's host time 1 ms longer, ...) and
the run is simulated again. Those responses, as logarithms, are a small linear model; the smallest
combination of causes that explains the measured gaps is its attribution. What no cause explains is
left over, and said so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from simulator.costs.compiled import AttentionCost, CompiledCost, StageCost
from simulator.engine import prepare, run
from simulator.setup import Setup
from simulator.validation.scenario import Scenario
from simulator.validation.score import predicted_of

EXPLAINED = ("ttft_mean", "tpot_mean", "e2e_mean", "itl_mean")
RIDGE = 0.02  # weight of a cause's own size: a step costs as much as a gap of 2 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One thing that may be off."""

    name: str
    step: str  # what was tried
    effect: Mapping[str, float]  # of the step, in per cent of the prediction
    share: Mapping[str, float]  # of the gap, in per cent of the measured value
    needed: float  # steps that explain the gap best, together with the other causes


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The gap of one run, attributed."""

    gap: Mapping[str, float]  # predicted / measured - 1, per cent
    causes: tuple[Cause, ...]
    left_over: Mapping[str, float]  # per cent


def explain(scenario: Scenario, measured: Mapping[str, float]) -> Explanation:
    """Attribute the gap between prediction and measurement of a run to its possible causes."""
    setup = prepare(scenario.experiment)
    base = predicted_of(run(setup), scenario.scored)
    names = [n for n in EXPLAINED if measured.get(n, 0) > 0 and n in base]
    gap = np.array([np.log(measured[n] / base[n]) for n in names])
    trials = _trials(setup)
    responses = np.array(
        [
            [np.log(other[n] / base[n]) for n in names]
            for other in (predicted_of(run(trial), scenario.scored) for _, _, trial in trials)
        ]
    )
    steps = _smallest(responses.T, gap)
    causes = tuple(
        Cause(
            name=name,
            step=step,
            effect={n: 100 * float(np.expm1(x)) for n, x in zip(names, row, strict=True)},
            share={n: -100 * float(x * size) for n, x in zip(names, row, strict=True)},
            needed=float(size),
        )
        for (name, step, _), row, size in zip(trials, responses, steps, strict=True)
    )
    rest = gap - steps @ responses
    return Explanation(
        gap={n: 100 * (base[n] / measured[n] - 1) for n in names},
        causes=causes,
        left_over={n: -100 * float(x) for n, x in zip(names, rest, strict=True)},
    )


def _smallest(responses: np.ndarray, gap: np.ndarray) -> np.ndarray:
    """Ridge regression: the smallest steps whose responses add up to the gap."""
    size = responses.shape[1]
    left = responses.T @ responses + RIDGE**2 * np.eye(size)
    found: np.ndarray = np.linalg.solve(left, responses.T @ gap)
    return found


def _trials(setup: Setup) -> list[tuple[str, str, Setup]]:
    """(cause, step, the set-up with that step)."""
    num = len(setup.table)
    lead_ns = np.zeros(num, dtype=np.int64) if setup.lead_ns is None else setup.lead_ns
    return [
        ("kernel time", "all kernels 10 % slower", _with_cost(setup, _kernels(1.1))),
        ("host time", "1 ms more an iteration", _with_cost(setup, _host(1e6))),
        ("front end", "10 ms more a request", replace(setup, lead_ns=lead_ns + 10_000_000)),
        (
            "scheduling",
            "planned ahead" if not setup.plans_ahead else "not planned ahead",
            replace(setup, plans_ahead=not setup.plans_ahead),
        ),
        ("KV memory", "20 % fewer blocks", _with_pages(setup, 0.8)),
    ]


def _with_cost(setup: Setup, change: Callable[[CompiledCost], CompiledCost]) -> Setup:
    return replace(setup, kinds=tuple(replace(k, cost=change(k.cost)) for k in setup.kinds))


def _with_pages(setup: Setup, factor: float) -> Setup:
    kinds = (
        replace(
            kind,
            num_pages=max(1, int(kind.num_pages * factor)),
            max_kv_tokens=max(1, int(kind.max_kv_tokens * factor)),
        )
        for kind in setup.kinds
    )
    return replace(setup, kinds=tuple(kinds))


def _host(extra_ns: float) -> Callable[[CompiledCost], CompiledCost]:
    ticks = int(extra_ns * (1 << 20))
    return lambda cost: replace(cost, host=[0, *(value + ticks for value in cost.host[1:])])


def _kernels(factor: float) -> Callable[[CompiledCost], CompiledCost]:
    def times(values: list[int]) -> list[int]:
        return [round(value * factor) for value in values]

    def attention(cost: AttentionCost) -> AttentionCost:
        return replace(
            cost,
            decode_base=times(cost.decode_base),
            decode_per_token=times(cost.decode_per_token),
            decode_spread=times(cost.decode_spread),
            prefill_base=round(cost.prefill_base * factor),
            prefill_per_token=round(cost.prefill_per_token * factor),
            prefill_per_pair=round(cost.prefill_per_pair * factor),
            prefill_per_context_token=round(cost.prefill_per_context_token * factor),
        )

    def stage(cost: StageCost) -> StageCost:
        return replace(
            cost,
            linear=times(cost.linear),
            expert=times(cost.expert),
            attention=tuple(attention(one) for one in cost.attention),
            send=times(cost.send),
        )

    return lambda cost: replace(
        cost, stages=tuple(stage(one) for one in cost.stages), logits=times(cost.logits)
    )
