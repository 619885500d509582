"""One attention rank: the waiting queue and the KV pages that its lanes share.

With pipeline parallelism a rank has several lanes (one for each batch in flight); a router sees the
rank as a whole.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from typing import Protocol

from simulator.allocators import KVAllocator
from simulator.batch import PageLayout
from simulator.recorder import Recorder
from simulator.request import Sequence
from simulator.schedulers.view import WaitingQueue


class LaneBooks(Protocol):
    """What a rank knows of its lanes."""

    behind: int  # iterations that have ended but are not yet booked
    in_flight: bool

    def catch_up(self) -> None: ...
    def look(self) -> None: ...
    def evict(self, seq: Sequence) -> None: ...
    def generated_by(self, seq: Sequence) -> int: ...


class PriorityQueue:
    """Waiting requests by (priority, arrival), with the verbs of the FCFS deque."""

    __slots__ = ("_heap",)

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Sequence]] = []

    def append(self, seq: Sequence) -> None:
        heapq.heappush(self._heap, (seq.priority, seq.id, seq))

    appendleft = append

    def popleft(self) -> Sequence:
        return heapq.heappop(self._heap)[2]

    def __getitem__(self, index: int) -> Sequence:
        return self._heap[index][2]

    def __len__(self) -> int:
        return len(self._heap)


class Rank:
    """One attention rank: a waiting queue and a KV pool; what a router sees."""

    __slots__ = (
        "allocator",
        "blocked",
        "by_priority",
        "index",
        "lanes",
        "layout",
        "now_ns",
        "num_evictions",
        "on_finish",
        "outstanding_tokens",
        "recorder",
        "running",
        "starved",
        "waiting",
    )

    def __init__(
        self,
        index: int,
        allocator: KVAllocator,
        layout: PageLayout,
        recorder: Recorder,
        by_priority: bool = False,
        on_finish: Callable[[Sequence, int], None] | None = None,
        waiting: WaitingQueue | None = None,
    ) -> None:
        self.index = index
        self.allocator = allocator
        self.layout = layout
        self.recorder = recorder
        self.by_priority = by_priority
        self.waiting: WaitingQueue = PriorityQueue() if by_priority else deque()
        if waiting is not None:
            self.waiting = waiting
        self.blocked = False  # nobody can be admitted before somebody finishes or is evicted
        self.now_ns = 0  # of the plan being made
        self.running: dict[Sequence, None] = {}  # in admission order, over all lanes
        self.lanes: dict[int, LaneBooks] = {}  # by key
        self.starved: set[int] = set()  # lanes that wait for pages of a batch in flight
        self.num_evictions = 0
        self.outstanding_tokens = 0
        self.on_finish = on_finish

    @property
    def num_waiting(self) -> int:
        return len(self.waiting)

    @property
    def num_running(self) -> int:
        return len(self.running)

    def cached_prefix(self, seq: Sequence) -> int:
        return self.allocator.match(seq)[0]

    def catch_up(self) -> None:
        """Book what the lanes have let run, so that pages and sequences are as they are now."""
        lagging = [lane for lane in self.lanes.values() if lane.behind]
        for lane in lagging:
            lane.catch_up()
        for lane in lagging:
            lane.look()

    def receive(self, seq: Sequence) -> None:
        self.waiting.append(seq)
        if self.by_priority:
            self.blocked = False
        self.outstanding_tokens += seq.prompt_tokens
        self.recorder.target[seq.id] = self.index
