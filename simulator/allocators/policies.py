"""The allocators an experiment can ask for: frozen dataclasses, whose fields are YAML keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.allocators.host_tier import HostMemory
from simulator.allocators.offloading import OffloadingAllocator
from simulator.allocators.paged import PagedAllocator
from simulator.allocators.prefix import PrefixCachingAllocator, PrefixIndex
from simulator.allocators.remote import RemotePrefillAllocator
from simulator.allocators.reserved import (
    AnywhereSpace,
    BuddySpace,
    FitSpace,
    ReservedAllocator,
    Space,
    buddy_order,
    reserved_tokens,
)
from simulator.allocators.vattention import MappedAllocator
from simulator.batch import PageLayout
from simulator.errors import ConfigError
from simulator.memory import KvType
from simulator.request import Ints, RequestTable, Sequence
from simulator.spec import ModelSpec
from simulator.work import attention_work

Mask = NDArray[np.bool_]  # [num_requests]


class KVAllocator(Protocol):
    """KV pages of one attention rank."""

    num_pages: int

    @property
    def free_pages(self) -> int:
        """Unreferenced, whether or not their content is still cached."""
        ...

    def match(self, seq: Sequence) -> tuple[int, int, int]:
        """Prompt tokens whose KV is cached, their pages, and what admission takes of the free ones.

        The last counts cached pages that nobody else holds, and whatever is set aside at once.
        """
        ...

    def claim(self, seq: Sequence, num_pages: int) -> None:
        """Pin the cached pages found by `match`, and take what is set aside at once."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """What an allocator is made for: the pages of one rank, and who will ask."""

    num_pages: int
    layout: PageLayout
    table: RequestTable
    max_model_len: int
    types: tuple[KvType, ...] = (KvType(0, 1.0),)  # of layers
    num_bytes: float = 0.0  # of all pages together
    max_num_tokens: int = 1 << 60  # of one iteration
    host: HostMemory | None = None  # behind a prefix cache


class AllocatorPolicy(Protocol):
    """A kind of allocator with its settings."""

    def build(self, pool: Pool) -> KVAllocator: ...

    def layout(self, layout: PageLayout) -> PageLayout:
        """Pages a sequence takes as it grows."""
        ...

    def reserved_pages(self, pool: Pool) -> Ints | None:
        """Pages each request is given at admission; None = pages come as it grows."""
        ...

    def asked_tokens(self, pool: Pool) -> Ints | None:
        """Tokens that each request's piece is meant for."""
        ...

    def fits(self, pool: Pool) -> Mask | None:
        """Which requests an empty pool has a place for; None = whoever the model's pages fit."""
        ...


class _Growing:
    """Pages on demand."""

    def layout(self, layout: PageLayout) -> PageLayout:
        return layout

    def reserved_pages(self, pool: Pool) -> Ints | None:
        return None

    def asked_tokens(self, pool: Pool) -> Ints | None:
        return None

    def fits(self, pool: Pool) -> Mask | None:
        return None


WINDOWS = ("freed", "kept")


@dataclass(frozen=True, kw_only=True)
class Paged(_Growing):
    """Pages on demand, nothing shared."""

    windows: str = "freed"  # pages that leave an attention window; kept = vLLM's without hybrid KV

    def __post_init__(self) -> None:
        if self.windows not in WINDOWS:
            raise ConfigError(f"allocator.windows: expected freed or kept (got {self.windows!r})")

    def layout(self, layout: PageLayout) -> PageLayout:
        return layout if self.windows == "freed" else PageLayout(layout.block_tokens, layout.most)

    def fits(self, pool: Pool) -> Mask | None:
        """With every page kept a sequence may outgrow the pool that its windows would fit."""
        if self.windows == "freed":
            return None
        tokens = pool.table.prompt_tokens + pool.table.output_tokens - 1
        fits: Mask = -(-tokens // pool.layout.block_tokens) * pool.layout.most <= pool.num_pages
        return fits

    def build(self, pool: Pool) -> KVAllocator:
        return PagedAllocator(pool.num_pages)


@dataclass(frozen=True, kw_only=True)
class PrefixCaching(_Growing):
    """Pages on demand; blocks of equal prefixes are shared and kept, LRU."""

    def build(self, pool: Pool) -> KVAllocator:
        layout = pool.layout
        index = PrefixIndex(pool.table, layout.block_tokens)
        if pool.host is not None:
            return OffloadingAllocator(
                pool.num_pages, index, layout.block_tokens, layout.full, pool.host
            )
        return PrefixCachingAllocator(pool.num_pages, index, layout.block_tokens, layout.full)


@dataclass(frozen=True, kw_only=True)
class VAttention(_Growing):
    """Contiguous virtual memory mapped by page-groups on demand, which are the engine's blocks."""

    page_group_bytes: int = 2 * 2**20  # 64, 128, 256 KiB with a patched driver, 2 MiB without
    map_latency_s: float = 40e-6  # of one page-group: cuMemMap and cuMemSetAccess
    background: bool = True  # decodes' page-groups are mapped during the iteration before
    defer_reclamation: bool = True  # an ended request's slot stays mapped for the next one

    def __post_init__(self) -> None:
        if self.page_group_bytes < 1 or not self.map_latency_s >= 0:
            raise ConfigError(
                "allocator: expected page_group_bytes >= 1 and map_latency_s >= 0 "
                f"(got {self.page_group_bytes!r} and {self.map_latency_s!r})"
            )

    def block_tokens(self, model: ModelSpec, tp: int) -> int:
        """Tokens of a page-group: bytes over those of K (or V) of a token of a layer on a GPU.

        Raises:
            ConfigError: a group too small for a token, or layers that differ in what they keep.
        """
        sizes = {
            attention_work(layer.attention, model.kv_format, tp).kv_bytes_per_token / 2
            for layer in model.layer_kinds
        }
        windows = {layer.attention.window for layer in model.layer_kinds}
        if len(sizes) > 1 or windows != {0}:
            raise ConfigError(
                f"allocator vattention: expected layers with equal KV and no window ({model.name})"
            )
        tokens = int(self.page_group_bytes // sizes.pop())
        if tokens < 1:
            raise ConfigError(
                f"allocator.page_group_bytes: expected room for a token of {model.name} "
                f"(got {self.page_group_bytes})"
            )
        return tokens

    def build(self, pool: Pool) -> KVAllocator:
        return MappedAllocator(pool.num_pages, pool.layout.block_tokens, self.defer_reclamation)


RESERVE = ("max", "pow2", "oracle")
FITS: dict[str, Callable[[int], Space]] = {
    "first": FitSpace,
    "best": lambda num_pages: FitSpace(num_pages, best=True),
    "anywhere": AnywhereSpace,
}


@dataclass(frozen=True, kw_only=True)
class RemotePrefill(_Growing):
    """Paged, for an instance that only decodes: the KV of prompts is sent to it."""

    def build(self, pool: Pool) -> KVAllocator:
        return RemotePrefillAllocator(pool.num_pages)


class _Reserving:
    """A piece for every request at admission."""

    reserve: str

    def __post_init__(self) -> None:
        if self.reserve not in RESERVE:
            names = ", ".join(RESERVE)
            raise ConfigError(f"allocator.reserve: expected one of {names} (got {self.reserve!r})")

    def layout(self, layout: PageLayout) -> PageLayout:
        return PageLayout(layout.block_tokens, 0)

    def reserved_pages(self, pool: Pool) -> Ints:
        """Every layer keeps every token: pieces know no windows."""
        blocks: Ints = -(-self.asked_tokens(pool) // pool.layout.block_tokens)
        return blocks * pool.layout.most

    def asked_tokens(self, pool: Pool) -> Ints:
        return reserved_tokens(self.reserve, pool.table, pool.max_model_len)

    def _allocator(self, pool: Pool, space: Space, pages: Ints) -> KVAllocator:
        return ReservedAllocator(pool.num_pages, space, pages.tolist())


@dataclass(frozen=True, kw_only=True)
class Reserved(_Reserving):
    """A piece for the whole request at admission: of FasterTransformer's kind."""

    reserve: str = "max"  # max, pow2 (output rounded up) or oracle (true length)
    fit: str = "first"  # first or best hole, or anywhere: pages need not adjoin

    def __post_init__(self) -> None:
        _Reserving.__post_init__(self)
        if self.fit not in FITS:
            names = ", ".join(FITS)
            raise ConfigError(f"allocator.fit: expected one of {names} (got {self.fit!r})")

    def build(self, pool: Pool) -> KVAllocator:
        return self._allocator(pool, FITS[self.fit](pool.num_pages), self.reserved_pages(pool))

    def fits(self, pool: Pool) -> Mask:
        fits: Mask = self.reserved_pages(pool) <= pool.num_pages
        return fits


@dataclass(frozen=True, kw_only=True)
class Buddy(_Reserving):
    """Reservation in powers of two by the buddy algorithm: Orca as the vLLM paper runs it."""

    reserve: str = "max"  # max, pow2 (output rounded up) or oracle (true length)

    def build(self, pool: Pool) -> KVAllocator:
        return self._allocator(pool, BuddySpace(pool.num_pages), self.reserved_pages(pool))

    def reserved_pages(self, pool: Pool) -> Ints:
        exact = super().reserved_pages(pool).tolist()
        return np.array([1 << buddy_order(pages) for pages in exact], dtype=np.int64)

    def fits(self, pool: Pool) -> Mask:
        fits: Mask = self.reserved_pages(pool) <= 1 << (pool.num_pages.bit_length() - 1)
        return fits
