"""A prefix cache with host memory behind it: what it has lost is loaded instead of recomputed.

Blocks go to the host when they are computed (see `host_tier`), the link's bandwidth allowing; a
prompt takes what the GPU still has and then what the host has. Its pages are set aside before the
load begins, those of the whole prompt, so that whoever has been loaded can always run. As with hits
on the GPU, the prompt's last block is always computed. Simplifications: a GPU page that is freed
while it is stored may be given out at once, and two requests that need the same prefix at the same
time both load it.
"""

from __future__ import annotations

from collections.abc import Callable

from simulator.allocators.host_tier import HostLink, HostMemory, HostTier
from simulator.allocators.prefix import Holding, PrefixCachingAllocator, PrefixIndex
from simulator.request import Sequence


class Loaded(Holding):
    """A holding that may have been filled from the host before its request runs."""

    __slots__ = ("pages", "reading", "tokens")

    def __init__(self, ids: list[int], known_tokens: int) -> None:
        super().__init__(ids, known_tokens)
        self.tokens = self.pages = 0
        self.reading: list[int] = []  # ids that are being loaded


class OffloadingAllocator(PrefixCachingAllocator):
    """Pages with a prefix cache on the GPU and a larger one in host memory."""

    __slots__ = ("_last_ready_ns", "_loads", "_stores", "counters", "now_ns", "tier")

    def __init__(
        self,
        num_pages: int,
        index: PrefixIndex,
        block_tokens: int,
        pages_per_block: int,
        memory: HostMemory,
    ) -> None:
        super().__init__(num_pages, index, block_tokens, pages_per_block)
        self.tier = HostTier(memory.num_blocks)
        self._stores, self._loads = HostLink(memory), HostLink(memory)
        self._last_ready_ns = 0
        self.now_ns: Callable[[], int] = lambda: 0
        self.counters = dict.fromkeys(
            ("offload_hit_tokens", "offload_loaded_bytes", "offload_stored_bytes"), 0
        )

    def watch(self, now_ns: Callable[[], int]) -> None:
        """Where to read the time."""
        self.now_ns = now_ns

    def match(self, seq: Sequence) -> tuple[int, int, int]:
        holding = seq.allocation
        if isinstance(holding, Loaded):
            return holding.tokens, holding.pages, 0
        return super().match(seq)

    def claim(self, seq: Sequence, num_pages: int) -> None:
        if seq.allocation is None:  # else it has had its pages since its load began
            super().claim(seq, num_pages)
            self.tier.touch(self._index.ids(seq.id))

    def _hold(self, seq: Sequence) -> Holding:
        plain = super()._hold(seq)
        return Loaded(plain.ids, plain.known_tokens)

    def stored(self, seq: Sequence, cached_tokens: int) -> int:
        """Tokens of the prompt's head with what the host has behind the GPU's `cached_tokens`."""
        size, block = self._index.extent_tokens, self.block_tokens
        usable = (seq.prefill_tokens - 1) // block * block  # one token is always computed
        if cached_tokens >= usable:
            return cached_tokens
        now_ns, first = self.now_ns(), cached_tokens // size
        tokens = first * size
        for extent_id in self._index.ids(seq.id)[first:]:
            found = self.tier.lookup(extent_id, now_ns) * block
            tokens += found
            if found < size or tokens >= usable:
                break
        return max(cached_tokens, min(tokens, usable))

    def pending(self) -> bool:
        """Whether blocks are on their way to the host, that nobody can find yet."""
        return self._last_ready_ns > self.now_ns()

    def load(self, seq: Sequence, num_tokens: int, num_pages: int) -> int:
        """Begin to load up to so many tokens into the pages it has been given; when that ends."""
        holding = seq.allocation
        assert isinstance(holding, Loaded)
        here = sum(extent.blocks for extent in holding.extents)
        blocks = num_tokens // self.block_tokens - here
        size = self._index.extent_tokens
        holding.tokens, holding.pages = num_tokens, num_pages
        first = here * self.block_tokens // size
        holding.reading = holding.ids[first : -(-num_tokens // size)]
        self.tier.pin(holding.reading, 1)
        memory = self._loads.memory
        self.counters["offload_hit_tokens"] += blocks * self.block_tokens
        self.counters["offload_loaded_bytes"] += round(
            blocks * memory.block_bytes * memory.num_gpus
        )
        return self._loads.end_ns(self.now_ns(), blocks)

    def loaded(self, seq: Sequence) -> None:
        """The load has ended: its blocks can be hit on the GPU."""
        holding = seq.allocation
        assert isinstance(holding, Loaded)
        self.computed(seq, holding.tokens)
        self.tier.pin(holding.reading, -1)
        holding.reading = []

    def _register(self, holding: Holding, blocks: int) -> None:
        super()._register(holding, blocks)
        extent_id = holding.ids[holding.next_id]
        missing, now_ns = self.tier.lacks(extent_id, blocks), self.now_ns()
        if missing == 0 or not self.tier.make_room(extent_id, missing, now_ns):
            return
        memory = self._stores.memory
        self._last_ready_ns = self._stores.end_ns(now_ns, missing)
        self.tier.store(extent_id, missing, self._last_ready_ns)
        self.counters["offload_stored_bytes"] += round(
            missing * memory.block_bytes * memory.num_gpus
        )
