"""Earliest deadline first: who must have a first token soonest is admitted next.

A request's deadline is the time it was sent and the TTFT it is promised: the experiment's
`slo.ttft`, or that of its class. Which requests run is all that this decides: batches are formed as
vLLM V1 forms them, and nobody who runs is preempted for an earlier deadline. A request whose
deadline has passed unserved is hopeless: it waits until nobody is left who can still be in time,
since serving it first would only make others late as well (the domino effect of plain EDF under
overload); among themselves the hopeless go by deadline. Who was preempted after a first token has
met or missed its deadline already, and comes back before all others, as in vLLM.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from simulator.errors import ConfigError
from simulator.request import RequestTable, Sequence
from simulator.schedulers.vllm_v1 import VllmV1
from simulator.spec import Slo

if TYPE_CHECKING:
    from simulator.schedulers.view import LaneView, WaitingQueue


@dataclass(frozen=True, slots=True, kw_only=True)
class Edf(VllmV1):
    """Earliest TTFT deadline first; those already late go last."""

    ttft_s: float = 0.0  # from sending to deadline; 0 = the experiment's slo.ttft
    class_ttft_s: tuple[float, ...] = ()  # of priority 0, 1, ...; the rest have ttft_s
    late_last: bool = True  # false = plain EDF: who is late stays the most urgent

    def __post_init__(self) -> None:
        VllmV1.__post_init__(self)
        if self.policy != "fcfs":
            raise ConfigError("scheduler.policy: EDF orders requests itself (got 'priority')")
        if self.ttft_s < 0:
            raise ConfigError(f"scheduler.ttft_s: expected a time >= 0 (got {self.ttft_s!r})")
        if any(not limit > 0 for limit in self.class_ttft_s):
            raise ConfigError("scheduler.class_ttft_s: expected times > 0")

    def under(self, slo: Slo) -> Edf:
        """This policy with the deadlines of an experiment.

        Raises:
            ConfigError: neither it nor the experiment has any.
        """
        if self.ttft_s or (self.class_ttft_s and slo.ttft_s == float("inf")):
            return self
        if slo.ttft_s == float("inf"):
            raise ConfigError(
                "scheduler edf: expected a deadline, slo.ttft or scheduler.ttft_s (got none)"
            )
        return replace(self, ttft_s=slo.ttft_s)

    @property
    def by_priority(self) -> bool:
        return True  # a newcomer may be the next

    @property
    def arrivals_wait(self) -> bool:
        return False

    def queue(self, table: RequestTable) -> WaitingQueue:
        """The waiting requests of one rank, by deadline."""
        return DeadlineQueue(self)

    def plan(self, lane: LaneView) -> int:
        waiting = lane.waiting
        assert isinstance(waiting, DeadlineQueue)
        waiting.update(lane)
        claim = VllmV1.plan(self, lane)
        # While somebody waits, deadlines pass: who is next may change at every iteration.
        return min(claim, 1) if waiting else claim

    def _preempt(self, lane: LaneView) -> bool:
        return lane.preempt_last()

    def allowance_ns(self, priority: int) -> int:
        """From sending to deadline; FOREVER-like where the class has none."""
        classes = self.class_ttft_s
        limit_s = classes[priority] if 0 <= priority < len(classes) else self.ttft_s
        return round(limit_s * 1e9) if limit_s else 1 << 62


class DeadlineQueue:
    """Waiting requests: preempted ones, then those in time by deadline, then the late ones.

    Time is that of the latest `update`, before each plan.
    """

    __slots__ = ("_due", "_incoming", "_late", "_policy", "_resumed")

    def __init__(self, policy: Edf) -> None:
        self._policy = policy
        self._incoming: list[Sequence] = []  # arrived since the latest update
        self._resumed: deque[Sequence] = deque()  # had a first token before they were preempted
        self._due: list[tuple[int, int, Sequence]] = []  # heap: deadline, number, request
        self._late: list[tuple[int, int, Sequence]] = []

    def __len__(self) -> int:
        return len(self._resumed) + len(self._due) + len(self._late) + len(self._incoming)

    def __getitem__(self, index: int) -> Sequence:
        if index == 0:
            if self._resumed:
                return self._resumed[0]
            if self._due or self._late:
                return (self._due or self._late)[0][2]
        everybody = [*self._resumed, *(each[2] for each in sorted(self._due) + sorted(self._late))]
        return [*everybody, *self._incoming][index]

    def append(self, seq: Sequence) -> None:
        self._incoming.append(seq)

    def appendleft(self, seq: Sequence) -> None:
        """A preempted request comes back."""
        if seq.generated_tokens:
            self._resumed.appendleft(seq)
        else:
            self._incoming.append(seq)

    def popleft(self) -> Sequence:
        if self._resumed:
            return self._resumed.popleft()
        if self._due or self._late:
            return heappop(self._due or self._late)[2]
        return self._incoming.pop(0)

    def update(self, lane: LaneView) -> None:
        """Let newcomers in, and set back those whose deadline has passed."""
        for seq in self._incoming:
            deadline = lane.sent_ns(seq) + self._policy.allowance_ns(seq.priority)
            heappush(self._due, (deadline, seq.id, seq))
        self._incoming.clear()
        now_ns, due = lane.now_ns, self._due
        while self._policy.late_last and due and due[0][0] <= now_ns:
            heappush(self._late, heappop(due))
