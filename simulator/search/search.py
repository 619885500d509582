"""`run_search(spec) -> SearchOutcome`: enumerate, prune where asked, simulate, rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from simulator.search.bounds import bound_of, waves
from simulator.search.candidates import candidates
from simulator.search.capacity import RATE, SCALE, Probe, at_the_given_rate, highest_rate
from simulator.search.command import serve_command
from simulator.search.objective import GOODPUT, LATENCY_OBJECTIVES, OBJECTIVES, metric_name, order
from simulator.search.outcome import (
    BUG,
    CRASHED,
    INFEASIBLE,
    NOT_RUN,
    PRUNED,
    SIMULATED,
    PlanRecord,
    SearchOutcome,
)
from simulator.search.rank import heuristic, is_answer, pareto, ranked, speedup
from simulator.search.reasons import why_not
from simulator.search.runner import Runner, Verdict
from simulator.search.spec import SearchSpec
from simulator.search.store import Store
from simulator.search.trial import BUG as BUG_KIND
from simulator.search.trial import INFEASIBLE as INFEASIBLE_KIND

# (finished plans, plans of the search, the best plan so far)
Progress = Callable[[int, int, PlanRecord | None], None]


def run_search(
    spec: SearchSpec, progress: Progress | None = None, store: str | Path | None = None
) -> SearchOutcome:
    """Every plan considered and the best of them; Ctrl-C ends it with what is finished.

    `store` is a file that keeps each finished simulation: a search that was killed resumes there.
    """
    start = time.perf_counter()
    search = _Search(spec, progress, store)
    interrupted = False
    try:
        search.run()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        search.close()
    return search.outcome(interrupted, time.perf_counter() - start)


class _Search:
    """The records of a search while it runs."""

    def __init__(
        self, spec: SearchSpec, progress: Progress | None, store: str | Path | None
    ) -> None:
        self.spec = spec
        self.progress = progress
        self.candidates = candidates(spec)
        self.records = [
            PlanRecord(candidate=c, status=INFEASIBLE if c.reason else NOT_RUN, reason=c.reason)
            for c in self.candidates
        ]
        self.bases = {c.base: i for i, c in enumerate(self.candidates) if not c.is_variant}
        self.heuristic = heuristic(spec, self.candidates)
        self.best: PlanRecord | None = None
        self.store = None if store is None else Store(store)
        self.runner = Runner(spec, self.candidates, self.store)

    def run(self) -> None:
        """Simulate every plan that is feasible and not pruned."""
        for wave in self._waves():
            left = [index for index in wave if not self._is_pruned(index)]
            for index, verdict in self.runner.run({i: self._probe(i) for i in left}):
                self._settle(self.records[index], verdict)
        self._report()

    def close(self) -> None:
        self.runner.close()
        if self.store is not None:
            self.store.close()

    def _waves(self) -> Iterator[list[int]]:
        """Plans to simulate whatever comes; then the others, plans before their variants, those
        of most promise first."""
        sign = -1.0 if OBJECTIVES[self.spec.objective].larger_is_better else 1.0
        first, others = [], []
        for i, record in enumerate(self.records):
            is_variant = record.candidate.is_variant
            if record.status != NOT_RUN:
                continue
            if i == self.heuristic or not self.spec.prunes(is_variant):
                first.append(i)
                continue
            record.bound = bound_of(self.spec, record.candidate)
            self._report()  # nothing is done yet, but this too may take its time
            others.append((is_variant, sign * record.bound, i))
        yield from waves(sorted(first, key=self._shortness), [i for *_, i in sorted(others)])

    def _shortness(self, index: int) -> tuple[bool, int, int]:
        """Sorts the heuristic first, then long simulations: many batches in flight."""
        plan = self.candidates[index].plan
        return (index != self.heuristic, -plan.dp * plan.pp * plan.attention_dp, index)

    def _is_pruned(self, index: int) -> bool:
        """Whether the plan at its very best loses to one that serves everything and holds."""
        record, best = self.records[index], self.best
        if best is None or record.bound is None:
            return False
        unserved, missed, value, _ = self._order(best)
        if unserved or missed:
            return False
        goal = OBJECTIVES[self.spec.objective]
        bound = -record.bound if goal.larger_is_better else record.bound
        if bound > value + abs(value) * 1e-9:
            limit = "at most" if goal.larger_is_better else "at least"
            reason = f"{limit} {record.bound:.4g} {goal.unit}, the best is {abs(value):.4g}"
        else:
            reason = self._far_from_best(record, value)
        if not reason:
            return False
        record.status, record.reason = PRUNED, reason
        self._report()
        return True

    def _far_from_best(self, record: PlanRecord, best_value: float) -> str:
        """Why a variant is not worth trying, of a latency objective; empty if it is."""
        spec, base = self.spec, self.bases.get(record.candidate.base)
        if base is None or not record.candidate.is_variant:
            return ""
        if spec.objective not in LATENCY_OBJECTIVES or self.records[base].status != SIMULATED:
            return ""
        value = self._order(self.records[base])[2]
        if value <= best_value * spec.variants_within:
            return ""
        return f"with default settings {value / best_value:.3g}x the best: settings hardly help"

    def _probe(self, index: int) -> Probe:
        """The simulations of a plan; a variant must first hold the best rate found so far."""
        spec, candidate = self.spec, self.candidates[index]
        if spec.objective != GOODPUT:
            return at_the_given_rate()
        offered_per_s, beat_scale = spec.offered_rate_per_s, 0.0
        if self.best is not None and spec.prune is not False and candidate.is_variant:
            beat_scale = float(self.best.metrics[SCALE])
        return highest_rate(spec.slo, offered_per_s, candidate.plan.num_gpus, beat_scale)

    def _settle(self, record: PlanRecord, verdict: Verdict) -> None:
        statuses = {"": SIMULATED, INFEASIBLE_KIND: INFEASIBLE, BUG_KIND: BUG}
        record.status = statuses.get(verdict.kind, CRASHED)
        record.reason = verdict.error
        record.metrics = verdict.metrics
        if record.status == SIMULATED and verdict.metrics.get(RATE, 0.0) is None:
            rate = verdict.metrics["probes"][0][0]
            record.reason = f"misses the SLOs at {rate:.4g} requests/s, which the best holds"
            record.status, record.metrics = PRUNED, {}
        if record.status == SIMULATED and (
            self.best is None or self._order(record) < self._order(self.best)
        ):
            self.best = record
        self._report()

    def _order(self, record: PlanRecord) -> tuple[float, ...]:
        spec = self.spec
        return order(record.metrics, spec.objective, spec.objective_statistic, spec.slo)

    def _report(self) -> None:
        if self.progress is not None:
            # Without those known to be infeasible: they took no time, and would spoil an estimate.
            left = [record for record in self.records if not record.candidate.reason]
            done = sum(record.status != NOT_RUN for record in left)
            self.progress(done, len(left), self.best)

    def outcome(self, interrupted: bool, wall_s: float) -> SearchOutcome:
        """The ranking and what follows from it."""
        spec = self.spec
        done = ranked(spec, self.records)
        best = done[0] if done and is_answer(spec, done[0]) else None
        for record in done:
            record.why = "" if record is best else why_not(spec, record, done[0])
        for record in self.records:
            if record.candidate.settings is not None and record.status != INFEASIBLE:
                record.command = serve_command(record.candidate, spec.model)
        rule = None if self.heuristic is None else self.records[self.heuristic]
        rest = [record for record in self.records if record.rank is None]
        return SearchOutcome(
            model=spec.model.name,
            cluster=spec.cluster.name,
            workload=spec.workload.name,
            num_requests=len(spec.workload),
            objective=spec.objective,
            objective_statistic=spec.objective_statistic,
            metric=metric_name(spec.objective, spec.objective_statistic),
            slo=spec.slo,
            records=(*done, *rest),
            best=best,
            heuristic=rule,
            speedup_over_heuristic=speedup(spec, best, rule) if best and rule else None,
            pareto=tuple(pareto(done)),
            interrupted=interrupted,
            num_simulations=self.runner.num_simulated,
            num_from_store=self.runner.num_from_store,
            wall_s=wall_s,
        )
