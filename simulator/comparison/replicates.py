"""Runs experiments under seeds, in worker processes, and fingerprints the requests each met."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import numpy as np

from simulator.comparison.intervals import Floats
from simulator.comparison.metrics import picked, request_columns
from simulator.config import Document, resolve_experiment
from simulator.engine import simulate
from simulator.errors import ConfigError, InfeasiblePlan, InvariantViolation
from simulator.experiment import Experiment
from simulator.metrics import summarise
from simulator.request import RequestTable
from simulator.spec import Slo

# What people call each part of a request table. Its concurrency limit is a property of the client,
# not of the requests, so that it may differ between experiments on equal requests.
PARTS = {
    "arrivals": ("arrival_ns", "parent", "delay_ns"),
    "prompt lengths": ("prompt_tokens",),
    "output lengths": ("output_tokens",),
    "shared prefixes": ("hash_ids", "hash_offsets", "hash_block_tokens"),
    "priorities and clients": ("priority", "client", "session"),
    "numbers of answers": ("num_samples", "sample_tokens", "leader", "beams"),
}
Fingerprint = dict[str, str]  # part -> hash of its columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One simulation: an experiment under a seed."""

    arm: int
    name: str
    seed: int
    document: Document
    has_columns: bool  # a number a request is kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Replicate:
    """What a simulation came to."""

    metrics: dict[str, float | None] = field(default_factory=dict)
    columns: dict[str, Floats] = field(default_factory=dict)
    requests: Fingerprint = field(default_factory=dict)
    slo: Slo = field(default_factory=Slo)
    num_requests: int = 0
    lost: int = 0  # rejected or unfinished
    reason: str = ""  # why it cannot run; "" = it ran


def seeded(document: Document, seed: int) -> Experiment:
    """The experiment of a document under another seed.

    Raises:
        ConfigError, InfeasiblePlan: see `resolve_experiment`.
    """
    return resolve_experiment(document.override("seed", seed, "--seed"))


def fingerprint(table: RequestTable) -> Fingerprint:
    """A hash of each part; two tables with equal ones hold the same requests."""
    found = {}
    for part, names in PARTS.items():
        digest = hashlib.sha256()
        for name in names:
            column = getattr(table, name)
            is_column = isinstance(column, np.ndarray)
            digest.update(column.tobytes() if is_column else repr(column).encode())
        found[part] = digest.hexdigest()
    return found


def replicate(task: Task) -> Replicate:
    """Simulate one experiment under one seed.

    Raises:
        ConfigError: policies that do not go together.
    """
    try:
        experiment = seeded(task.document, task.seed)
        result = simulate(experiment)
    except InfeasiblePlan as error:
        return Replicate(reason=str(error))
    except ConfigError as error:
        raise ConfigError(f"{task.name}: {error}") from None
    return Replicate(
        metrics=picked(summarise(experiment, result)),
        columns=request_columns(experiment, result) if task.has_columns else {},
        requests=fingerprint(experiment.workload),
        slo=experiment.slo,
        num_requests=len(experiment.workload),
        lost=len(experiment.workload) - int(result.completed.sum()),
    )


def replicates(tasks: Sequence[Task], jobs: int = 0) -> Iterator[tuple[Task, Replicate]]:
    """Simulate on `jobs` processes (0 = all cores); yield each in the order of the tasks.

    Raises:
        ConfigError, OutsideCalibration: an experiment that cannot be used.
        InvariantViolation: a worker process died.
    """
    jobs = min(jobs or os.cpu_count() or 1, len(tasks))
    if jobs <= 1:
        for task in tasks:
            yield task, replicate(task)
        return
    strangers = set(multiprocessing.active_children())
    can_fork = sys.platform == "linux" and threading.active_count() == 1
    context = multiprocessing.get_context("fork" if can_fork else "spawn")
    pool = ProcessPoolExecutor(jobs, context, _leave_ctrl_c)
    is_done = False
    try:
        running = [pool.submit(replicate, task) for task in tasks]
        for task, future in zip(tasks, running, strict=True):
            yield task, future.result()
        is_done = True
    except BrokenProcessPool:
        raise InvariantViolation("a worker process died (out of memory?)") from None
    finally:
        pool.shutdown(wait=is_done, cancel_futures=True)
        if not is_done:  # what still runs is not waited for
            for worker in set(multiprocessing.active_children()) - strangers:
                worker.terminate()
            pool.shutdown(wait=True)


def _leave_ctrl_c() -> None:
    """Ctrl-C is the parent's, which keeps what is finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
