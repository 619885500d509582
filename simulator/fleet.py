"""Auto-scaling: instances are started when freeness runs short and drained when there is plenty.

A drained instance takes nobody new; its running requests migrate away where that is on, its queue
is served out, and then it is off. Its GPUs are paid for from the decision to start it until then.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from simulator.cluster import Clients
from simulator.migration import CopyTime, Engine, Migrations
from simulator.rank import Rank
from simulator.recorder import Ints, as_ints
from simulator.replica import Replica
from simulator.routers.llumnix import Llumnix

OFF, STARTING, OPEN, DRAINING = range(4)


@dataclass(slots=True)
class Fleet:
    """Which ranks are up, by the rule of a policy."""

    policy: Llumnix
    engine: Engine
    ranks: list[Rank]
    state: list[int] = field(default_factory=list)  # of each rank
    since_ns: list[int] = field(default_factory=list)  # up; -1 = off
    log: array[int] = field(default_factory=lambda: array("q"))  # rank, from, to

    def __post_init__(self) -> None:
        num = self.policy.initial_instances if self.policy.scale else 0
        for rank in self.ranks:
            is_open = not num or rank.index < num
            rank.is_open = is_open
            self.state.append(OPEN if is_open else OFF)
            self.since_ns.append(0 if is_open else -1)
        if self.policy.scale:
            self._later(self.policy.scale_interval_s, self._tick)

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self.engine.then(self.engine.now() + max(1, round(seconds * 1e9)), act)

    def _tick(self) -> None:
        if self.engine.is_over():
            return
        self._switch_off()
        policy, state = self.policy, self.state
        mean = policy.mean_freeness(self.ranks)
        num_up = sum(each in (OPEN, STARTING) for each in state)
        if mean < policy.up_below and STARTING not in state:
            self._start_one()
        elif mean > policy.down_above and num_up > policy.min_instances:
            idlest = min(
                (rank for rank in self.ranks if rank.is_open),
                key=lambda rank: (rank.num_running + rank.num_waiting, -rank.index),
            )
            idlest.is_open = False
            state[idlest.index] = DRAINING
            self._switch_off()
        self._later(policy.scale_interval_s, self._tick)

    def _start_one(self) -> None:
        """One that is being drained comes back at once; else one that is off starts."""
        for wanted in (DRAINING, OFF):
            if wanted not in self.state:
                continue
            index = self.state.index(wanted)
            if wanted == DRAINING:
                self._open(index)
            else:
                self.state[index] = STARTING
                self.since_ns[index] = self.engine.now()
                self._later(self.policy.startup_s, partial(self._open, index))
            return

    def _open(self, index: int) -> None:
        self.state[index] = OPEN
        self.ranks[index].is_open = True

    def _switch_off(self) -> None:
        for rank in self.ranks:
            is_empty = not (rank.num_running or rank.num_waiting or rank.incoming)
            idle_pages = rank.allocator.free_pages == rank.num_pages
            if self.state[rank.index] == DRAINING and is_empty and idle_pages:
                self.state[rank.index] = OFF
                self._paid_until(rank.index, self.engine.now())

    def _paid_until(self, index: int, now_ns: int) -> None:
        self.log.extend((index, self.since_ns[index], now_ns))
        self.since_ns[index] = -1

    def close(self, end_ns: int) -> None:
        """The run is over: whoever is up is paid for until then."""
        for index, since_ns in enumerate(self.since_ns):
            if since_ns >= 0:
                self._paid_until(index, max(since_ns, end_ns))

    def rows(self) -> Ints:
        """[num_intervals, 3]: rank, up from, up to (ns)."""
        return as_ints(self.log).reshape(-1, 3)


def mobile(
    policy: Llumnix, clients: Clients, replicas: list[Replica], copy_ns: CopyTime | None
) -> tuple[Migrations, Fleet]:
    """Migration and auto-scaling around the replicas, as the policy asks for them."""
    env, recorder, num_requests = clients.env, clients.recorder, clients.num_accepted
    around = Engine(
        now=lambda: int(env.now),
        then=clients.then,
        copy_ns=copy_ns or (lambda source, target, num_pages: 0),
        is_over=lambda: recorder.num_finished >= num_requests or env.now > clients.horizon_ns,
    )
    moves = Migrations(policy, around, replicas)
    return moves, Fleet(policy, around, moves.ranks)
