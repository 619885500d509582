"""One simulation of a search: a candidate at a rate, in this process or a worker.

Workers import this module and nothing heavier. The workload reaches each worker once, when it
starts; a trial is two numbers.
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simulator.engine import simulate
from simulator.errors import InfeasiblePlan, InvariantViolation
from simulator.experiment import Experiment
from simulator.metrics import summarise
from simulator.request import RequestTable
from simulator.search.candidates import Candidate
from simulator.search.spec import SearchSpec
from simulator.workloads import transform

INFEASIBLE, CRASH, BUG = "infeasible", "crash", "bug"

PERCENTILES = (1, 5, 10, 25, 50, 75, 90, 95, 99)  # of each latency; a report draws them


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What one simulation came to: metrics, or an error of one of the three kinds."""

    metrics: dict[str, Any] = field(default_factory=dict)  # JSON-safe
    error: str = ""
    kind: str = ""
    wall_s: float = 0.0


class Bench:
    """Simulates candidates of one search; remembers the latest scaled workload."""

    def __init__(self, spec: SearchSpec, candidates: Sequence[Candidate]) -> None:
        self._spec = spec
        self._candidates = candidates
        self._scaled: tuple[float, RequestTable] = (1.0, spec.workload)

    def run(self, index: int, rate_scale: float) -> Trial:
        """Simulate one candidate; whatever goes wrong is its result, not this process's end."""
        start = time.perf_counter()
        experiment = self.experiment(index, rate_scale)
        try:
            metrics = summarise(experiment, simulate(experiment), PERCENTILES)
        except InfeasiblePlan as error:
            return Trial(error=str(error), kind=INFEASIBLE)
        except InvariantViolation as error:
            return Trial(error=f"bug in the simulator: {error}", kind=BUG)
        except Exception as error:
            return Trial(error=f"{type(error).__name__}: {error}", kind=CRASH)
        return Trial(metrics=plain(metrics), wall_s=time.perf_counter() - start)

    def experiment(self, index: int, rate_scale: float) -> Experiment:
        return experiment_of(self._spec, self._candidates[index], self._workload(rate_scale))

    def _workload(self, rate_scale: float) -> RequestTable:
        if rate_scale == 1.0:
            return self._spec.workload
        if self._scaled[0] != rate_scale:
            self._scaled = (rate_scale, transform(self._spec.workload, rate_scale=rate_scale))
        return self._scaled[1]


def experiment_of(spec: SearchSpec, candidate: Candidate, workload: RequestTable) -> Experiment:
    """The experiment that simulates a feasible candidate."""
    assert candidate.settings is not None
    return Experiment(
        model=candidate.model,
        cluster=candidate.cluster,
        plan=candidate.plan,
        settings=candidate.settings,
        workload=workload,
        scheduler=spec.scheduler,
        allocator=spec.allocator,
        router=candidate.router,
        slo=spec.slo,
        name=candidate.label,
        seed=spec.seed,
        horizon_s=spec.horizon_s,
    )


def plain(value: Any) -> Any:
    """The value in JSON's types; None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return plain(value.tolist())
    return float(value) if math.isfinite(value) else None


# The bench of this worker process: a pool's tasks can reach what its workers share only through
# the module.
_bench: Bench | None = None


def start_worker(spec: SearchSpec, candidates: Sequence[Candidate]) -> None:
    """Receive the search once; leave Ctrl-C to the parent, which keeps what is finished."""
    global _bench
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _bench = Bench(spec, candidates)


def run_in_worker(index: int, rate_scale: float) -> Trial:
    assert _bench is not None
    return _bench.run(index, rate_scale)
