"""A simulation without model or hardware: replicas by price and pool, policies, requests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from simulator.allocators import AllocatorPolicy, HostMemory, Paged, Pool, PrefixCaching
from simulator.batch import FOREVER, PageLayout
from simulator.costs.compiled import CompiledCost
from simulator.drafting import SpeculationKind
from simulator.memory import KvType
from simulator.migration import CopyTime
from simulator.request import Ints, RequestTable
from simulator.routers import Router
from simulator.samples import sample_rows
from simulator.schedulers import Scheduler
from simulator.schedulers.swapping import SwapSpace


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
    memory_bytes_per_s: float = 2e12  # of its own
    kv_types: tuple[KvType, ...] = ()  # of layers; () = one, a byte a token
    kv_bytes: float = 0.0  # of the pool, on one GPU; 0 = a byte a token of each page
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


def group_space(setup: Setup) -> SwapSpace | None:
    """Where groups of sequences go when they are preempted; None = the scheduler knows no forks."""
    space: SwapSpace | None = getattr(setup.scheduler, "group_space", None)
    return space


def by_sample(setup: Setup) -> Setup:
    """The set-up with a row a sample instead of a row a request."""
    policy, names = policy_of(setup), 0
    if (setup.allocator is None and setup.prefix_caching) or isinstance(policy, PrefixCaching):
        names = 0 if group_space(setup) else setup.kinds[0].layout.block_tokens
    table, of = sample_rows(setup.table, names)
    kinds = tuple(
        kind
        if kind.speculation is None
        else replace(kind, speculation=replace(kind.speculation, lengths=table.output_tokens))
        for kind in setup.kinds
    )
    lead_ns = None if setup.lead_ns is None else setup.lead_ns[of]
    return replace(setup, table=table, kinds=kinds, lead_ns=lead_ns)


def pool_of(setup: Setup, kind: ReplicaKind) -> Pool:
    """The KV pool of one rank, as an allocator is told of it."""
    return Pool(
        num_pages=kind.num_pages,
        layout=kind.layout,
        table=setup.table,
        max_model_len=setup.max_model_len or kind.max_kv_tokens,
        types=kind.kv_types or (KvType(0, 1.0),),
        num_bytes=kind.kv_bytes or float(kind.num_pages * kind.layout.block_tokens),
        max_num_tokens=kind.cost.max_num_tokens,
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
        if group_space(setup) and setup.table.leader is not None:
            mine = _group_fits(setup.table, kind, policy.layout(kind.layout))
            fits = mine if fits is None else fits & mine
    return fits


def _group_fits(table: RequestTable, kind: ReplicaKind, layout: PageLayout) -> NDArray[np.bool_]:
    """Rows whose request has places and pages for all its sequences, sharing their prompt only."""
    assert table.leader is not None
    block, full = layout.block_tokens, layout.full
    shared = table.prompt_tokens // block
    own = -(-(table.prompt_tokens + table.output_tokens - 1) // block) - shared
    blocks = np.bincount(table.leader, weights=own, minlength=len(table)) + shared
    sizes = np.bincount(table.leader, minlength=len(table))
    fits = (blocks * full <= kind.num_pages) & (sizes <= kind.cost.max_num_seqs)
    chosen: NDArray[np.bool_] = fits[table.leader]
    return chosen
