"""Pages of several kinds of layers for one request: who holds which, windows, and prefix hits.

A kind is what one block table serves: the layers that keep every token, or those with one window.
A sequence whose next query stands at position q needs, of a kind with window w, the blocks of
tokens q - w + 1 to the last that it computes: those of a chunk in flight as well. What has left the
window is given back at the next plan, as in vLLM's managers.

Prefix hits are valid for every kind: those that keep everything need the whole prefix, a window
only its last w - 1 tokens (vLLM's hybrid coordinator; Jenga, section 5). What is given back with
content stays until it is evicted: `aligned`, Jenga's order, by the time of last use, equal for all
pages of an event, and then the end of the prefix first in every kind; else vLLM's one queue, into
which kind after kind is put.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from simulator.allocators.lcm import LcmPool, Page
from simulator.allocators.prefix import PrefixIndex
from simulator.request import Sequence


class Kind(NamedTuple):
    """Layers that share a block table."""

    name: str
    window: int  # 0 = they keep every token
    pool: LcmPool
    extra: int = 0  # tokens kept beyond the window


class Held:
    """Pages of one sequence: of each kind, consecutive blocks from `first`."""

    __slots__ = ("first", "ids", "known_blocks", "named", "pages")

    def __init__(self, num_kinds: int, ids: list[int], known_blocks: int) -> None:
        self.first = [0] * num_kinds
        self.pages: list[list[Page]] = [[] for _ in range(num_kinds)]
        self.ids = ids
        self.known_blocks = known_blocks  # whose content the ids name
        self.named = 0  # blocks, from the start, that could be found by others


class TypedAllocator:
    """Pages by kind. A page of the books is a large page of the smallest pool's size."""

    def __init__(
        self,
        kinds: Iterable[Kind],
        block_tokens: int,
        index: PrefixIndex | None = None,
        *,
        aligned: bool = True,
        most_chunk: int = 1 << 60,
        stores_chunks: bool = True,
    ) -> None:
        self.kinds = tuple(kinds)
        self.block_tokens = block_tokens
        self.pools = tuple({id(kind.pool): kind.pool for kind in self.kinds}.values())
        least = min(pool.large_bytes for pool in self.pools)
        self._units = [pool.large_bytes / least for pool in self.pools]
        self.num_pages = self._books([pool.num_large for pool in self.pools])
        self._index = index
        self._blocks_per_id = 1 if index is None else index.extent_tokens // block_tokens
        self._queues = [0 if aligned else number for number in range(len(self.kinds))]
        self._most_chunk = most_chunk  # tokens of one iteration
        self._stores_chunks = stores_chunks  # whole, until the next
        self._clock = 0  # events in which pages were given back
        self.held: dict[Sequence, Held] = {}
        self.num_named = 0  # pages that others could find, ever
        self.counters = {"compactions": 0}

    # --- the books --------------------------------------------------------------------------------

    def _books(self, larges: list[int]) -> int:
        return int(sum(num * unit for num, unit in zip(larges, self._units, strict=True)))

    @property
    def free_pages(self) -> int:
        used = [pool.num_large - pool.num_available for pool in self.pools]
        return self.num_pages - self._books(used)

    @property
    def num_available(self) -> int:
        """Large pages that are certain to be had, of whatever pool."""
        return min(pool.num_available for pool in self.pools)

    def take(self, num_pages: int) -> None:
        """Nothing: pages are taken for a sequence, by `grow`."""

    # --- what a sequence holds --------------------------------------------------------------------

    def match(self, seq: Sequence) -> tuple[int, int, int]:
        """Prompt tokens whose KV every kind has as far as it needs it."""
        if self._index is None:
            return 0, 0, 0
        tokens = self._hit(seq) * self.block_tokens
        if tokens and not self.held:  # alone, it must be able to run with what it pins
            self.claim(seq, 0, tokens)
            enough = not self.lacks(self.needs_for_all(seq, seq.prefill_tokens), 0)
            self.unclaim(seq)
            tokens = tokens if enough else 0
        return tokens, 0, 0

    def _hit(self, seq: Sequence) -> int:
        """Blocks of the longest valid prefix."""
        ids, known = self._names(seq)
        blocks = min(known, (seq.prefill_tokens - 1) // self.block_tokens)
        each, kinds = self._blocks_per_id, self.kinds
        for number, kind in enumerate(kinds):
            if kind.window == 0:
                cached = kind.pool.cached
                for block in range(blocks):
                    if (number, ids[block // each], block) not in cached:
                        blocks = block
                        break
        while True:  # each kind can only shorten it
            before = blocks
            for number, kind in enumerate(kinds):
                if kind.window:
                    blocks = self._window_hit(number, kind, ids, blocks)
            if blocks == before:
                return blocks

    def _window_hit(self, number: int, kind: Kind, ids: list[int], blocks: int) -> int:
        """Longest prefix of at most so many blocks before which the window is cached."""
        needed = -(-(kind.window - 1) // self.block_tokens)
        cached, each = kind.pool.cached, self._blocks_per_id
        end, block = blocks, blocks - 1
        while end - 1 - block < min(needed, end):
            if (number, ids[block // each], block) not in cached:
                end = block
            block -= 1
        return end

    def _names(self, seq: Sequence) -> tuple[list[int], int]:
        """Ids of a request's content, and the whole blocks they name."""
        if self._index is None:
            return [], 0
        ids, size = self._index.ids(seq.id), self._index.extent_tokens
        named = len(ids) * size
        if named - size < seq.prompt_tokens:  # the last id may name a part
            named = min(named, seq.prompt_tokens)
        return ids, named // self.block_tokens

    def claim(self, seq: Sequence, num_pages: int, cached_tokens: int = 0) -> None:
        """Begin to hold: the pages of the cached prefix that the first query needs."""
        held = self.held[seq] = Held(len(self.kinds), *self._names(seq))
        held.named = blocks = cached_tokens // self.block_tokens
        each = self._blocks_per_id
        for number, kind in enumerate(self.kinds):
            held.first[number] = first = self._first(kind, cached_tokens + kind.extra)
            for block in range(first, blocks):
                page = kind.pool.cached[number, held.ids[block // each], block]
                kind.pool.pin(page)
                held.pages[number].append(page)

    def begin(self, seq: Sequence, tokens: int) -> None:
        """The first chunk, of so many tokens, is to be computed, and stored whole or not."""
        held = self.held[seq]
        if not self._stores_chunks and not held.named:
            held.first = [self._first(kind, tokens) for kind in self.kinds]

    def unclaim(self, seq: Sequence) -> None:
        """Forget that it was claimed: what it pinned is as recently used as it was before."""
        for number, pages in enumerate(self.held.pop(seq).pages):
            for page in pages:
                self.kinds[number].pool.give(page, page.stamp)

    def _first(self, kind: Kind, query: int) -> int:
        """First block that a query at this position needs."""
        if not kind.window:
            return 0
        return max(0, query - kind.window - kind.extra + 1) // self.block_tokens

    def slide(self, seq: Sequence, query: int) -> bool:
        """Give back what the next query, at this position, does not need; True if anything."""
        held, found = self.held[seq], False
        for number, kind in enumerate(self.kinds):
            if not kind.window:
                continue
            gone = self._first(kind, query) - held.first[number]
            if gone <= 0:
                continue
            if not found:
                self._clock += 1
                found = True
            pages, first = held.pages[number], held.first[number]
            queue = self._queues[number]
            for offset, page in enumerate(pages[:gone]):
                kind.pool.give(page, (self._clock, queue, -first - offset))
            del pages[:gone]
            held.first[number] += gone
        return found

    def _needs(self, seq: Sequence, tokens: int, most: int = 1 << 60) -> list[int]:
        """Pages of each kind that it lacks for so many tokens, `most` of them in one chunk."""
        held, size = self.held[seq], self.block_tokens
        blocks = -(-tokens // size)
        needs = []
        for number, kind in enumerate(self.kinds):
            first, has = held.first[number], len(held.pages[number])
            need = blocks - first
            if kind.window and most < tokens:
                need = min(need, -(-(kind.window + kind.extra + most) // size) + 1)
            needs.append(max(0, need - has))
        return needs

    def needs_for_all(self, seq: Sequence, tokens: int) -> list[int]:
        """Pages of each kind to compute so many tokens in chunks, of one iteration at the most."""
        return self._needs(seq, tokens, self._most_chunk)

    def _lacks(self, needs: list[int], spare_pages: int = 0) -> int:
        """Large pages that are not there for these needs."""
        lacks = 0
        for pool in self.pools:
            mine = ((k.name, n) for k, n in zip(self.kinds, needs, strict=True) if k.pool is pool)
            spare = -(-spare_pages * pool.num_large // self.num_pages) if spare_pages else 0
            lacks = max(lacks, pool.lacking(mine) + spare - pool.num_available)
        return lacks

    def lacks(self, needs: list[int], spare_pages: int) -> bool:
        """Whether memory does not suffice for these needs and so many pages of the books."""
        return self._lacks(needs, spare_pages) > 0

    def room(self) -> tuple[int, ...]:
        """What there is: large pages that nobody uses, and small ones beside others in use."""
        return tuple(n for pool in self.pools for n in (pool.num_available, *pool.spare.values()))

    def grow(self, wanted: list[tuple[Sequence, int]]) -> int:
        """Pages for so many tokens of each sequence: all of them, or none and what lacks."""
        each = [self._needs(seq, tokens) for seq, tokens in wanted]
        totals = [sum(column) for column in zip(*each, strict=True)]
        lacks = self._lacks(totals)
        if lacks > 0:
            return lacks
        is_ample = self.num_available >= sum(totals)
        for (seq, _), needs in zip(wanted, each, strict=True):
            pages = self.held[seq].pages
            for number, need in enumerate(needs):
                kind, mine = self.kinds[number], pages[number]
                for _ in range(need):
                    may_open = is_ample or self._may_open(kind, totals)
                    page = kind.pool.take(kind.name, seq.id, may_open)
                    assert page is not None
                    mine.append(page)
                    totals[number] -= 1
        return 0

    def _may_open(self, kind: Kind, totals: list[int]) -> bool:
        """Whether a new large page leaves enough for all that is still to be taken."""
        pool, name = kind.pool, kind.name
        mine = [(k.name, n) for k, n in zip(self.kinds, totals, strict=True) if k.pool is pool]
        if dict(mine)[name] > pool.spare[name]:
            return True
        return pool.num_available > pool.lacking(mine)

    def compact(self, seq: Sequence) -> None:
        """Move the only sequence's pages together, out of large pages it shares with nothing.

        A request left alone may hold single small pages of many large ones; a real server would
        compute it again. Counted, and not timed.
        """
        self.counters["compactions"] += 1
        held, self._clock = self.held[seq], self._clock + 1
        sizes = [len(pages) for pages in held.pages]
        for number, pages in enumerate(held.pages):
            for page in pages:
                self.kinds[number].pool.give(page, (self._clock, number, 0))
        for number, size in enumerate(sizes):
            kind = self.kinds[number]
            taken = [kind.pool.take(kind.name, seq.id) for _ in range(size)]
            held.pages[number] = [page for page in taken if page is not None]
            assert len(held.pages[number]) == size

    def computed(self, seq: Sequence, num_tokens: int) -> None:
        """The first `num_tokens` tokens have KV from this iteration on: others may find them."""
        held, each = self.held[seq], self._blocks_per_id
        blocks = min(num_tokens // self.block_tokens, held.known_blocks)
        for block in range(held.named, blocks):
            for number, kind in enumerate(self.kinds):
                offset = block - held.first[number]
                if offset >= 0:
                    key = (number, held.ids[block // each], block)
                    kind.pool.name(held.pages[number][offset], key)
                    self.num_named += 1
        held.named = max(held.named, blocks)

    def release(self, seq: Sequence, num_pages: int) -> None:
        """Take back everything `seq` holds."""
        held = self.held.pop(seq)
        self._clock += 1
        for number, pages in enumerate(held.pages):
            pool, first, queue = self.kinds[number].pool, held.first[number], self._queues[number]
            for offset, page in enumerate(pages):
                pool.give(page, (self._clock, queue, -first - offset))
