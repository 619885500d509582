"""Routers: which attention rank serves a request. Frozen dataclasses; a dict registers them.

`choose` sees the ranks as they are at the arrival (finished iterations committed, the running one
not). A router whose choice depends on the request's number alone says so with `is_static`; its
arrivals are then dealt out before the run, which saves an event each.
"""

from __future__ import annotations

from collections.abc import Sequence as Ranks
from dataclasses import dataclass
from typing import Protocol

from simulator.request import Sequence
from simulator.routers.llumnix import InstanceView, Llumnix

MASK = (1 << 64) - 1


class RankView(InstanceView, Protocol):
    """Load of one attention rank, as a router sees it."""

    outstanding_tokens: int  # prompt tokens of every request it has not finished

    def cached_prefix(self, seq: Sequence) -> int: ...


class Router(Protocol):
    @property
    def is_static(self) -> bool: ...

    @property
    def reads_cache(self) -> bool: ...

    def choose(self, number: int, seq: Sequence, ranks: Ranks[RankView]) -> int:
        """Index of the rank for the `number`-th request routed."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRobin:
    """Each rank in turn."""

    is_static = True
    reads_cache = False

    def choose(self, number: int, seq: Sequence, ranks: Ranks[RankView]) -> int:
        return number % len(ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Random:
    """Any rank, whatever it has to do: a Kubernetes service with a connection a request."""

    is_static = False
    reads_cache = False
    seed: int = 0

    def choose(self, number: int, seq: Sequence, ranks: Ranks[RankView]) -> int:
        # A hash of the request's number (splitmix64): no state, so that runs repeat.
        x = ((self.seed << 32) + number + 1) * 0x9E3779B97F4A7C15 & MASK
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
        x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
        return (x ^ x >> 31) % len(ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinShortestQueue:
    """Fewest waiting requests, then fewest running, then the first."""

    is_static = False
    reads_cache = False

    def choose(self, number: int, seq: Sequence, ranks: Ranks[RankView]) -> int:
        return min(range(len(ranks)), key=lambda i: (ranks[i].num_waiting, ranks[i].num_running, i))


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastLoaded:
    """Smallest 4 x waiting + running: the score of vLLM's own data-parallel balancer."""

    is_static = False
    reads_cache = False
    waiting_weight: float = 4.0

    def choose(self, number: int, seq: Sequence, ranks: Ranks[RankView]) -> int:
        weight = self.waiting_weight
        return min(
            range(len(ranks)),
            key=lambda i: (weight * ranks[i].num_waiting + ranks[i].num_running, i),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LeastTokens:
    """Fewest prompt tokens among unfinished requests."""

    is_static = False
    reads_cache = False

    def choose(self, number: int, seq: Sequence, ranks: Ranks[RankView]) -> int:
        return min(range(len(ranks)), key=lambda i: (ranks[i].outstanding_tokens, i))


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixAware:
    """Longest cached prefix, unless that rank has `max_imbalance` more requests than the idlest.

    The rule of SGLang's cache-aware balancer: cache affinity while loads are even, else load.
    """

    is_static = False
    reads_cache = True
    max_imbalance: int = 32

    def choose(self, number: int, seq: Sequence, ranks: Ranks[RankView]) -> int:
        loads = [rank.num_waiting + rank.num_running for rank in ranks]
        idlest = min(loads)
        open_ranks = [i for i, load in enumerate(loads) if load - idlest < self.max_imbalance]
        return max(open_ranks, key=lambda i: (ranks[i].cached_prefix(seq), -loads[i], -i))


ROUTERS: dict[str, type] = {
    "round_robin": RoundRobin,
    "random": Random,
    "join_shortest_queue": JoinShortestQueue,
    "least_loaded": LeastLoaded,
    "least_tokens": LeastTokens,
    "prefix_aware": PrefixAware,
    "llumnix": Llumnix,
}
