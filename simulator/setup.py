"""A simulation without model or hardware: replicas by price and pool, policies, requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.allocators import AllocatorPolicy, HostMemory, Paged, Pool, PrefixCaching
from simulator.batch import FOREVER, PageLayout
from simulator.costs.compiled import CompiledCost
from simulator.drafting import SpeculationKind
from simulator.migration import CopyTime
from simulator.request import Ints, RequestTable
from simulator.routers import Router
from simulator.schedulers import Scheduler


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaKind:
    """Identical replicas: their price, and the KV pool of each of their attention ranks."""

    num_replicas: int
    num_ranks: int
    num_lanes: int
    cost: CompiledCost
    num_pages: int
    layout: PageLayout
    max_kv_tokens: int  # of one sequence alone
    speculation: SpeculationKind | None = None  # None = one token a decode an iteration
    stage_layers: int = 1  # layers of the longest stage
    page_bytes: float = 2.0**21  # of one page on one of its GPUs
    host_bytes_per_s: float = 25e9  # from each GPU to its host's memory
    host: HostMemory | None = None  # for what the prefix cache has lost


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A simulation without model or hardware: prices, pools, policies and requests."""

    kinds: tuple[ReplicaKind, ...]
    table: RequestTable
    scheduler: Scheduler
    router: Router
    allocator: AllocatorPolicy | None = None  # None = paged, with a prefix cache if that can help
    max_model_len: int = 0
    prefix_caching: bool = True
    lead_ns: Ints | None = None  # of each request, from its sending to its arrival; None = 0
    plans_ahead: bool = False  # asynchronous scheduling: each iteration is planned one ahead
    horizon_ns: int = FOREVER
    coalesce: bool = True
    copy_ns: CopyTime | None = None  # of pages between two replicas; None = they share no link


def each_replica(setup: Setup) -> Iterator[ReplicaKind]:
    """One kind for every replica, in order."""
    for kind in setup.kinds:
        for _ in range(kind.num_replicas):
            yield kind


def policy_of(setup: Setup) -> AllocatorPolicy:
    """The allocator of the set-up, or the one it would choose itself."""
    if setup.allocator is not None:
        return setup.allocator
    shares = setup.prefix_caching and setup.table.hash_ids is not None
    return PrefixCaching() if shares else Paged()


def pool_of(setup: Setup, kind: ReplicaKind) -> Pool:
    """The KV pool of one rank, as an allocator is told of it."""
    return Pool(
        num_pages=kind.num_pages,
        layout=kind.layout,
        table=setup.table,
        max_model_len=setup.max_model_len or kind.max_kv_tokens,
        host=kind.host,
    )


def welcome(setup: Setup) -> NDArray[np.bool_] | None:
    """Requests that the scheduler takes and an empty pool has a place for; None = all."""
    takes = getattr(setup.scheduler, "takes", None)
    policy, fits = policy_of(setup), None if takes is None else takes(setup.table)
    for kind in setup.kinds:
        pool = pool_of(setup, kind)
        mine = policy.fits(pool)
        if mine is not None:
            fits = mine if fits is None else fits & mine
    return fits
