"""Host memory behind a prefix cache: which blocks it holds, and the link their copies take.

As vLLM's OffloadingConnector (0.11 to 0.15): blocks are copied when they have been computed, not
when they are evicted; the tier has an LRU of its own; a block can be found once its copy has ended,
and is not evicted while it is copied in either direction. Where nothing can be evicted a block is
not stored. Kept by extents, as the prefix cache is.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass

from simulator.units import to_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """Blocks of KV that fit into host memory, and what moving one takes on each GPU's own link."""

    num_blocks: int
    block_bytes: float  # of one block on one GPU: every GPU moves its own share at once
    num_gpus: int = 1  # that hold a share of a block
    bytes_per_s: float  # one direction; the two do not disturb each other
    latency_s: float  # of a transfer, however long


class HostLink:
    """One direction between host and GPU: transfers in turn, latency + bytes / bandwidth each."""

    __slots__ = ("_free_ns", "memory")

    def __init__(self, memory: HostMemory) -> None:
        self.memory = memory
        self._free_ns = 0

    def end_ns(self, now_ns: int, num_blocks: int) -> int:
        """When a transfer that is asked for now will have ended."""
        memory = self.memory
        time_s = memory.latency_s
        if not math.isinf(memory.bytes_per_s):
            time_s += num_blocks * memory.block_bytes / memory.bytes_per_s
        self._free_ns = max(self._free_ns, now_ns) + to_ns(time_s)
        return self._free_ns


class _Stored:
    """Blocks under one id."""

    __slots__ = ("blocks", "readers", "ready_ns")

    def __init__(self) -> None:
        self.blocks = self.readers = self.ready_ns = 0


class HostTier:
    """An LRU of extents in host memory."""

    __slots__ = ("_stored", "num_blocks", "used_blocks")

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.used_blocks = 0
        self._stored: OrderedDict[int, _Stored] = OrderedDict()  # the next to be evicted first

    def lookup(self, extent_id: int, now_ns: int) -> int:
        """Blocks under this id whose copy has ended."""
        entry = self._stored.get(extent_id)
        return entry.blocks if entry is not None and entry.ready_ns <= now_ns else 0

    def lacks(self, extent_id: int, num_blocks: int) -> int:
        """How many of so many blocks under this id are neither stored nor on their way."""
        entry = self._stored.get(extent_id)
        return num_blocks if entry is None else max(0, num_blocks - entry.blocks)

    def touch(self, extent_ids: list[int]) -> None:
        """These have been asked for: a prompt's last block is evicted before its first."""
        for extent_id in reversed(extent_ids):
            if extent_id in self._stored:
                self._stored.move_to_end(extent_id)

    def make_room(self, extent_id: int, num_blocks: int, now_ns: int) -> bool:
        """Evict until so many more blocks fit beside what is under this id; False: they cannot."""
        excess = self.used_blocks + num_blocks - self.num_blocks
        victims = []
        for other, entry in self._stored.items():
            if excess <= 0:
                break
            if other != extent_id and not entry.readers and entry.ready_ns <= now_ns:
                victims.append(other)
                excess -= entry.blocks
        if excess > 0:
            return False
        for other in victims:
            self.used_blocks -= self._stored.pop(other).blocks
        return True

    def store(self, extent_id: int, num_blocks: int, ready_ns: int) -> None:
        """Add blocks under this id, for which room has been made; they can be found when ready."""
        entry = self._stored.setdefault(extent_id, _Stored())
        entry.blocks += num_blocks
        entry.ready_ns = ready_ns
        self.used_blocks += num_blocks
        self._stored.move_to_end(extent_id)

    def pin(self, extent_ids: list[int], readers: int) -> None:
        """Somebody begins to read these (1), or has read them (-1)."""
        for extent_id in extent_ids:
            self._stored[extent_id].readers += readers
