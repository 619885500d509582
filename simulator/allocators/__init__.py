"""KV allocators: who holds which pages. One file per allocator; a dict literal registers it.

A page is what `PageLayout` counts (one KV block for a model with full attention only). Allocators
keep `free_pages`; the lane asks before it schedules, so `take` never fails.
"""

from __future__ import annotations

from typing import Protocol

from simulator.allocators.paged import PagedAllocator
from simulator.allocators.prefix import PrefixCachingAllocator, PrefixIndex
from simulator.allocators.remote import RemotePrefillAllocator
from simulator.request import Sequence


class KVAllocator(Protocol):
    """KV pages of one attention rank."""

    num_pages: int
    free_pages: int  # unreferenced, whether or not their content is still cached

    def match(self, seq: Sequence) -> tuple[int, int, int]:
        """Prompt tokens whose KV is cached, their pages, and how many of those count as free."""
        ...

    def claim(self, seq: Sequence, num_pages: int) -> None:
        """Pin the cached pages found by `match`."""
        ...

    def take(self, num_pages: int) -> None:
        """Give out free pages (the caller has checked `free_pages`)."""
        ...

    def computed(self, seq: Sequence, num_tokens: int) -> None:
        """The first `num_tokens` tokens of `seq` have KV from this iteration on."""
        ...

    def release(self, seq: Sequence, num_pages: int) -> None:
        """Take back everything `seq` holds: `num_pages`, its pinned prefix included."""
        ...


ALLOCATORS: dict[str, type] = {"paged": PagedAllocator, "prefix_caching": PrefixCachingAllocator}

__all__ = [
    "ALLOCATORS",
    "KVAllocator",
    "PagedAllocator",
    "PrefixCachingAllocator",
    "PrefixIndex",
    "RemotePrefillAllocator",
]
