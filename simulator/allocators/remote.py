"""KV pages of a decode instance whose prompts were computed elsewhere."""

from __future__ import annotations

from simulator.allocators.paged import PagedAllocator
from simulator.request import Sequence


class RemotePrefillAllocator(PagedAllocator):
    """Takes pages for a whole prompt whose KV has been sent here; its last token is computed."""

    __slots__ = ()

    def match(self, seq: Sequence) -> tuple[int, int, int]:
        return seq.prompt_tokens - 1, 0, 0
