"""The engine's loop: requests become eligible as the clock passes their arrivals.

Take in arrivals, let the scheduler plan, run the batch, book it. Python's garbage collector rests
meanwhile, as it does in servers.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

from calibration.engine.executor import Clock, Executor, Run
from calibration.engine.lane import Batch, EngineLane
from calibration.engine.trace import Trace
from simulator.schedulers import Scheduler, VllmV1

SPIN_NS = 1_000_000  # the end of a wait is spun: a sleep may last longer than it should
REPORT_NS = 5_000_000_000


@dataclass(frozen=True, slots=True)
class Iteration:
    """One row of iterations.csv; times since the trace began."""

    start_ns: int
    end_ns: int
    device_ns: int
    idle_ns: int  # before it, with nothing to do
    padded_seqs: int  # 0: eager
    decode_seqs: int
    context_tokens: int  # of the decodes together, the new token of each included
    longest_context: int  # of one of them
    chunks: tuple[tuple[int, int], ...]  # (new tokens, tokens already in the cache)
    preempted: int  # while it was planned
    waiting: int  # requests, after it was planned
    free_blocks: int

    @property
    def prefill_tokens(self) -> int:
        return sum(new for new, _ in self.chunks)

    @property
    def mode(self) -> str:
        return "graph" if self.padded_seqs else "eager"


@dataclass(slots=True)
class Log:
    """What happened."""

    iterations: list[Iteration]
    is_complete: bool  # False: the deadline came first
    compiled: int  # kernels compiled while the trace ran


def replay(
    trace: Trace, lane: EngineLane, executor: Executor, *,
    scheduler: Scheduler | None = None, deadline_ns: int | None = None,
    clock: Clock = time.perf_counter_ns, sleep: Callable[[float], None] = time.sleep,
    report: Callable[[str], None] = lambda _: None,
) -> Log:  # fmt: skip
    """Serve the trace to its end, or to the deadline (on `clock`)."""
    compiled, next_report_ns = executor.compilations.count, REPORT_NS
    gc.collect()
    gc.disable()
    loop = _Loop(trace, lane, executor, scheduler or VllmV1(), clock, sleep)
    try:
        while lane.num_finished < len(trace):
            if deadline_ns is not None and clock() > deadline_ns:
                break
            loop.iterate()
            if loop.log[-1].end_ns > next_report_ns:
                next_report_ns = loop.log[-1].end_ns + REPORT_NS
                report(
                    f"{loop.log[-1].end_ns / 1e9:6.1f} s: {lane.num_finished} of {len(trace)} "
                    f"requests, {len(loop.log)} iterations, {lane.num_running} running"
                )
    finally:
        gc.enable()
    is_complete = lane.num_finished == len(trace)
    return Log(loop.log, is_complete, executor.compilations.count - compiled)


class _Loop:
    def __init__(
        self, trace: Trace, lane: EngineLane, executor: Executor, scheduler: Scheduler,
        clock: Clock, sleep: Callable[[float], None],
    ) -> None:  # fmt: skip
        self._lane, self._executor, self._scheduler = lane, executor, scheduler
        self._clock, self._sleep = clock, sleep
        columns = (trace.arrival_ns, trace.input_tokens, trace.output_tokens)
        self._requests = list(zip(*(column.tolist() for column in columns), strict=True))
        self._next = 0
        self.log: list[Iteration] = []
        self._start_ns = clock()

    def iterate(self) -> None:
        """Wait for work if there is none; then one iteration."""
        lane = self._lane
        idle_ns = self._take_in()
        preempted = lane.num_preemptions
        self._scheduler.plan(lane)
        batch = lane.batch()
        note = (lane.num_preemptions - preempted, len(lane.waiting), len(lane.free))
        run = self._executor.run(batch, lane)
        self.log.append(self._row(batch, run, idle_ns, note))
        lane.commit(batch, run.tokens)

    def _take_in(self) -> int:
        """Queue who has arrived; where nobody is there, wait for the next. The wait in ns."""
        now_ns = began_ns = self._clock() - self._start_ns
        if not self._lane.waiting and not self._lane.num_running:
            arrival_ns = self._requests[self._next][0]
            while now_ns < arrival_ns:
                if arrival_ns - now_ns > 2 * SPIN_NS:
                    self._sleep((arrival_ns - now_ns - SPIN_NS) / 1e9)
                now_ns = self._clock() - self._start_ns
        while self._next < len(self._requests) and self._requests[self._next][0] <= now_ns:
            _, prompt_tokens, output_tokens = self._requests[self._next]
            self._lane.arrive(self._next, prompt_tokens, output_tokens)
            self._next += 1
        return now_ns - began_ns

    def _row(self, batch: Batch, run: Run, idle_ns: int, note: tuple[int, int, int]) -> Iteration:
        contexts = [seq.computed_tokens + 1 for seq in batch.decodes]
        return Iteration(
            run.start_ns - self._start_ns, run.end_ns - self._start_ns, run.device_ns, idle_ns,
            run.padded_seqs, len(contexts), sum(contexts), max(contexts, default=0),
            tuple((num, seq.computed_tokens) for seq, num in batch.chunks), *note,
        )  # fmt: skip
