"""Copies of KV on the host: those that are somebody's only ones, and those kept to be reused.

KV only grows, so of a request that runs again every full page of its copy stays valid: the next
time only what is new has to be copied. Where room lacks, kept copies are contaminated: their pages,
the last first, are given to somebody else.
"""

from __future__ import annotations

from collections import OrderedDict


class HostCopies:
    """Pages of host memory, by conversation."""

    __slots__ = ("_kept", "_needed", "contaminated", "free_pages", "num_pages", "reuse")

    def __init__(self, num_pages: int, reuse: bool) -> None:
        self.num_pages = num_pages
        self.free_pages = num_pages
        self.reuse = reuse
        self.contaminated = 0  # pages
        self._needed: dict[int, tuple[int, int]] = {}  # pages, of which full
        self._kept: OrderedDict[int, int] = OrderedDict()  # full pages, the next to go first

    def valid(self, conversation: int) -> int:
        """Full pages of the head of this conversation that are kept here."""
        return self._kept.get(conversation, 0)

    def put(self, conversation: int, num_pages: int, full_pages: int) -> int:
        """Make room for so many pages; returns how many to copy, -1: there is no room.

        Those kept from before are not copied again.
        """
        kept = self._kept.pop(conversation, 0)
        self.free_pages += kept
        while self.free_pages < num_pages and self._kept:
            other, pages = next(iter(self._kept.items()))
            taken = min(pages, num_pages - self.free_pages)
            self.contaminated += taken
            self.free_pages += taken
            if taken == pages:
                del self._kept[other]
            else:
                self._kept[other] = pages - taken
        if self.free_pages < num_pages:
            self.forget(conversation)
            return -1
        self.free_pages -= num_pages
        self._needed[conversation] = (num_pages, full_pages)
        return num_pages - min(kept, num_pages)

    def take(self, conversation: int) -> None:
        """It is on the GPU again: what is full is kept if copies are reused."""
        num_pages, full_pages = self._needed.pop(conversation)
        self.free_pages += num_pages
        if self.reuse and full_pages:
            self.free_pages -= full_pages
            self._kept[conversation] = full_pages

    def forget(self, conversation: int) -> None:
        """Nothing is kept of it."""
        self.free_pages += self._kept.pop(conversation, 0)

    def used_pages(self) -> int:
        """By both kinds."""
        return sum(pages for pages, _ in self._needed.values()) + sum(self._kept.values())
