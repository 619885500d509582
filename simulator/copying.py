"""Lanes whose KV is copied beside their iterations, and comes or goes at times of its own."""

from __future__ import annotations

from collections.abc import Callable

from simulator.cluster import Clients
from simulator.costs.compiled import CompiledCost
from simulator.lane import Lane
from simulator.rank import Rank
from simulator.recorder import LaneLog
from simulator.replica import Replica
from simulator.setup import ReplicaKind, Setup

Then = Callable[[int, Callable[[], None]], None]  # at that time, do this and wake the replica


class CopyingLane(Lane):
    """A lane that is woken when a copy has ended."""

    __slots__ = ("at",)

    def __init__(self, key: int, rank: Rank, cost: CompiledCost, log: LaneLog) -> None:
        super().__init__(key, rank, cost, log)
        self.at: Then = lambda time_ns, act: None  # set by the engine, which has the clock


def copies(setup: Setup) -> bool:
    """Whether KV comes and goes at times of its own, which nobody knows before the run."""
    is_asynchronous = getattr(setup.scheduler, "asynchronous", False)
    return is_asynchronous or any(kind.host is not None for kind in setup.kinds)


def keeps_time(setup: Setup, kind: ReplicaKind) -> bool:
    """Whether no iteration may be run ahead, as a batch or rank without work awaits a copy."""
    switches = hasattr(setup.scheduler, "switch_space") and kind.num_ranks > 1
    return copies(setup) and (kind.num_lanes > 1 or switches)


def connect(replica: Replica, clients: Clients) -> None:
    """Give lanes that copy KV the clock."""

    def at(time_ns: int, act: Callable[[], None]) -> None:
        def end() -> None:
            act()
            replica.notify(time_ns)

        clients.then(time_ns, end)

    for batch in replica.batches:
        for lane in batch.lanes:
            if isinstance(lane, CopyingLane):
                lane.at = at
