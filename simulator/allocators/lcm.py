"""Jenga's two-level pages (SOSP'25): one pool for layers whose pages differ in size.

A small page of a kind holds some tokens of all its layers; a large page is the least common
multiple of the small ones, so any kind can have any large page and carve it. `take` climbs the
paper's ladder (section 4): an empty small page of the same request, an empty large page, the large
page that only caches and was used least recently, anybody's empty small page, the small page that
only caches and was used least recently. Where all kinds have one size a large page is a small one,
and this is an ordinary pool with one queue of what may be evicted.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from heapq import heapify, heappop, heappush

from simulator.errors import ConfigError

Stamp = tuple[int, int, int]  # of eviction, lowest first: time of last use, queue, minus its block
NEVER: Stamp = (0, 0, 0)


class Page:
    """A small page: in use while `refs`, else cached while it has a `key`, else empty."""

    __slots__ = ("key", "large", "refs", "stamp")

    def __init__(self, large: Large) -> None:
        self.large = large
        self.refs = 0
        self.key: Hashable = None  # names its content
        self.stamp = NEVER


class Large:
    """A large page carved for one kind and, where the pool is request-aware, one request."""

    __slots__ = ("empty", "is_idle", "kind", "num_used", "number", "owner", "pages", "stamp")

    def __init__(self, number: int, kind: str, owner: int, num_pages: int) -> None:
        self.number = number
        self.kind = kind
        self.owner = owner
        self.pages = [Page(self) for _ in range(num_pages)]
        self.empty = self.pages[::-1] if num_pages > 1 else []
        self.num_used = 0
        self.is_idle = False  # nobody uses it, but it caches
        self.stamp = NEVER  # of its page to be kept longest, while idle


class LcmPool:
    """Small pages of several kinds, carved from large ones."""

    def __init__(
        self, num_bytes: float, small_bytes: Mapping[str, int], *, request_aware: bool = True
    ) -> None:
        if not small_bytes or min(small_bytes.values()) < 1:
            raise ConfigError("LcmPool: expected small pages of at least one byte")
        self.large_bytes = math.lcm(*small_bytes.values())
        self.num_large = int(num_bytes // self.large_bytes)
        self.per_large = {kind: self.large_bytes // size for kind, size in small_bytes.items()}
        self.request_aware = request_aware
        self.cached: dict[Hashable, Page] = {}  # by content, those in use included
        self.spare = dict.fromkeys(small_bytes, 0)  # not in use, in large pages that are
        self.num_idle = 0
        self._free = list(range(self.num_large))[::-1]
        self._made: dict[int, Large] = {}  # as they were last carved
        # Large pages in use that have an empty small one, by their owner.
        self._open: dict[str, dict[int, dict[Large, None]]] = {kind: {} for kind in small_bytes}
        # What may be evicted, by stamp; entries whose page has been used since are passed over.
        self._idle: list[tuple[Stamp, int, int, Large]] = []
        self._loose: dict[str, list[tuple[Stamp, int, int, Page]]] = {
            kind: [] for kind in small_bytes
        }
        self._serial = 0

    @property
    def num_available(self) -> int:
        """Large pages that nobody uses, whether or not they cache."""
        return len(self._free) + self.num_idle

    def lacking(self, needs: Iterable[tuple[str, int]]) -> int:
        """Large pages that so many small ones of each kind need beside what is spare."""
        total = 0
        for kind, num in needs:
            short = num - self.spare[kind]
            if short > 0:
                total += -(-short // self.per_large[kind])
        return total

    def take(self, kind: str, owner: int, may_open: bool = True) -> Page | None:
        """A small page; None where everything is in use. `may_open`: carve a new large page."""
        if self.per_large[kind] == 1:
            return self._take_whole(kind, owner)
        aware = self.request_aware
        large = self._of(kind, owner) if aware else self._of_anybody(kind)
        if large is None and may_open:
            large = self._carve(kind, owner)
        if large is None and aware:
            large = self._of_anybody(kind)
        if large is None:
            page = self._evict_small(kind)
            if page is None:
                return None
        else:
            page = large.empty.pop()
            if not large.empty:
                self._close(large)
        self._use(page)
        page.refs = 1
        return page

    def _take_whole(self, kind: str, owner: int) -> Page | None:
        """The only small page of a large one: no ladder to climb."""
        large = self._carve(kind, owner)
        if large is None:
            return None
        page = large.pages[0]
        page.refs = large.num_used = 1
        return page

    def pin(self, page: Page) -> None:
        """One more holder of a page in use or cached."""
        if page.refs == 0:
            self._use(page)
        page.refs += 1

    def give(self, page: Page, stamp: Stamp) -> None:
        """One holder less; the last leaves it empty, or cached where it has a key."""
        if page.refs < 1:
            raise ConfigError(f"LcmPool: a page of large page {page.large.number} is given twice")
        page.refs -= 1
        if page.refs:
            return
        page.stamp = stamp
        large = page.large
        kind = large.kind
        large.num_used -= 1
        if len(large.pages) == 1:
            if page.key is None:
                self._free.append(large.number)
            else:
                self._rest(large)
            return
        if page.key is None:
            large.empty.append(page)
        if large.num_used:
            self.spare[kind] += 1
            if page.key is not None:
                self._push_loose(page)
            elif len(large.empty) == 1:
                self._open[kind].setdefault(large.owner, {})[large] = None
            return
        self.spare[kind] -= len(large.pages) - 1
        if len(large.empty) == len(large.pages):
            self._return(large)
        else:
            self._rest(large)

    def name(self, page: Page, key: Hashable) -> None:
        """The page's content can be found under `key`, unless it or another can already."""
        if page.key is None and key not in self.cached:
            page.key = key
            self.cached[key] = page

    def _use(self, page: Page) -> None:
        large = page.large
        if large.num_used:
            self.spare[large.kind] -= 1
        else:
            self.spare[large.kind] += len(large.pages) - 1
            if large.is_idle:
                large.is_idle = False
                self.num_idle -= 1
                if large.empty:
                    self._open[large.kind].setdefault(large.owner, {})[large] = None
                for other in large.pages:
                    if other.key is not None and other is not page:
                        self._push_loose(other)
        large.num_used += 1

    def _rest(self, large: Large) -> None:
        if len(large.pages) > 1:
            self._close(large)
        large.is_idle = True
        self.num_idle += 1
        large.stamp = max(page.stamp for page in large.pages if page.key is not None)
        if len(self._idle) > 2 * self.num_idle + 64:
            self._idle = [entry for entry in self._idle if self._is_due(entry)]
            heapify(self._idle)
        self._serial += 1
        heappush(self._idle, (large.stamp, large.number, self._serial, large))

    def _is_due(self, entry: tuple[Stamp, int, int, Large]) -> bool:
        return entry[3].is_idle and entry[3].stamp == entry[0]

    def _push_loose(self, page: Page) -> None:
        heap = self._loose[page.large.kind]
        if len(heap) > 2 * self.spare[page.large.kind] + 64:
            heap[:] = [entry for entry in heap if _is_loose(entry)]
            heapify(heap)
        self._serial += 1
        heappush(heap, (page.stamp, page.large.number, self._serial, page))

    def _of(self, kind: str, owner: int) -> Large | None:
        for large in self._open[kind].get(owner, ()):
            return large
        return None

    def _of_anybody(self, kind: str) -> Large | None:
        for owned in self._open[kind].values():
            for large in owned:
                return large
        return None

    def _carve(self, kind: str, owner: int) -> Large | None:
        if not self._free and not self._evict_large():
            return None
        number, num_pages = self._free.pop(), self.per_large[kind]
        large = self._made.get(number)
        if large is None or len(large.pages) != num_pages:
            large = self._made[number] = Large(number, kind, owner, num_pages)
        large.kind, large.owner = kind, owner
        if num_pages > 1:
            self._open[kind].setdefault(owner, {})[large] = None
        return large

    def _evict_large(self) -> bool:
        while self._idle:
            entry = heappop(self._idle)
            if self._is_due(entry):
                large = entry[3]
                large.is_idle = False
                self.num_idle -= 1
                for page in large.pages:
                    if page.key is not None:
                        self._forget(page)
                        if len(large.pages) > 1:
                            large.empty.append(page)
                self._return(large)
                return True
        return False

    def _evict_small(self, kind: str) -> Page | None:
        heap = self._loose[kind]
        while heap:
            entry = heappop(heap)
            if _is_loose(entry):
                self._forget(entry[3])
                return entry[3]
        return None

    def _forget(self, page: Page) -> None:
        if page.key is not None:
            del self.cached[page.key]
            page.key = None

    def _close(self, large: Large) -> None:
        mine = self._open[large.kind].get(large.owner)
        if mine is not None:
            mine.pop(large, None)
            if not mine:
                del self._open[large.kind][large.owner]

    def _return(self, large: Large) -> None:
        if len(large.pages) > 1:
            self._close(large)
        self._free.append(large.number)


def _is_loose(entry: tuple[Stamp, int, int, Page]) -> bool:
    page = entry[3]
    cached = page.refs == 0 and page.key is not None
    return cached and page.stamp == entry[0] and not page.large.is_idle
