"""Runs the measures of systems in worker processes, one task a system and seed."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

from simulator.errors import InvariantViolation
from simulator.papers.case import Case
from simulator.papers.claims import System
from simulator.papers.verdict import Verdict

SEEDS, QUICK_SEEDS = 5, 2

Progress = Callable[[int, int, str], None]  # tasks done, all tasks, what has just ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One claim under one seed."""

    claim: str
    value: float
    wall_s: float
    error: str = ""


Task = tuple[int, int]  # system, seed


def reproduce(
    systems: Sequence[System],
    *,
    quick: bool = False,
    jobs: int = 0,
    progress: Progress | None = None,
) -> list[Verdict]:
    """Verdicts of all claims, in the order of the systems and their files.

    Each measure runs under seeds 0, 1, ...; results do not depend on `jobs` (0 = all cores).
    """
    tasks = [
        (number, seed)
        for number, system in enumerate(systems)
        for seed in range(max(_num_seeds(claim.seeds, quick) for claim in system.claims))
    ]
    found: dict[Task, list[Measured]] = {}
    for task, measured in _results(systems, tasks, quick, jobs or os.cpu_count() or 1):
        found[task] = measured
        if progress is not None:
            progress(len(found), len(tasks), systems[task[0]].name)
    return [
        _verdict(system, claim.id, [found[task] for task in tasks if task[0] == number])
        for number, system in enumerate(systems)
        for claim in system.claims
    ]


def measure(system: System, seed: int, quick: bool) -> list[Measured]:
    """Every claim of a system that is measured under this seed."""
    case = Case(system.experiment, seed, quick)
    measures = system.module().MEASURES
    results = []
    for claim in system.claims:
        if seed >= _num_seeds(claim.seeds, quick):
            continue
        begin, value, error = time.perf_counter(), float("nan"), ""
        try:
            value = float(measures[claim.measure](case))
        except Exception as problem:  # a measure that fails is a result like another
            error = f"{type(problem).__name__}: {' '.join(str(problem).split())}"
        wall_s = time.perf_counter() - begin
        results.append(Measured(claim=claim.id, value=value, wall_s=wall_s, error=error))
    return results


def _num_seeds(seeds: int, quick: bool) -> int:
    usual = QUICK_SEEDS if quick else SEEDS
    return min(seeds, usual) if seeds else usual


def _results(
    systems: Sequence[System], tasks: list[Task], quick: bool, jobs: int
) -> Iterator[tuple[Task, list[Measured]]]:
    if jobs == 1 or len(tasks) == 1:
        for task in tasks:
            yield task, measure(systems[task[0]], task[1], quick)
        return
    can_fork = sys.platform == "linux" and threading.active_count() == 1
    context = multiprocessing.get_context("fork" if can_fork else "spawn")
    with ProcessPoolExecutor(min(jobs, len(tasks)), context) as pool:
        running = {pool.submit(measure, systems[task[0]], task[1], quick): task for task in tasks}
        try:
            for future in as_completed(running):
                yield running[future], future.result()
        except BrokenProcessPool:
            raise InvariantViolation("a worker process died (out of memory?)") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _verdict(system: System, claim_id: str, seeds: list[list[Measured]]) -> Verdict:
    mine = [measured for seed in seeds for measured in seed if measured.claim == claim_id]
    claim = next(claim for claim in system.claims if claim.id == claim_id)
    return Verdict(
        system=system.name,
        claim=claim,
        values=tuple(m.value for m in mine if not m.error),
        wall_s=sum(m.wall_s for m in mine),
        error=next((m.error for m in mine if m.error), ""),
    )
