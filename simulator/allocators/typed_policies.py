"""Allocators for models whose layers need unlike memory: Jenga's, and those it is compared with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from simulator.allocators.lcm import LcmPool
from simulator.allocators.paged import PagedAllocator
from simulator.allocators.policies import KVAllocator, Mask, Pool, _Growing
from simulator.allocators.prefix import PrefixCachingAllocator, PrefixIndex
from simulator.allocators.typed import Kind, TypedAllocator
from simulator.batch import PageLayout
from simulator.errors import ConfigError

EVICTIONS = ("aligned", "queue")


@dataclass(frozen=True, kw_only=True)
class _Typed(_Growing, ABC):
    """Pages by kind of layer; windows are freed as they slide, chunks in flight are held."""

    prefix_caching: bool = True  # where requests name their content
    # Tokens kept beyond a window: else what follows a shared prompt pushes out what a hit needs.
    window_extra: int = 0
    # A chunk's KV is stored whole until the next. False: of a prompt's first chunk only the last
    # window is, as where attention reads the keys of a whole prompt while they are at hand.
    store_chunks: bool = True
    knows_holders: ClassVar[bool] = True  # its lanes tell it whose pages they take

    def __post_init__(self) -> None:
        if self.window_extra < 0:
            raise ConfigError(
                f"allocator.window_extra: expected an int >= 0 (got {self.window_extra!r})"
            )

    @abstractmethod
    def _kinds(self, pool: Pool) -> list[Kind]:
        """The kinds of layers, and the pool that each takes its pages from."""

    def _is_aligned(self) -> bool:
        return False

    def layout(self, layout: PageLayout) -> PageLayout:
        """At most one large page a kind whenever a sequence begins a block."""
        return PageLayout(layout.block_tokens, bool(layout.full) + len(layout.windows))

    def build(self, pool: Pool) -> KVAllocator:
        return TypedAllocator(
            (kind._replace(extra=self.window_extra) for kind in self._kinds(pool)),
            pool.layout.block_tokens,
            _index(pool) if self.prefix_caching else None,
            aligned=self._is_aligned(),
            most_chunk=pool.max_num_tokens,
            stores_chunks=self.store_chunks,
        )

    def fits(self, pool: Pool) -> Mask:
        """Which requests can run alone, their largest chunk in flight."""
        tokens = pool.table.prompt_tokens + pool.table.output_tokens - 1
        size, kinds = pool.layout.block_tokens, self._kinds(pool)
        fits: Mask = np.ones(len(tokens), dtype=np.bool_)
        for space in {id(kind.pool): kind.pool for kind in kinds}.values():
            larges = np.zeros(len(tokens), dtype=np.int64)
            for kind in (kind for kind in kinds if kind.pool is space):
                blocks = -(-tokens // size)
                if kind.window:
                    window = kind.window + self.window_extra
                    most = -(-(window + pool.max_num_tokens) // size) + 1
                    blocks = np.minimum(blocks, most)
                larges += -(-blocks // space.per_large[kind.name])
            fits &= larges <= space.num_large
        return fits


def _index(pool: Pool) -> PrefixIndex | None:
    if pool.table.hash_ids is None:
        return None
    return PrefixIndex(pool.table, pool.layout.block_tokens)


def _name(window: int) -> str:
    return f"window {window}" if window else "full"


def _page_bytes(pool: Pool) -> dict[int, int]:
    """Bytes of a block in all layers of a type, by window."""
    return {t.window: round(t.bytes_per_token * pool.layout.block_tokens) for t in pool.types}


@dataclass(frozen=True, kw_only=True)
class Jenga(_Typed):
    """Large pages, the least common multiple of what types of layers need, cut into small ones."""

    request_aware: bool = True  # a large page's small ones go to one request while room lasts
    eviction: str = "aligned"  # or queue: one LRU queue, as in vLLM's hybrid manager

    def __post_init__(self) -> None:
        _Typed.__post_init__(self)
        _check_eviction(self.eviction)

    def _is_aligned(self) -> bool:
        return self.eviction == "aligned"

    def _kinds(self, pool: Pool) -> list[Kind]:
        sizes = _page_bytes(pool)
        small = {_name(window): size for window, size in sizes.items()}
        space = LcmPool(pool.num_bytes, small, request_aware=self.request_aware)
        return [Kind(_name(window), window, space) for window in sizes]


@dataclass(frozen=True, kw_only=True)
class MaxPage(_Typed):
    """Every type's page is as large as the largest type's: what is smaller is padded."""

    def _kinds(self, pool: Pool) -> list[Kind]:
        sizes = _page_bytes(pool)
        space = LcmPool(pool.num_bytes, dict.fromkeys(map(_name, sizes), max(sizes.values())))
        return [Kind(_name(window), window, space) for window in sizes]


@dataclass(frozen=True, kw_only=True)
class StaticPartition(_Typed):
    """A fixed share of memory for each type, by the bytes of a token in its layers."""

    window_weight: float = 0.5  # of a window's layers in the shares, where others weigh 1

    def __post_init__(self) -> None:
        _Typed.__post_init__(self)
        if not 0 < self.window_weight < float("inf"):
            raise ConfigError(
                f"allocator.window_weight: expected a number > 0 (got {self.window_weight!r})"
            )

    def _kinds(self, pool: Pool) -> list[Kind]:
        sizes = _page_bytes(pool)
        weights = {w: size * (self.window_weight if w else 1.0) for w, size in sizes.items()}
        total = sum(weights.values())
        return [
            Kind(_name(w), w, LcmPool(pool.num_bytes * weights[w] / total, {_name(w): size}))
            for w, size in sizes.items()
        ]


@dataclass(frozen=True, kw_only=True)
class Hybrid(_Typed):
    """vLLM's hybrid manager block by block: groups of layers with one page size, padded."""

    eviction: str = "queue"  # or aligned, as Jenga's

    def __post_init__(self) -> None:
        _Typed.__post_init__(self)
        _check_eviction(self.eviction)

    def _is_aligned(self) -> bool:
        return self.eviction == "aligned"

    def layout(self, layout: PageLayout) -> PageLayout:
        return PageLayout(layout.block_tokens, layout.most)

    def _kinds(self, pool: Pool) -> list[Kind]:
        layout = pool.layout
        groups = [(0, layout.full)] if layout.full else []
        windows = [t.window for t in pool.types if t.window]
        groups += [(w, weight) for w, (_, weight) in zip(windows, layout.windows, strict=True)]
        names = [(f"{_name(w)} {i}", w) for w, weight in groups for i in range(weight)]
        space = LcmPool(pool.num_pages, dict.fromkeys((name for name, _ in names), 1))
        return [Kind(name, window, space) for name, window in names]


@dataclass(frozen=True, kw_only=True)
class Uniform(_Growing):
    """Every layer keeps every token: pages of all layers, as before layers differed."""

    prefix_caching: bool = True  # where requests name their content

    def layout(self, layout: PageLayout) -> PageLayout:
        return PageLayout(layout.block_tokens)

    def _num_pages(self, pool: Pool) -> int:
        return int(pool.num_bytes // sum(_page_bytes(pool).values()))

    def fits(self, pool: Pool) -> Mask:
        tokens = pool.table.prompt_tokens + pool.table.output_tokens - 1
        fits: Mask = -(-tokens // pool.layout.block_tokens) <= self._num_pages(pool)
        return fits

    def build(self, pool: Pool) -> KVAllocator:
        index, num_pages = _index(pool) if self.prefix_caching else None, self._num_pages(pool)
        if index is None:
            return PagedAllocator(num_pages)
        return PrefixCachingAllocator(num_pages, index, pool.layout.block_tokens)


def _check_eviction(eviction: str) -> None:
    if eviction not in EVICTIONS:
        raise ConfigError(f"allocator.eviction: expected aligned or queue (got {eviction!r})")
