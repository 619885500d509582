"""Requests whose prefix is loaded from host memory before they are admitted.

Beside a load nobody waits but the request itself: it leaves the queue with its pages, and comes
back to its head when its KV is there, as an arrival would: the scheduler sees it at the next
iteration that it plans.
"""

from __future__ import annotations

from array import array

from simulator.allocators import HostMemory
from simulator.allocators.offloading import OffloadingAllocator
from simulator.copying import CopyingLane
from simulator.costs.compiled import CompiledCost
from simulator.errors import ConfigError
from simulator.experiment import Experiment
from simulator.lane import Lane
from simulator.memory import KvCapacity
from simulator.rank import Rank
from simulator.recorder import LaneLog
from simulator.request import Sequence
from simulator.spec import NodeGroup


class OffloadRank(Rank):
    """A rank that some of its requests leave for a while, to have their KV loaded."""

    __slots__ = ("loaded", "loading")

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.loading: dict[Sequence, None] = {}
        self.loaded: dict[Sequence, None] = {}  # they wait, with the pages of their prompt

    def reveal(self, until_ns: int) -> None:
        """Who has been loaded goes first: he came before the others."""
        fresh, back = self.fresh, []
        while fresh and fresh[0][0] <= until_ns:
            seq = fresh.popleft()[1]
            if seq in self.loading:
                back.append(self.arrived(seq))
            else:
                self.waiting.append(seq)
                self.blocked = self.blocked and not self.by_priority
        for seq in reversed(back):
            self.waiting.appendleft(seq)
            self.blocked = False

    def arrived(self, seq: Sequence) -> Sequence:
        """Its KV is there."""
        del self.loading[seq]
        self.loaded[seq] = None
        self.allocator.loaded(seq)  # type: ignore[attr-defined]
        return seq


class OffloadLane(CopyingLane):
    """A lane whose requests find their prefix on the GPU or behind it."""

    __slots__ = ("_lacks_pages", "_memory", "_visitors")

    def __init__(self, key: int, rank: Rank, cost: CompiledCost, log: LaneLog) -> None:
        super().__init__(key, rank, cost, log)
        assert isinstance(rank, OffloadRank)
        self._visitors = rank
        self._memory: OffloadingAllocator = rank.allocator  # type: ignore[assignment]
        self._memory.watch(lambda: rank.now_ns)
        self._lacks_pages = False  # the load of the first in the queue

    def cached(self, seq: Sequence) -> int:
        tokens = super().cached(seq)
        self._lacks_pages = False
        if seq.allocation is not None:
            return tokens
        reach = self._memory.stored(seq, tokens)
        if reach == tokens:
            return tokens
        _, held, unpinned = self._match
        pages = self.rank.layout.pages(seq.prefill_tokens)
        if pages - held + unpinned > self.allocator.free_pages:
            self._lacks_pages = True
            return tokens
        return self._load(seq, reach, pages)

    def _load(self, seq: Sequence, num_tokens: int, num_pages: int) -> int:
        rank, held = self._visitors, self._match[1]
        self.waiting.popleft()
        self.allocator.claim(seq, held)
        self.allocator.take(num_pages - held)
        seq.blocks = num_pages
        end_ns = self._memory.load(seq, num_tokens, num_pages)
        rank.loading[seq] = None
        if end_ns > rank.now_ns:
            self.at(end_ns, lambda: rank.fresh.append((end_ns, seq)))
            return -1
        self.waiting.appendleft(rank.arrived(seq))
        return super().cached(seq)

    def admit(
        self,
        seq: Sequence,
        cached_tokens: int,
        num_tokens: int,
        reserve: bool,
        spare_pages: int = 0,
    ) -> bool:
        if self._lacks_pages:
            if self.rank.running or not self._give_back():
                self.rank.blocked = True
                return False
            self._match = self.allocator.match(seq)
        while not super().admit(seq, cached_tokens, num_tokens, reserve, spare_pages):
            if self.rank.running or not self._give_back():
                return False
            self._match = self.allocator.match(seq)
        self._visitors.loaded.pop(seq, None)
        return True

    def _compute(self, seq: Sequence, num_tokens: int, num_pages: int) -> None:
        super()._compute(seq, num_tokens, max(0, num_pages))  # the whole prompt has its pages

    def decode(self) -> int:
        while (lacking := super().decode()) and self._give_back():
            pass
        return lacking

    def extend(self, seq: Sequence, num_tokens: int) -> bool:
        while not (done := super().extend(seq, num_tokens)) and self._give_back():
            pass
        return done

    def _give_back(self) -> bool:
        """Take the pages of whoever was loaded last and does not run yet; False: nobody has any."""
        loaded = self._visitors.loaded
        if not loaded:
            return False
        seq, _ = loaded.popitem()
        self.allocator.release(seq, seq.blocks)
        seq.blocks = 0
        self.rank.blocked = False
        return True

    def planned(self, claim: int, arrivals_wait: bool) -> None:
        """A load that ends is seen as an arrival is, and a store may change what is loaded."""
        if self.waiting and self._memory.pending():
            claim = min(claim, 1)
        super().planned(claim, arrivals_wait and not self._visitors.loading)

    def _finish(self, seq: Sequence, pages: int, end_ns: int) -> None:
        self.rank.now_ns = max(self.rank.now_ns, end_ns)  # when its last blocks are stored
        super()._finish(seq, pages, end_ns)

    def check_drained(self) -> None:
        if not self._visitors.loading and not self._visitors.loaded:  # a horizon cuts them off
            super().check_drained()


def offload_lanes(
    ranks: list[Rank], cost: CompiledCost, first: int, ends: array[int]
) -> list[Lane]:
    """A lane of each rank; the first has this key, and they share the ends of iterations."""
    return [OffloadLane(first + i, rank, cost, LaneLog(ends)) for i, rank in enumerate(ranks)]


def host_memory(
    experiment: Experiment, group: NodeGroup, capacity: KvCapacity
) -> HostMemory | None:
    """Host memory behind the prefix cache of an attention rank; None = there is none."""
    size = experiment.settings.kv_offload_bytes
    if size == 0:
        return None
    num_gpus = experiment.plan.tp * experiment.plan.pp
    block_bytes = capacity.block_bytes * capacity.blocks_full_weight
    num_blocks = int(size // (block_bytes * num_gpus))
    if num_blocks < 1:
        raise ConfigError(
            "engine.kv_offload: expected 0 GB, or room for one KV block, "
            f"{block_bytes * num_gpus:.0f} bytes over its GPUs (got {size:.0f})"
        )
    link = group.gpu.host_link
    return HostMemory(
        num_blocks=num_blocks,
        block_bytes=block_bytes,
        num_gpus=num_gpus,
        bytes_per_s=link.bytes_per_s,
        latency_s=link.latency_s,
    )
