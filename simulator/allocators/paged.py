"""Paged KV without a prefix cache: pages are interchangeable, so a count is the whole state."""

from __future__ import annotations

from simulator.request import Sequence


class PagedAllocator:
    """Counts free pages. Exact for workloads whose prompts share nothing."""

    __slots__ = ("free_pages", "num_pages")

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.free_pages = num_pages

    def match(self, seq: Sequence) -> tuple[int, int, int]:
        return 0, 0, 0

    def claim(self, seq: Sequence, num_pages: int) -> None:
        return None

    def take(self, num_pages: int) -> None:
        self.free_pages -= num_pages

    def computed(self, seq: Sequence, num_tokens: int) -> None:
        return None

    def release(self, seq: Sequence, num_pages: int) -> None:
        self.free_pages += num_pages
