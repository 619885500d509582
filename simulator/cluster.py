"""Replicas behind a router, and the clients in front of it.

Where every arrival is known and the router looks at nothing but the request's number, arrivals are
dealt to the replicas before the run. Otherwise each arrival is an URGENT event, so that at equal
times arrivals come before iteration ends; a closed loop sends its next request one nanosecond after
the answer, so that this rule decides there too.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import groupby
from operator import itemgetter

import numpy as np
import simpy
from numpy.typing import NDArray
from simpy.events import URGENT

from simulator.batch import FOREVER
from simulator.rank import Rank
from simulator.recorder import REJECTED, Recorder
from simulator.replica import Feed, Replica
from simulator.request import Ints, RequestTable, Sequence
from simulator.routers import Router
from simulator.samples import whole_requests


class Requests:
    """A workload's columns as Python lists, and the sequences made from them.

    `lead_ns` of each request passes between its sending and its arrival at the scheduler.
    """

    __slots__ = ("lead_ns", "output_tokens", "priority", "prompt_tokens", "table")

    def __init__(self, table: RequestTable, lead_ns: Ints | None = None) -> None:
        self.table = table
        self.lead_ns = lead_ns
        self.prompt_tokens: list[int] = table.prompt_tokens.tolist()
        self.output_tokens: list[int] = table.output_tokens.tolist()
        self.priority = None if table.priority is None else table.priority.tolist()

    def make(self, i: int) -> Sequence:
        priority = 0 if self.priority is None else self.priority[i]
        return Sequence(i, self.prompt_tokens[i], self.output_tokens[i], priority)


def deal(
    requests: Requests,
    accepted: Ints,
    recorder: Recorder,
    ranks_of: list[int],
    horizon_ns: int,
) -> list[Feed]:
    """Feeds of the replicas, round-robin over all their ranks (`ranks_of` each replica).

    The samples of a request go together.
    """
    times, leader = requests.table.arrival_ns, requests.table.leader
    sent_ns = np.where(times <= horizon_ns, times, -1)
    recorder.sent_ns = array("q", sent_ns.tobytes())
    if requests.lead_ns is not None:
        times = times + requests.lead_ns
        accepted = accepted[np.lexsort((accepted, times[accepted]))]
    turn = np.arange(len(accepted))
    if leader is not None:
        turn = np.cumsum(leader[accepted] == accepted) - 1
    number = turn % sum(ranks_of)
    feeds, first = [], 0
    for num_ranks in ranks_of:
        mine = (number >= first) & (number < first + num_ranks)
        chosen, ranks = accepted[mine], number[mine] - first
        feeds.append(Feed(chosen.tolist(), times[chosen].tolist(), requests.make, ranks.tolist()))
        first += num_ranks
    return feeds


class Clients:
    """Sends requests when they are due: open or closed loop, multi-turn sessions, any router."""

    def __init__(
        self,
        env: simpy.Environment,
        requests: Requests,
        accepted: Ints,
        router: Router,
        recorder: Recorder,
        horizon_ns: int,
    ) -> None:
        self.env = env
        self.requests = requests
        self.router = router
        self.recorder = recorder
        self.horizon_ns = horizon_ns
        self.ranks: list[Rank] = []
        self.owners: list[Replica] = []  # of each rank
        self._replicas: list[Replica] = []
        table = requests.table
        self._limit = table.max_concurrency or len(table)
        self._in_flight = self._num_routed = 0
        self._due: list[tuple[int, int]] = []  # heap: time to send, request
        self._coming: list[tuple[int, int]] = []  # heap: time of arrival, request
        self._lead = None if requests.lead_ns is None else requests.lead_ns.tolist()
        self._least_lead = 0 if requests.lead_ns is None else int(requests.lead_ns.min())
        self._queue: deque[int] = deque()  # due, but held back by the concurrency limit
        self._children: dict[int, list[int]] = {}
        self._leader = None if table.leader is None else table.leader.tolist()
        self._rows: dict[int, list[int]] = {}  # that arrive with the first of a request's
        self._left: list[int] = []  # unfinished samples of a request, by its first row
        if table.leader is not None:
            self._left = np.bincount(table.leader, minlength=len(table)).tolist()
            for row in accepted.tolist():
                self._rows.setdefault(int(table.leader[row]), []).append(row)
        self.num_accepted = len(accepted)
        self._accepted = set(accepted.tolist()) if len(accepted) < len(table) else None
        self._roots = self._plan_turns(table)
        self._next_ns = int(table.arrival_ns[0])

    def _plan_turns(self, table: RequestTable) -> list[int]:
        parents = None if table.parent is None else table.parent.tolist()
        roots = []
        for i in range(len(table)):
            if self._leader is not None and self._leader[i] != i:
                continue
            if parents is None or parents[i] < 0:
                roots.append(i)
            else:
                self._children.setdefault(parents[i], []).append(i)
        return roots

    def connect(self, replicas: list[Replica]) -> None:
        """Stand in front of these replicas, and start sending."""
        self._replicas = replicas
        for replica in replicas:
            self.ranks += replica.ranks
            self.owners += [replica] * len(replica.ranks)
        self.env.process(self._send_roots())

    def _send_roots(self) -> simpy.events.ProcessGenerator:
        times = self.requests.table.arrival_ns[self._roots].tolist()
        for time_ns, roots in groupby(zip(times, self._roots, strict=True), key=itemgetter(0)):
            self._next_ns = time_ns
            if time_ns > self.horizon_ns:
                return
            for root in roots:
                heappush(self._due, root)
            if time_ns > self.env.now:
                yield self._at(time_ns)
            self._send_due()
        self._next_ns = FOREVER

    def next_ns(self) -> int:
        """Nobody of an open loop arrives before this time; FOREVER after the last."""
        first = self._next_ns + self._least_lead if self._next_ns < FOREVER else FOREVER
        return min(first, self._coming[0][0]) if self._coming else first

    def _at(self, time_ns: int) -> simpy.Event:
        event = self.env.event()
        event._ok, event._value = True, None  # triggered: what Event.succeed does, at a later time
        self.env.schedule(event, URGENT, time_ns - self.env.now)
        return event

    def _later(self, i: int, time_ns: int) -> None:
        heappush(self._due, (time_ns, i))
        self.then(time_ns, self._send_due)

    def then(self, time_ns: int, act: Callable[[], None]) -> None:
        """Do something at that time, before any iteration that ends then."""
        callbacks = self._at(time_ns).callbacks
        assert callbacks is not None
        callbacks.append(lambda _: act())

    def _send_due(self) -> None:
        """Send what is due, in the order of requests: an instant's events have no order."""
        while self._due and self._due[0][0] <= self.env.now:
            i = heappop(self._due)[1]
            if self._in_flight >= self._limit:
                self._queue.append(i)
            else:
                self._send(i)

    def _send(self, i: int) -> None:
        now_ns = int(self.env.now)
        self.recorder.sent_ns[i] = now_ns
        self._in_flight += 1
        if self._accepted is not None and i not in self._accepted:
            self._answered(i, now_ns)
            return
        if self._lead is None:
            self._arrive(i, now_ns)
            return
        arrival_ns = now_ns + self._lead[i]
        if arrival_ns <= self.horizon_ns:
            heappush(self._coming, (arrival_ns, i))
            self.then(arrival_ns, self._arrivals)

    def _arrivals(self) -> None:
        now_ns = int(self.env.now)
        while self._coming and self._coming[0][0] <= now_ns:
            self._arrive(heappop(self._coming)[1], now_ns)

    def _arrive(self, i: int, now_ns: int) -> None:
        """A request reaches the router."""
        seq = self.requests.make(i)
        if self.router.reads_cache:
            for replica in self._replicas:
                replica.settle(now_ns)
        target = self.router.choose(self._num_routed, seq, self.ranks)
        self._num_routed += 1
        self.ranks[target].receive(seq, now_ns)
        for row in self._rows.get(i, ())[1:]:
            self.recorder.sent_ns[row] = self.recorder.sent_ns[i]
            self.ranks[target].receive(self.requests.make(row), now_ns)
        self.owners[target].notify(now_ns)

    def finished(self, seq: Sequence, now_ns: int) -> None:
        """A request has its last token: send what waited for that."""
        i = seq.id
        if self._leader is not None:
            i = self._leader[i]
            self._left[i] -= 1
            if self._left[i]:
                return
        self._answered(i, now_ns)

    def _answered(self, i: int, now_ns: int) -> None:
        self._in_flight -= 1
        table = self.requests.table
        for child in self._children.pop(i, ()):
            delay = 0 if table.delay_ns is None else int(table.delay_ns[child])
            due = max(int(table.arrival_ns[child]), now_ns + delay, now_ns + 1)
            if due <= self.horizon_ns:
                self._later(child, due)
        if self._queue and now_ns + 1 <= self.horizon_ns:
            self._later(self._queue.popleft(), now_ns + 1)


def refuse_misfits(
    table: RequestTable,
    recorder: Recorder,
    most_tokens: int,
    max_model_len: int,
    has_place: NDArray[np.bool_] | None = None,
) -> Ints:
    """Indices of the requests that can be served; the others are counted as rejected."""
    total = table.prompt_tokens + table.output_tokens
    limit = min(most_tokens + 1, max_model_len or FOREVER)  # the last token needs no KV
    fits = total <= limit if has_place is None else (total <= limit) & has_place
    fits = whole_requests(fits, table.leader)
    for i in np.flatnonzero(~fits).tolist():
        recorder.status[i] = REJECTED
    return np.flatnonzero(fits)
