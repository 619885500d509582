"""One replica: the loop that waits for work, plans, prices, advances the clock and commits.

A replica keeps `pp` batches in flight; each passes through the pipeline's stages behind the one
before it. Identical decode iterations are run as one event; `coalesce=False`, one iteration at a
time, is the specification.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator

import simpy

from simulator.batch import FOREVER
from simulator.lane import Lane
from simulator.lockstep import Lockstep, Pipeline
from simulator.rank import Rank
from simulator.request import Sequence

MIN_RUN = 2  # shorter runs cost more than they save
LEAP_NS = (
    1_000_000_000  # a replica with known arrivals, which nobody can see or disturb, leaves the
)
# clock behind by at most this before it yields: an event is a seventh of a run's cost


class Feed:
    """Arrivals of one replica that are known before the run, in order."""

    __slots__ = ("_make", "_next", "_ranks", "_requests", "_times_ns")

    def __init__(
        self,
        requests: list[int],
        times_ns: list[int],
        make: Callable[[int], Sequence],
        ranks: list[int],
    ) -> None:
        self._requests = requests
        self._times_ns = [*times_ns, FOREVER]
        self._make = make
        self._ranks = ranks  # of the replica, for each request
        self._next = 0

    def next_ns(self) -> int:
        return self._times_ns[self._next]

    def pop(self) -> tuple[Sequence, int]:
        """The next request, and which of the replica's ranks it goes to."""
        i = self._next
        self._next = i + 1
        return self._make(self._requests[i]), self._ranks[i]


class Replica:
    """Ranks and the batches they have in flight, as one SimPy process."""

    def __init__(
        self,
        env: simpy.Environment,
        ranks: list[Rank],
        batches: list[Lockstep],
        *,
        coalesce: bool = True,
        horizon_ns: int = FOREVER,
        feed: Feed | None = None,
        next_arrival: Callable[[], int] | None = None,
        plans_ahead: bool = False,
    ) -> None:
        self.env = env
        self.ranks = ranks
        self.batches = batches
        self.idle = list(batches)  # in the order they became idle
        self.in_flight: deque[Lockstep] = deque()
        self.feed = feed
        self.horizon_ns = horizon_ns
        self._last_ns = min(horizon_ns, FOREVER - 1)  # nothing happens later
        self._is_alone = len(batches) == 1
        # Asynchronous scheduling: an iteration is planned when the one before it begins, so who
        # arrives meanwhile waits for the next but one. A pipeline has no such look-ahead in vLLM.
        self._plans_ahead = plans_ahead and self._is_alone
        self._beyond = int(self._plans_ahead)  # iterations planned when somebody arrives
        self._has_fresh = False  # some rank has arrivals that its scheduler has not seen
        self._began_ns = -1  # start of the iteration that has just ended; -1 = none has
        self.pipeline = Pipeline(batches[0].cost)
        # One batch runs as one event; several are run ahead together, if arrivals are known.
        self._runs = coalesce and self._is_alone
        self._next_arrival = next_arrival if feed is None else feed.next_ns
        self._runs_ahead = coalesce and not self._is_alone and self._next_arrival is not None
        self._keeps_plans = self._runs or self._runs_ahead
        self.at_end: Callable[[list[Lane]], None] | None = None  # told of lanes that have ended
        self.process = env.process(self.run())

    def run(self) -> Generator[simpy.Event, object, None]:
        """The loop: take in arrivals, dispatch idle batches, wait for the oldest, commit it."""
        env, feed, in_flight, idle = self.env, self.feed, self.in_flight, self.idle
        next_ns = FOREVER if feed is None else feed.next_ns()
        now_ns = clock_ns = 0
        while True:
            if next_ns <= now_ns:
                next_ns = self._absorb(now_ns)
            if idle:
                self._start(now_ns)
            wake_ns = self._next_wake_ns(next_ns)
            if wake_ns > self._last_ns and (in_flight or feed is not None):
                self._settle(wake_ns)
                return
            if feed is None or wake_ns - clock_ns > LEAP_NS:
                try:
                    yield env.event() if wake_ns == FOREVER else env.timeout(wake_ns - clock_ns)
                except simpy.Interrupt:
                    wake_ns = int(env.now)
                clock_ns = wake_ns
            now_ns = wake_ns
            if self._runs_ahead:
                self._settle(wake_ns + 1)
            if in_flight and wake_ns == in_flight[0].end_ns:
                idle.append(self._end(in_flight.popleft()))

    def _absorb(self, now_ns: int) -> int:
        """Take in who has arrived by now; returns when the next one will."""
        feed = self.feed
        assert feed is not None
        self._has_fresh = True
        while (next_ns := feed.next_ns()) <= now_ns:
            seq, rank = feed.pop()
            self.ranks[rank].receive(seq, next_ns)
        return next_ns

    def _start(self, now_ns: int) -> None:
        """Dispatch what is idle, once the scheduler has seen who has arrived."""
        if self._has_fresh:
            self._reveal(self._began_ns if self._began_ns >= 0 else now_ns)
        self._dispatch_idle(now_ns)
        if self._has_fresh and not self.in_flight:
            self._reveal(now_ns)
            self._dispatch_idle(now_ns)
        self._began_ns = -1

    def _next_wake_ns(self, next_ns: int) -> int:
        if not self.in_flight:
            return next_ns
        if self._runs_ahead:
            self._run_ahead()
        end_ns = self.in_flight[0].end_ns
        return next_ns if next_ns < end_ns and self.idle else end_ns

    def _reveal(self, until_ns: int) -> None:
        self._has_fresh = False
        for rank in self.ranks:
            if rank.fresh:
                rank.reveal(until_ns)
                self._has_fresh = self._has_fresh or bool(rank.fresh)

    def _dispatch_idle(self, now_ns: int) -> None:
        if self._is_alone:
            self._dispatch(self.idle[0], now_ns)
            return
        evictions = -1
        while self.idle and evictions != (evictions := sum(r.num_evictions for r in self.ranks)):
            for batch in list(self.idle):  # again where an eviction has freed pages for another
                self._dispatch(batch, now_ns)

    def _dispatch(self, batch: Lockstep, now_ns: int) -> None:
        claim = self.pipeline.plan(batch, now_ns, self._keeps_plans, self._is_alone)
        if claim == 0:
            return
        batch.start_ns = now_ns
        may_run = self._runs and claim >= MIN_RUN and (batch.sealed or not self._has_fresh)
        if not (may_run and self._start_run(batch, now_ns)):
            batch.end_ns = self.pipeline.dispatch(batch, now_ns)
        for lane in batch.lanes:
            lane.in_flight = True
        self.idle.remove(batch)
        self.in_flight.append(batch)

    def _end(self, batch: Lockstep) -> Lockstep:
        """Everything the batch had in flight has ended."""
        if self._plans_ahead:
            self._began_ns = batch.ended[-1] if batch.ended else batch.start_ns
        batch.ended.append(batch.end_ns)
        num_ended = len(batch.ended)
        batch.log(num_ended)
        batch.grow(1 if self._runs_ahead else num_ended)
        if self.at_end is not None:
            self.at_end(batch.lanes)
        return batch

    def _start_run(self, batch: Lockstep, now_ns: int) -> bool:
        """Plan the claimed iterations as one event, up to the first that an arrival may change."""
        limit_ns = self.horizon_ns
        if self.feed is not None and not batch.sealed:
            limit_ns = min(limit_ns, self.feed.next_ns())
        ends = batch.run_until(now_ns, limit_ns, self._beyond)
        while ends and ends[-1] > self.horizon_ns:
            ends.pop()
        if len(ends) < MIN_RUN:
            return False
        batch.end_ns = ends.pop()
        batch.ended = ends
        return True

    def _run_ahead(self) -> None:
        """Pass the batches in flight through the stages again and again, as one event.

        Ends when a claim ends (somebody finishes), when an arrival is due, or at the horizon. The
        claims stand only while nobody could be admitted: else an end in one batch admits into
        another.
        """
        in_flight = self.in_flight
        for batch in in_flight:
            batch.share_pages(len(self.batches))
        if any(rank.starved or (rank.waiting and not rank.blocked) for rank in self.ranks):
            return
        limit_ns = self.horizon_ns + 1
        if self.idle or any(rank.by_priority or not rank.waiting for rank in self.ranks):
            assert self._next_arrival is not None
            limit_ns = min(limit_ns, self._next_arrival())
        # else whoever comes waits behind somebody who cannot be admitted
        self.pipeline.run_ahead(in_flight, limit_ns)

    # --- arrivals that are known only when they happen --------------------------------------------

    def settle(self, now_ns: int) -> None:
        """Book the iterations that ended before now, so that a router sees the ranks' caches."""
        if not self._runs_ahead:
            for batch in self.in_flight:
                batch.grow(bisect_left(batch.ended, now_ns))
        self._settle(now_ns)
        for rank in self.ranks:
            rank.catch_up()

    def _settle(self, before_ns: int) -> None:
        for batch in self.in_flight:
            batch.settle(before_ns)

    def notify(self, now_ns: int) -> None:
        """A request has just been given to one of the ranks: wake up if that changes anything."""
        self._has_fresh = True
        if not self.process.is_alive:
            return
        if self.idle or (self._runs and self._cut_run(now_ns)):
            self.process.interrupt()

    def wake(self) -> None:
        """Pages or sequences have come or gone: an idle batch may have something to do."""
        if self.idle and self.process.is_alive:
            self.process.interrupt()

    def _cut_run(self, now_ns: int) -> bool:
        batch = self.in_flight[0]
        return not batch.sealed and batch.cut(now_ns, self._beyond)
