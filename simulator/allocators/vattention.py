"""vAttention (ASPLOS'25): contiguous virtual KV, backed by physical page-groups on demand.

Every layer has one virtual tensor for K and one for V, and every request a slot in each, so a
request grows in all 2 N tensors of a worker at once: a page here is one page-group in each of them,
and the mapping latency is paid for each group. A slot whose request has ended keeps its page-groups
for the next one (deferred reclamation); they count as free, and are unmapped when others need them.
"""

from __future__ import annotations

from bisect import bisect_left, insort

from simulator.allocators.paged import PagedAllocator
from simulator.request import Sequence


class Slot:
    """Pages of a request that are mapped, and how many of them it has come to need."""

    __slots__ = ("mapped", "needed")

    def __init__(self, mapped: int) -> None:
        self.mapped = mapped
        self.needed = 0


class MappedAllocator(PagedAllocator):
    """Paged books, and which pages of every slot are mapped."""

    __slots__ = ("_block_tokens", "_defers", "_idle", "_num_mapped", "_slots", "counters")

    def __init__(self, num_pages: int, block_tokens: int, defers: bool = True) -> None:
        super().__init__(num_pages)
        self._block_tokens = block_tokens
        self._defers = defers
        self._idle: list[int] = []  # mapped pages of slots without a request, increasing
        self._slots: dict[Sequence, Slot] = {}
        self._num_mapped = 0  # of all slots
        self.counters = {"pages_mapped": 0, "slots_given": 0}

    def claim(self, seq: Sequence, num_pages: int) -> None:
        """A slot for a request: the idle one that fits its prompt best."""
        prompt = -(-seq.prefill_tokens // self._block_tokens)
        at = min(bisect_left(self._idle, prompt), len(self._idle) - 1)
        self._slots[seq] = Slot(self._idle.pop(at) if self._idle else 0)
        self.counters["slots_given"] += 1

    def map(self, seq: Sequence, num_pages: int) -> int:
        """Back the first `num_pages` of a request; returns how many had to be mapped for it."""
        slot = self._slots[seq]
        slot.needed = num_pages
        new = max(0, num_pages - slot.mapped)
        if new:
            self._unmap(self._num_mapped + new - self.num_pages)
            slot.mapped += new
            self._num_mapped += new
            self.counters["pages_mapped"] += new
        return new

    def _unmap(self, num_pages: int) -> None:
        """Give up mapped pages that no request needs: of idle slots, then of oversized ones."""
        while num_pages > 0 and self._idle:
            largest = self._idle.pop()
            gone = min(largest, num_pages)
            self._num_mapped -= gone
            num_pages -= gone
            if largest > gone:
                insort(self._idle, largest - gone)
        if num_pages > 0:
            for slot in self._slots.values():
                gone = min(num_pages, max(0, slot.mapped - slot.needed))
                slot.mapped -= gone
                self._num_mapped -= gone
                num_pages -= gone

    def release(self, seq: Sequence, num_pages: int) -> None:
        super().release(seq, num_pages)
        mapped = self._slots.pop(seq).mapped
        if self._defers and mapped:
            insort(self._idle, mapped)
        else:
            self._num_mapped -= mapped
