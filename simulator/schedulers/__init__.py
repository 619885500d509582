"""Schedulers: what one iteration computes. One frozen dataclass a file; a dict registers it.

`plan(lane)` decides through the lane's verbs (`decode`, `extend`, `admit`, `preempt`), which keep
the books; it must not read `Sequence.output_tokens`. It returns for how many iterations it would
plan exactly the same if nobody arrives, finishes or runs out of pages (0 = nothing to do).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from simulator.schedulers.edf import Edf
from simulator.schedulers.fastswitch import FastSwitch
from simulator.schedulers.kv_aware import KvAware
from simulator.schedulers.orca import Orca
from simulator.schedulers.rpm import Rpm
from simulator.schedulers.sarathi import Sarathi
from simulator.schedulers.static import Static
from simulator.schedulers.vllm_v0 import VllmV0
from simulator.schedulers.vllm_v1 import VllmV1
from simulator.schedulers.vtc import Vtc

if TYPE_CHECKING:
    from simulator.schedulers.view import LaneView


class Scheduler(Protocol):
    """The policy of one iteration; frozen, so one object serves every lane."""

    @property
    def by_priority(self) -> bool:
        """Waiting requests are ordered by priority instead of arrival."""
        ...

    @property
    def arrivals_wait(self) -> bool:
        """While somebody waits who could not be admitted, a newcomer cannot be either."""
        ...

    def longest_context(self, max_num_tokens: int) -> int:
        """Most tokens of a sequence it can ever compute under that token budget."""
        ...

    def plan(self, lane: LaneView) -> int: ...

    # May also have `clash(allocator)`, why it cannot run on such memory ("" = it can),
    # `queue(table) -> WaitingQueue`, the waiting requests of a rank in its own order,
    # `takes(table)`, which requests are not turned away at the door: bool [num_requests],
    # `under(slo)`, itself with the targets of an experiment,
    # and `group_space`, where the KV of several sequences goes: then those of a request fork from
    # one prompt, and are admitted and preempted together. Else each is a request of its own.


SCHEDULERS: dict[str, type] = {
    "vllm_v1": VllmV1,
    "vllm_v0": VllmV0,
    "static": Static,
    "orca": Orca,
    "sarathi": Sarathi,
    "vtc": Vtc,
    "rpm": Rpm,
    "edf": Edf,
    "kv_aware": KvAware,
    "fastswitch": FastSwitch,
}

__all__ = [
    "SCHEDULERS",
    "Edf",
    "FastSwitch",
    "KvAware",
    "Orca",
    "Rpm",
    "Sarathi",
    "Scheduler",
    "Static",
    "VllmV0",
    "VllmV1",
    "Vtc",
]
