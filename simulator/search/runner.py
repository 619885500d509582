"""Runs the simulations of a search on all cores, and remembers each as it ends.

Every plan asks for its simulations one after the other (one, or a bisection); plans run side by
side, one process a core. A plan that crashes, or takes its process down, is a result like another.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Any

from simulator.search.candidates import Candidate
from simulator.search.capacity import Probe
from simulator.search.spec import SearchSpec
from simulator.search.store import Store, trial_key, workload_hash
from simulator.search.trial import (
    CRASH,
    Bench,
    Trial,
    experiment_of,
    run_in_worker,
    start_worker,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a plan's simulations came to."""

    metrics: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    kind: str = ""  # of the error, see trial.py


Task = tuple[int, float]  # candidate, rate scale


class Runner:
    """Simulations of one search, in worker processes or, with one job, in this one."""

    def __init__(
        self, spec: SearchSpec, candidates: Sequence[Candidate], store: Store | None = None
    ) -> None:
        self._spec = spec
        self._candidates = candidates
        self._store = store
        self._hash = workload_hash(spec.workload) if store else ""
        self._jobs = spec.jobs or os.cpu_count() or 1
        self._bench = Bench(spec, candidates)
        self._pool: Executor | None = None
        self._strangers: set[multiprocessing.process.BaseProcess] = set()  # not our workers
        self._running: dict[Future[Trial], Task] = {}
        self._suspects: set[int] = set()  # in flight when a worker died
        self.num_simulated = 0
        self.num_from_store = 0

    def run(self, probes: Mapping[int, Probe]) -> Iterator[tuple[int, Verdict]]:
        """Drive the plans' probes to their ends, in the order given; yield plans as they end."""
        queue: deque[Task] = deque((index, next(probe)) for index, probe in probes.items())
        while queue or self._running:
            for (index, _), trial in self._advance(queue):
                if trial.error:
                    yield index, Verdict(error=trial.error, kind=trial.kind)
                    continue
                try:
                    queue.appendleft((index, probes[index].send(trial.metrics)))
                except StopIteration as stop:
                    yield index, Verdict(metrics=stop.value)

    def close(self) -> None:
        """Stop every worker, whatever it is doing."""
        if self._pool is not None:
            # Idle workers and the pool's threads end by themselves, so that the next pool may fork.
            self._pool.shutdown(wait=not self._running, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - self._strangers:
                worker.terminate()
            self._pool.shutdown(wait=True)
            self._pool = None

    def _advance(self, queue: deque[Task]) -> list[tuple[Task, Trial]]:
        """Start what there is room for; return what has ended, at least one thing."""
        ended: list[tuple[Task, Trial]] = []
        while queue and not ended and len(self._running) < self._room:
            task = queue.popleft()
            known = self._recall(task)
            if known is not None:
                ended.append((task, Trial(metrics=known)))
            elif self._jobs == 1:
                ended.append((task, self._finished(task, self._bench.run(*task))))
            else:
                self._running[self._submit(task)] = task
        if not ended and self._running:
            done, _ = wait(self._running, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda future: self._running[future]):
                if future in self._running:
                    ended += self._collect(future, queue)
        return ended

    @property
    def _room(self) -> int:
        """Simulations to have in flight; suspects of killing a worker run alone."""
        return 1 if self._suspects else self._jobs + 1

    def _submit(self, task: Task) -> Future[Trial]:
        if self._pool is None:
            self._strangers = set(multiprocessing.active_children())
            self._pool = ProcessPoolExecutor(
                self._jobs, _context(), start_worker, (self._spec, self._candidates)
            )
        return self._pool.submit(run_in_worker, *task)

    def _collect(self, future: Future[Trial], queue: deque[Task]) -> list[tuple[Task, Trial]]:
        try:
            trial = future.result()
        except BrokenProcessPool:
            return self._bury(queue)
        task = self._running.pop(future)
        self._suspects.discard(task[0])
        return [(task, self._finished(task, trial))]

    def _bury(self, queue: deque[Task]) -> list[tuple[Task, Trial]]:
        """A worker died: name the plan if it ran alone, else run the suspects one by one."""
        tasks = sorted(self._running.values())
        self._running.clear()
        self.close()
        if len(tasks) == 1 and tasks[0][0] in self._suspects:
            self._suspects.discard(tasks[0][0])
            error = "the worker process died (out of memory?)"
            return [(tasks[0], Trial(error=error, kind=CRASH))]
        self._suspects |= {index for index, _ in tasks}
        queue.extendleft(reversed(tasks))
        return []

    def _recall(self, task: Task) -> dict[str, Any] | None:
        if self._store is None:
            return None
        metrics = self._store.get(self._key(task))
        self.num_from_store += metrics is not None
        return metrics

    def _finished(self, task: Task, trial: Trial) -> Trial:
        self.num_simulated += 1
        if self._store is not None and not trial.error:
            self._store.put(self._key(task), self._candidates[task[0]].label, trial.metrics)
        return trial

    def _key(self, task: Task) -> str:
        index, rate_scale = task
        experiment = experiment_of(self._spec, self._candidates[index], self._spec.workload)
        return trial_key(experiment, rate_scale, self._hash)


def _context() -> multiprocessing.context.BaseContext:
    """How workers start.

    Forking shares the workload without a copy and needs no `if __name__ == "__main__"` in the
    user's script, but it is safe only while no other thread can hold a lock.
    """
    if sys.platform == "linux" and threading.active_count() == 1:
        return multiprocessing.get_context("fork")
    if os.name != "posix":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run_in_worker.__module__])
    return context
