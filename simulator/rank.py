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

    def __delitem__(self, index: int) -> None:
        del self._heap[index]
        heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._heap)


class Rank:
    """One attention rank: a waiting queue and a KV pool; what a router sees."""

    __slots__ = (
        "allocator",
        "blocked",
        "by_priority",
        "fresh",
        "incoming",
        "index",
        "is_open",
        "lanes",
        "layout",
        "now_ns",
        "num_evictions",
        "on_finish",
        "outstanding_tokens",
        "recorder",
        "reorders",
        "running",
        "starved",
        "waiting",
        "warm",
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
        self.reorders = waiting is not None  # who is next may change while nothing happens
        if waiting is not None:
            self.waiting = waiting
        self.fresh: deque[tuple[int, Sequence]] = deque()  # arrived, not yet seen by the scheduler
        self.blocked = False  # nobody can be admitted before somebody finishes or is evicted
        self.now_ns = 0  # of the plan being made
        self.running: dict[Sequence, None] = {}  # in admission order, over all lanes
        self.lanes: dict[int, LaneBooks] = {}  # by key
        self.starved: set[int] = set()  # lanes that wait for pages of a batch in flight
        self.num_evictions = 0
        self.warm: set[int] = set()  # size classes of iterations with chunks that have been run
        self.outstanding_tokens = 0
        self.on_finish = on_finish
        self.incoming = 0  # places reserved: for who runs on another rank, for who is to fork
        self.is_open = True  # takes requests

    @property
    def num_waiting(self) -> int:
        return len(self.waiting) + len(self.fresh)

    @property
    def num_running(self) -> int:
        return len(self.running)

    def cached_prefix(self, seq: Sequence) -> int:
        return self.allocator.match(seq)[0]

    # --- what a router that moves requests sees; pages are as of the last iteration booked --------

    @property
    def num_pages(self) -> int:
        return self.allocator.num_pages

    @property
    def used_pages(self) -> int:
        return self.allocator.num_pages - self.allocator.free_pages

    @property
    def block_tokens(self) -> int:
        return self.layout.block_tokens

    @property
    def block_pages(self) -> int:
        return self.layout.most

    @property
    def head_pages(self) -> int:
        """Whole demand of the first in the queue."""
        if not self.num_waiting:
            return 0
        head = self.waiting[0] if self.waiting else self.fresh[0][1]
        return self.layout.pages(head.prefill_tokens)

    @property
    def queued_pages(self) -> int:
        """Of everybody in the queue, by their prompts; O(running), as queues may be long."""
        if not self.num_waiting:
            return 0
        tokens = self.outstanding_tokens - sum(seq.prompt_tokens for seq in self.running)
        return max(self.head_pages, -(-tokens // self.block_tokens) * self.block_pages)

    @property
    def num_urgent(self) -> int:
        return sum(seq.priority < 0 for seq in self.running)

    def catch_up(self) -> None:
        """Book what the lanes have let run, so that pages and sequences are as they are now."""
        lagging = [lane for lane in self.lanes.values() if lane.behind]
        for lane in lagging:
            lane.catch_up()
        for lane in lagging:
            lane.look()

    def receive(self, seq: Sequence, now_ns: int) -> None:
        """A request has arrived; the scheduler sees it once `reveal` has been told so."""
        self.fresh.append((now_ns, seq))
        self.outstanding_tokens += seq.prompt_tokens
        self.recorder.target[seq.id] = self.index

    def reveal(self, until_ns: int) -> None:
        """Show the scheduler whoever has arrived by then."""
        fresh = self.fresh
        while fresh and fresh[0][0] <= until_ns:
            self.waiting.append(fresh.popleft()[1])
            if self.by_priority:
                self.blocked = False
