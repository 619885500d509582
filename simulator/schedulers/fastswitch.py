"""Priorities that change while requests run, served by swapping: FastSwitch and its baseline.

As vLLM before V1 computes (prompts first, whole, in iterations of their own), but the scheduler
goes by priorities that are drawn again every `1 / priority_frequency` iterations: whoever waits or
is swapped out takes the place of running requests of lower priority, whose KV goes to the host. The
three parts of FastSwitch (arXiv 2411.18424) are options, all off in the baseline: copies of
adjoining blocks at once (`swap_group_pages`), copies beside decoding (`asynchronous`) and copies
kept on the host while their request runs and over the turns of a conversation (`reuse`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

from simulator.errors import ConfigError
from simulator.request import RequestTable, Sequence
from simulator.schedulers.steps import UNTIL_CHANGE, WholePrompts
from simulator.schedulers.swapping import SwapSpace

if TYPE_CHECKING:
    from simulator.schedulers.view import LaneView

PRIORITIES = ("arrival", "random", "markov")
KEEPS = 0.8  # chance that a conversation keeps its priority at a change, of "markov" (assumed)
_MASK = (1 << 64) - 1


class SwitchView(Protocol):
    """What a lane that switches offers beside the verbs of `LaneView`."""

    @property
    def num_iterations(self) -> int:
        """Iterations so far."""
        ...

    @property
    def num_copying(self) -> int:
        """Requests whose KV is being copied."""
        ...

    def conversation(self, seq: Sequence) -> int:
        """The conversation a request is a turn of."""
        ...

    def land(self) -> None:
        """Copies that have ended: pages are free, requests run."""
        ...

    def outside(self) -> list[Sequence]:
        """Requests that wait or whose KV is on the host."""
        ...

    def room(self, seq: Sequence, spare_pages: int) -> int:
        """Free pages left if the request came in; pages on their way out count as `coming`."""
        ...

    @property
    def coming(self) -> int:
        """Pages that will be free when copies have ended."""
        ...

    def pages_of(self, seq: Sequence) -> int:
        """Pages a decoding request would leave."""
        ...

    def bring_in(self, seq: Sequence, budget: int) -> int:
        """Let a request in that has room; returns the budget left, or -1: the budget is used up."""
        ...

    def send_out(self, seq: Sequence, now: bool) -> None:
        """KV of a decoding request goes to the host; `now`: its pages are needed at once."""
        ...

    def wait_for_pages(self) -> bool:
        """Wait for the first of the copies that leave; False: there is none."""
        ...


class SwitchQueue:
    """Waiting requests in order of arrival, any of which may be put first."""

    __slots__ = ("_items",)

    def __init__(self) -> None:
        self._items: list[Sequence] = []

    def append(self, seq: Sequence) -> None:
        self._items.append(seq)

    def appendleft(self, seq: Sequence) -> None:
        self._items.insert(0, seq)

    def popleft(self) -> Sequence:
        return self._items.pop(0)

    def put_first(self, seq: Sequence) -> None:
        self._items.remove(seq)
        self._items.insert(0, seq)

    def __getitem__(self, index: int) -> Sequence:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)


@dataclass(frozen=True, slots=True, kw_only=True)
class FastSwitch(WholePrompts):
    """Priorities drawn again while requests run, and context switches by swapping."""

    arrivals_wait = False

    watermark: float = 0.01  # share of the pages that admission leaves free
    priorities: str = "random"  # how they change: random, markov, or arrival (never)
    priority_frequency: float = 0.02  # changes an iteration
    priority_seed: int = 0
    swap_pages: int = 0  # of the host's memory; 0 = as many as the GPU has
    swap_copy_latency_s: float = 8e-6  # of one copy; a page is 2 a layer
    swap_group_pages: int = 1  # adjoining pages in one copy (FastSwitch: about 20)
    asynchronous: bool = False  # copies beside decoding where that costs less
    reuse: bool = False  # copies stay on the host; only what is new is copied again

    def __post_init__(self) -> None:
        if self.priorities not in PRIORITIES:
            raise ConfigError(
                f"scheduler.priorities: expected one of {', '.join(PRIORITIES)} "
                f"(got {self.priorities!r})"
            )
        if not 0 < self.priority_frequency <= 1 or not 0 <= self.watermark < 1:
            raise ConfigError(
                "scheduler: expected 0 < priority_frequency <= 1 and 0 <= watermark < 1 "
                f"(got {self.priority_frequency!r} and {self.watermark!r})"
            )
        self.switch_space()

    def switch_space(self) -> SwapSpace:
        """Where KV goes, and what copies cost."""
        return SwapSpace(
            pages=self.swap_pages,
            copy_latency_s=self.swap_copy_latency_s,
            group_pages=self.swap_group_pages,
        )

    def clash(self, allocator: object) -> str:
        """Why it cannot run on such memory; "" where it can."""
        if type(allocator).__name__ == "Paged":
            return ""
        return "swapping needs pages that nobody shares: allocator paged"

    def queue(self, table: RequestTable) -> SwitchQueue:
        """The waiting requests of one rank."""
        return SwitchQueue()

    def plan(self, lane: LaneView) -> int:
        return self._plan(lane, lane)  # type: ignore[arg-type]

    def _plan(self, lane: LaneView, switch: SwitchView) -> int:
        switch.land()
        outside = switch.outside()
        if outside:
            self._switch(lane, switch, outside)
        if lane.prefilling:
            return 1
        preempted = False
        while lane.decode():
            if not switch.wait_for_pages():
                switch.send_out(self._by_priority(lane, switch, lane.running())[-1], True)
                preempted = True
        if not lane.has_work:
            return 0
        return 1 if outside or preempted or switch.num_copying else UNTIL_CHANGE

    def _switch(self, lane: LaneView, switch: SwitchView, outside: list[Sequence]) -> None:
        """Let whoever has the highest priority in, in the place of who has a lower one."""
        epoch = self._epoch(switch)
        running = self._by_priority(lane, switch, lane.running())
        budget = lane.max_num_tokens
        for seq in self._by_priority(lane, switch, outside):
            mine = self.priority(switch.conversation(seq), epoch), seq.id
            spare = math.ceil(self.watermark * lane.num_pages) if lane.num_running else 0
            left = switch.room(seq, spare)
            full = lane.num_running >= lane.max_num_seqs
            victims: list[Sequence] = []
            gained = switch.coming
            while (left + gained < 0 or (full and not victims)) and running:
                victim = running[-1]
                if (self.priority(switch.conversation(victim), epoch), victim.id) < mine:
                    break
                victims.append(running.pop())
                gained += switch.pages_of(victim)
            if left + gained < 0 or (full and not victims):
                return
            for victim in victims:
                switch.send_out(victim, False)
            if switch.room(seq, spare) < 0:
                return  # until the copies of those who leave have ended
            budget = switch.bring_in(seq, budget)
            if budget < 0:
                return

    def _by_priority(
        self, lane: LaneView, switch: SwitchView, seqs: list[Sequence]
    ) -> list[Sequence]:
        epoch = self._epoch(switch)
        return sorted(
            seqs, key=lambda seq: (self.priority(switch.conversation(seq), epoch), seq.id)
        )

    def _epoch(self, switch: SwitchView) -> int:
        return int(switch.num_iterations * self.priority_frequency)

    def priority(self, conversation: int, epoch: int) -> float:
        """Smaller is served first; of all its turns alike, in [0, 1)."""
        if self.priorities == "arrival":
            return 0.0
        return _priority(
            self.priority_seed, conversation, epoch, KEEPS if self.priorities == "markov" else 0.0
        )


@lru_cache(maxsize=1 << 16)
def _priority(seed: int, conversation: int, epoch: int, keeps: float) -> float:
    """Of the latest change that it did not sleep through."""
    while epoch > 0 and _uniform(seed, conversation, epoch, 1) < keeps:
        epoch -= 1
    return _uniform(seed, conversation, epoch, 0)


def _uniform(*numbers: int) -> float:
    """A number in [0, 1) that depends on these alone (the mixing steps of SplitMix64)."""
    state = 0
    for number in numbers:
        state = (state + number + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return float(state >> 11) / float(1 << 53)
