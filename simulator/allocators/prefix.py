"""vLLM's block-hash prefix cache with LRU eviction, kept by extents instead of blocks.

A trace names prompt content by one id per hash block (16 tokens, or 512 in Mooncake's traces); the
KV blocks under one id are computed, pinned, freed and evicted together, so the LRU queue holds
extents (id, number of blocks) and costs O(ids), not O(blocks). As in vLLM V1: freed blocks join
the tail of one queue, a request's last block first; eviction takes from the head; a hit is never
the whole prompt, because one token must be computed to sample from. Simplifications: an id that two
requests compute at the same time is cached once, and an extent becomes hittable when its last
token is scheduled rather than block by block.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ConfigError
from simulator.request import RequestTable, Sequence

Ints = NDArray[np.int64]


class PrefixIndex:
    """The ids of every request, at a granularity that is a multiple of the KV block."""

    __slots__ = ("_ids", "_offsets", "_stride", "extent_tokens")

    def __init__(self, table: RequestTable, block_tokens: int) -> None:
        size = table.hash_block_tokens
        ids, offsets = table.hash_ids, table.hash_offsets
        if ids is None or offsets is None or size < 1:
            raise ConfigError(f"{table.name}: prefix caching needs hash_ids and hash_block_tokens")
        if size % block_tokens and block_tokens % size:
            raise ConfigError(
                f"{table.name}: hash_block_tokens {size} and block_tokens {block_tokens} must "
                "divide one another"
            )
        # Ids name content and everything before it, so every group's last id names the group.
        self._stride = max(1, block_tokens // size)
        if len(ids) and int(ids.min()) < 0:
            ids = np.unique(ids, return_inverse=True)[1]
        self._ids: list[int] = ids.tolist()
        self._offsets: list[int] = offsets.tolist()
        self.extent_tokens = max(size, block_tokens)

    def ids(self, request: int) -> list[int]:
        """Ids of a request's prompt (and of its output, where the workload knows it)."""
        first, last = self._offsets[request], self._offsets[request + 1]
        if self._stride == 1:
            return self._ids[first:last]
        return self._ids[first + self._stride - 1 : last : self._stride]


class Extent:
    """KV blocks under one id."""

    __slots__ = ("blocks", "id", "refs")

    def __init__(self, id: int, blocks: int) -> None:
        self.id = id
        self.blocks = blocks
        self.refs = 1


class Holding:
    """What one sequence has pinned: the extents in prompt order, and how far ids are computed."""

    __slots__ = ("extents", "ids", "known_tokens", "next_id")

    def __init__(self, ids: list[int], known_tokens: int) -> None:
        self.ids = ids
        self.known_tokens = known_tokens  # whose content the ids name
        self.extents: list[Extent] = []
        self.next_id = 0


class PrefixCachingAllocator:
    """Pages with a prefix cache; see the module's text."""

    __slots__ = ("_cached", "_index", "_lru", "_next_key", "_pages", "block_tokens", "free_pages",
                 "num_pages")  # fmt: skip

    def __init__(
        self, num_pages: int, index: PrefixIndex, block_tokens: int, pages_per_block: int = 1
    ) -> None:
        self.num_pages = num_pages
        self.free_pages = num_pages
        self.block_tokens = block_tokens
        self._pages = pages_per_block  # of the layers that keep everything
        self._index = index
        self._cached: dict[int, Extent] = {}
        # Free pages, next victim first: an extent under its id, or a count of nameless pages.
        self._lru: OrderedDict[int, Extent | int] = OrderedDict({-1: num_pages})
        self._next_key = -2

    def match(self, seq: Sequence) -> tuple[int, int, int]:
        """Cached tokens at the head of the prompt, the pages they hold, and how many are free."""
        whole = seq.prefill_tokens // self.block_tokens
        full = self._index.extent_tokens // self.block_tokens
        blocks = unpinned = 0
        for extent_id in self._index.ids(seq.id):
            extent = self._cached.get(extent_id)
            if extent is None or blocks + extent.blocks > whole:
                break
            blocks += extent.blocks
            if extent.refs == 0:
                unpinned += extent.blocks
            if extent.blocks < full:
                break
        usable = (seq.prefill_tokens - 1) // self.block_tokens  # one token is always computed
        tokens = min(blocks, usable) * self.block_tokens
        return tokens, blocks * self._pages, unpinned * self._pages

    def claim(self, seq: Sequence, num_pages: int) -> None:
        holding = seq.allocation = self._hold(seq)
        full = self._index.extent_tokens // self.block_tokens
        while num_pages > 0:
            extent = self._cached[holding.ids[len(holding.extents)]]
            if extent.refs == 0:
                del self._lru[extent.id]
                self.free_pages -= extent.blocks * self._pages
            extent.refs += 1
            holding.extents.append(extent)
            holding.next_id += extent.blocks == full  # else its missing blocks are computed again
            num_pages -= extent.blocks * self._pages

    def _hold(self, seq: Sequence) -> Holding:
        ids = self._index.ids(seq.id)
        named = len(ids) * self._index.extent_tokens
        is_prompt_only = named - self._index.extent_tokens < seq.prompt_tokens
        return Holding(ids, seq.prompt_tokens if is_prompt_only else named)

    def take(self, num_pages: int) -> None:
        self.free_pages -= num_pages
        lru = self._lru
        while num_pages > 0:
            key, entry = next(iter(lru.items()))
            held = entry if isinstance(entry, int) else entry.blocks * self._pages
            if held <= num_pages:
                num_pages -= held
                del lru[key]
                if isinstance(entry, Extent):
                    del self._cached[entry.id]
            elif isinstance(entry, int):
                lru[key] = entry - num_pages
                return
            else:  # its last blocks go first
                evicted = -(-num_pages // self._pages)
                entry.blocks -= evicted
                spare = evicted * self._pages - num_pages
                if spare:
                    self._push_nameless(spare)
                return

    def computed(self, seq: Sequence, num_tokens: int) -> None:
        """Make every id that is now wholly computed hittable; a prompt's last may be partial."""
        holding = seq.allocation
        assert isinstance(holding, Holding)
        size = self._index.extent_tokens
        num_tokens = min(num_tokens, holding.known_tokens)
        while holding.next_id < len(holding.ids):
            tokens = min(size, num_tokens - holding.next_id * size)
            if tokens < size and num_tokens < min(holding.known_tokens, seq.prefill_tokens):
                return
            blocks = tokens // self.block_tokens
            if blocks <= 0:
                return
            self._register(holding, blocks)
            holding.next_id += 1

    def _register(self, holding: Holding, blocks: int) -> None:
        extent_id = holding.ids[holding.next_id]
        known = self._cached.get(extent_id)
        if known is None:
            extent = self._cached[extent_id] = Extent(extent_id, blocks)
            holding.extents.append(extent)
        elif holding.extents and holding.extents[-1] is known and known.refs == 1:
            known.blocks = max(known.blocks, blocks)

    def release(self, seq: Sequence, num_pages: int) -> None:
        holding = seq.allocation
        assert isinstance(holding, Holding)
        named = sum(extent.blocks for extent in holding.extents) * self._pages
        nameless = num_pages - named
        if nameless > 0:
            self._push_nameless(nameless)
            self.free_pages += nameless
        for extent in reversed(holding.extents):
            extent.refs -= 1
            if extent.refs == 0:
                self._lru[extent.id] = extent
                self.free_pages += extent.blocks * self._pages
        seq.allocation = None

    def _push_nameless(self, num_pages: int) -> None:
        self._lru[self._next_key] = num_pages
        self._next_key -= 1
