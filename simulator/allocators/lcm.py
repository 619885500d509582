"""Jenga's two-level pages (SOSP'25): one pool for layers whose pages differ in size.

A small page of a type holds some tokens of all its layers; a large page is the least common
multiple of the small ones, so any type can have any large page and carve it. `take` climbs the
paper's ladder (section 4): an empty small page of the same request, an empty large page, the least
recently used large page that only caches, anybody's empty small page, the least recently used small
page that only caches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from simulator.errors import ConfigError

EMPTY, USED, CACHED = range(3)


@dataclass(slots=True, eq=False)
class Large:
    """A large page carved for one type and, where the pool is request-aware, one request."""

    number: int
    kind: str
    owner: int
    states: list[int]  # of its small pages
    last_access: list[int] = field(default_factory=list)

    def count(self, state: int) -> int:
        return self.states.count(state)


Small = tuple[Large, int]  # a large page, and which of its small ones


class LcmPool:
    """Small pages of several types, carved from large ones."""

    def __init__(
        self, num_bytes: int, small_bytes: Mapping[str, int], *, request_aware: bool = True
    ) -> None:
        if not small_bytes or min(small_bytes.values()) < 1:
            raise ConfigError("LcmPool: expected small pages of at least one byte")
        self.large_bytes = math.lcm(*small_bytes.values())
        self.num_large = num_bytes // self.large_bytes
        self.per_large = {kind: self.large_bytes // size for kind, size in small_bytes.items()}
        self.request_aware = request_aware
        self._free = list(range(self.num_large))[::-1]
        self._carved: dict[str, dict[Large, None]] = {kind: {} for kind in small_bytes}
        # Of those, the ones with an empty small page, by their owner.
        self._open: dict[str, dict[int, dict[Large, None]]] = {kind: {} for kind in small_bytes}
        self._clock = 0

    @property
    def num_free_large(self) -> int:
        return len(self._free)

    def take(self, kind: str, request: int) -> Small | None:
        """A small page; None where everything is in use."""
        self._clock += 1
        steps = [self._of_request, self._new_large, self._evict_large, self._of_anybody]
        if not self.request_aware:
            steps = [self._of_anybody, self._new_large, self._evict_large]
        for step in steps:
            found = step(kind, request)
            if found is not None:
                return self._use(found)
        found = self._evict_small(kind)
        return None if found is None else self._use(found)

    def touch(self, page: Small) -> None:
        """The page's content was read now."""
        self._clock += 1
        page[0].last_access[page[1]] = self._clock

    def give(self, page: Small, *, keep: bool = False) -> None:
        """Nobody uses the page any more; `keep` its content as a cached prefix while room lasts."""
        large, index = page
        if large.states[index] != USED:
            raise ConfigError(f"LcmPool: page {large.number}.{index} is given back twice")
        large.states[index] = CACHED if keep else EMPTY
        if not keep:
            self._open[large.kind].setdefault(large.owner, {})[large] = None
        self._return_if_empty(large)

    def _use(self, page: Small) -> Small:
        large, index = page
        large.states[index] = USED
        large.last_access[index] = self._clock
        if EMPTY not in large.states:
            self._close(large)
        return page

    def _close(self, large: Large) -> None:
        mine = self._open[large.kind].get(large.owner, {})
        mine.pop(large, None)
        if not mine:
            self._open[large.kind].pop(large.owner, None)

    def _of_request(self, kind: str, request: int) -> Small | None:
        for large in self._open[kind].get(request, ()):
            return large, large.states.index(EMPTY)
        return None

    def _of_anybody(self, kind: str, request: int) -> Small | None:
        for owned in self._open[kind].values():
            for large in owned:
                return large, large.states.index(EMPTY)
        return None

    def _new_large(self, kind: str, request: int) -> Small | None:
        if not self._free:
            return None
        num = self.per_large[kind]
        large = Large(self._free.pop(), kind, request, [EMPTY] * num, [0] * num)
        self._carved[kind][large] = None
        self._open[kind].setdefault(request, {})[large] = None
        return large, 0

    def _evict_large(self, kind: str, request: int) -> Small | None:
        idle = [
            large
            for carved in self._carved.values()
            for large in carved
            if USED not in large.states
        ]
        if not idle:
            return None
        oldest = min(idle, key=lambda large: (max(large.last_access), large.number))
        oldest.states = [EMPTY] * len(oldest.states)
        self._return_if_empty(oldest)
        return self._new_large(kind, request)

    def _evict_small(self, kind: str) -> Small | None:
        cached = [
            (large.last_access[index], large.number, index, large)
            for large in self._carved[kind]
            for index, state in enumerate(large.states)
            if state == CACHED
        ]
        if not cached:
            return None
        _, _, index, large = min(cached, key=lambda entry: entry[:3])
        return large, index

    def _return_if_empty(self, large: Large) -> None:
        if large.count(EMPTY) == len(large.states):
            del self._carved[large.kind][large]
            self._close(large)
            self._free.append(large.number)
