"""One replica: the loop that waits for work, plans, prices, advances the clock and commits.

A replica keeps `pp` batches in flight. Each is a `Lockstep`: the lanes of its attention ranks,
which iterate together (one lane unless attention is data-parallel). Where there is one batch in
flight, identical decode iterations are run as one event; `coalesce=False` is the specification.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Generator

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.batch import FOREVER
from simulator.costs.compiled import TICK_BITS, CompiledCost
from simulator.lane import Lane, Rank
from simulator.request import Sequence
from simulator.schedulers import Scheduler

MIN_RUN = 2  # shorter runs cost more than they save
MAX_RUN = 4096  # bounds the arrays of a run
_INDEX = np.arange(MAX_RUN, dtype=np.int64)


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


class Lockstep:
    """The lanes of a replica's attention ranks that iterate together, as one batch in flight."""

    __slots__ = ("cost", "end_ns", "lanes", "planned", "run_ends", "scheduler", "sealed",
                 "start_ns")  # fmt: skip

    def __init__(self, lanes: list[Lane], cost: CompiledCost, scheduler: Scheduler) -> None:
        self.lanes = lanes
        self.cost = cost
        self.scheduler = scheduler
        self.planned = 0  # iterations in flight
        self.start_ns = self.end_ns = 0  # of those
        self.sealed = False  # whoever arrives during the run changes nothing before its end
        self.run_ends: list[int] = []  # end of each iteration of a run; empty for a single one

    def plan(self, now_ns: int) -> int:
        """Plan an iteration on every rank; returns for how many it holds (0 = no work)."""
        least = 0
        for lane in self.lanes:
            lane.rank.now_ns = now_ns
            lane.rank.starved.discard(lane.key)
            claim = self.scheduler.plan(lane)
            if claim > 1:
                claim = lane.repeats(claim)
            if claim and (claim < least or least == 0):
                least = claim
        return least

    def ignores_arrivals(self) -> bool:
        """Nobody can be admitted before somebody finishes, whoever arrives."""
        blocked = self.scheduler.arrivals_wait
        return blocked and all(lane.waiting and lane.num_decode for lane in self.lanes)

    def fixed_ticks(self, index: int) -> int:
        """Price of the coming iteration on one stage, attention excepted."""
        cost, lanes = self.cost, self.lanes
        stage = cost.stages[index]
        is_last = index == len(cost.stages) - 1
        most = total = rows = seqs = 0
        for lane in lanes:
            decodes = lane.num_decoding
            tokens = decodes + lane.chunk_tokens
            total += tokens
            most = max(most, tokens)
            seqs = max(seqs, decodes + len(lane.chunks))
            if is_last:
                rows = max(rows, lane.sampled if lane.chunks else decodes)
        ticks = stage.linear[most]
        if stage.expert:
            graphed = cost.padded_tokens[most]
            total = graphed * len(lanes) if graphed != most or total == most else total
            ticks += stage.expert[-(-total // stage.expert_stride)]
        if index == 0:
            ticks += cost.host[seqs]
        return ticks + cost.logits[rows] if is_last else ticks

    def stage_ns(self, index: int) -> int:
        """Whole nanoseconds of the coming iteration on one stage."""
        stage = self.cost.stages[index]
        attention = max(lane.attention_ticks(stage)[0] for lane in self.lanes)
        return (self.fixed_ticks(index) + attention) >> TICK_BITS

    def run_prices(self, num_iterations: int) -> NDArray[np.int64]:
        """Nanoseconds of each of the coming identical iterations of a one-stage replica."""
        index = _INDEX[:num_iterations]
        stage = self.cost.stages[0]
        forms = [lane.attention_ticks(stage) for lane in self.lanes]
        first, growth = forms[0]
        if len(forms) == 1:
            return (index * growth + (self.fixed_ticks(0) + first)) >> TICK_BITS
        ticks = index * growth + first
        for first, growth in forms[1:]:
            np.maximum(ticks, index * growth + first, out=ticks)
        return (ticks + self.fixed_ticks(0)) >> TICK_BITS

    def commit(self) -> None:
        """Book what was in flight."""
        ends = self.run_ends
        for lane in self.lanes:
            if ends:
                lane.log.end_ns.extend(ends[: self.planned])
            else:
                lane.log.end_ns.append(self.end_ns)
            lane.commit(self.planned, self.start_ns, self.end_ns)
        self.run_ends = []


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
    ) -> None:
        self.env = env
        self.ranks = ranks
        self.batches = batches
        self.idle = list(batches)  # in the order they became idle
        self.in_flight: deque[Lockstep] = deque()
        self.feed = feed
        self.horizon_ns = horizon_ns
        self._runs = coalesce and len(batches) == 1
        self._stage_free_ns = [0] * len(batches[0].cost.stages)
        self.process = env.process(self.run())

    def run(self) -> Generator[simpy.Event, object, None]:
        """The loop: take in arrivals, dispatch idle batches, wait for the oldest, commit it."""
        env, feed = self.env, self.feed
        while True:
            now = env.now
            if feed is not None:
                self._absorb(feed, int(now))
            self._dispatch_idle(int(now))
            next_ns = FOREVER if feed is None else feed.next_ns()
            if self.in_flight:
                oldest = self.in_flight[0]
                wake_ns = min(oldest.end_ns, next_ns) if self.idle else oldest.end_ns
            elif feed is not None and next_ns == FOREVER:
                return
            else:
                wake_ns = next_ns
            if self.horizon_ns < wake_ns < FOREVER:
                return
            try:
                yield env.event() if wake_ns == FOREVER else env.timeout(wake_ns - now)
            except simpy.Interrupt:
                continue
            if self.in_flight and env.now == self.in_flight[0].end_ns:
                oldest = self.in_flight.popleft()
                oldest.commit()
                self.idle.append(oldest)

    def _absorb(self, feed: Feed, now_ns: int) -> None:
        while feed.next_ns() <= now_ns:
            seq, rank = feed.pop()
            self.ranks[rank].receive(seq)

    def _dispatch_idle(self, now_ns: int) -> None:
        evictions = -1
        while self.idle and evictions != (evictions := sum(r.num_evictions for r in self.ranks)):
            for batch in list(self.idle):  # again where an eviction has freed pages for another
                self._dispatch(batch, now_ns)

    def _dispatch(self, batch: Lockstep, now_ns: int) -> None:
        claim = batch.plan(now_ns)
        if claim == 0:
            return
        batch.start_ns = now_ns
        if not (self._runs and claim >= MIN_RUN and self._start_run(batch, claim, now_ns)):
            batch.planned = 1
            batch.end_ns = self._pass_stages(batch, now_ns)
        for lane in batch.lanes:
            lane.in_flight = True
        self.idle.remove(batch)
        self.in_flight.append(batch)

    def _start_run(self, batch: Lockstep, claim: int, now_ns: int) -> bool:
        """Plan up to `claim` iterations as one event, up to the first that an arrival may change."""
        limit_ns = self.horizon_ns
        batch.sealed = batch.ignores_arrivals()
        if self.feed is not None and not batch.sealed:
            limit_ns = min(limit_ns, self.feed.next_ns())
        prices = batch.run_prices(min(claim, MAX_RUN))
        first = int(prices[0])
        if limit_ns < FOREVER:  # prices never fall, so this many reach the limit
            prices = prices[: max(1, (limit_ns - now_ns) // max(first, 1) + 1)]
        ends: list[int] = (prices.cumsum() + now_ns).tolist()
        num = min(bisect_left(ends, limit_ns) + 1, len(ends))
        while num and ends[num - 1] > self.horizon_ns:
            num -= 1
        if num < MIN_RUN:
            return False
        batch.run_ends = ends
        batch.planned = num
        batch.end_ns = ends[num - 1]
        return True

    def _pass_stages(self, batch: Lockstep, now_ns: int) -> int:
        """End of one iteration that goes through the stages behind the batches before it."""
        free = self._stage_free_ns
        stages = batch.cost.stages
        if len(stages) == 1:
            return now_ns + batch.stage_ns(0)
        at_ns = now_ns
        most = max(lane.num_decoding + lane.chunk_tokens for lane in batch.lanes)
        for index, stage in enumerate(stages):
            at_ns = max(at_ns, free[index]) + batch.stage_ns(index)
            free[index] = at_ns
            if stage.send:
                at_ns += stage.send[most] >> TICK_BITS
        return at_ns

    # --- arrivals that are known only when they happen --------------------------------------------

    def settle(self, now_ns: int) -> None:
        """Commit the iterations of a run that ended before now, so that a router sees them."""
        for batch in self.in_flight:
            done = bisect_left(batch.run_ends, now_ns)
            if done:
                rest, left, end_ns = batch.run_ends[done:], batch.planned - done, batch.end_ns
                batch.planned, batch.end_ns = done, batch.run_ends[done - 1]
                batch.run_ends = batch.run_ends[:done]
                start_ns = batch.end_ns
                batch.commit()
                for lane in batch.lanes:
                    lane.decode()
                    lane.in_flight = True
                batch.start_ns, batch.planned, batch.end_ns = start_ns, left, end_ns
                batch.run_ends = rest

    def notify(self, now_ns: int) -> None:
        """A request has just been given to one of the ranks: wake up if that changes anything."""
        if not self.process.is_alive:
            return
        if not self.in_flight or len(self.idle) > 0:
            self.process.interrupt()
            return
        batch = self.in_flight[0]
        if batch.run_ends and not batch.sealed:
            num = bisect_left(batch.run_ends, now_ns) + 1
            if num < batch.planned:
                batch.planned, batch.end_ns = num, batch.run_ends[num - 1]
                self.process.interrupt()
