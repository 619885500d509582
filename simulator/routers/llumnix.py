"""Llumnix (OSDI'24): dispatch by freeness, live migration, priorities, auto-scaling.

An instance is an attention rank. Its freeness is (M - sum of virtual usage) / B, in KV blocks of M
a running request may still grow by; it is negative while more is queued than fits. Virtual usage
is the pages a request holds; the whole demand of the first in the queue, which makes an instance
look full that must make room (de-fragmentation); everything, on an instance that is being drained;
and beside requests of negative priority a headroom, which keeps others away. This is the policy;
`simulator.migration` moves the requests, `simulator.fleet` starts and drains instances. Without
`migrate` and `scale` it is INFaaS++, dispatch by load alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as Ranks
from dataclasses import dataclass
from typing import Any, Protocol

from simulator.errors import ConfigError
from simulator.request import Sequence

VICTIMS = ("shortest", "last")
POSITIVE = ("interval_s", "scale_interval_s", "max_stages", "min_instances")
NOT_NEGATIVE = ("last_stage_blocks", "stage_s", "link_bytes_per_s", "headroom_tokens",
                "initial_instances", "startup_s")  # fmt: skip


class InstanceView(Protocol):
    """Load of one instance, in KV pages."""

    is_open: bool  # takes requests; False = drained, or off

    @property
    def num_running(self) -> int: ...

    @property
    def num_waiting(self) -> int: ...

    @property
    def num_pages(self) -> int: ...

    @property
    def used_pages(self) -> int:
        """What arriving requests have reserved included."""
        ...

    @property
    def head_pages(self) -> int:
        """Whole demand of the first in the queue."""
        ...

    @property
    def queued_pages(self) -> int:
        """Demand of everybody in the queue."""
        ...

    @property
    def num_urgent(self) -> int:
        """Running requests of negative priority."""
        ...

    @property
    def block_pages(self) -> int:
        """Pages of one block."""
        ...

    @property
    def block_tokens(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Llumnix:
    """Freest instance first; running requests move from full instances to free ones."""

    migrate: bool = True
    interval_s: float = 0.2  # between two pairings: four reports, one every 50 ms
    source_below: float = 3.0  # freeness, in blocks a request
    victim: str = "shortest"  # or last: of the least urgent running requests
    last_stage_blocks: int = 16  # so few left are copied while the request stands still
    max_stages: int = 3  # a request that outruns its copies is left where it is
    stage_s: float = 0.001  # of every stage besides its copy: its messages; assumption
    link_bytes_per_s: float = 0.0  # of every GPU's copy; 0 = the cluster's links
    headroom_tokens: int = 0  # kept free beside requests of negative priority
    scale: bool = False
    scale_interval_s: float = 10.0
    up_below: float = 10.0  # freeness of all together below which an instance is added
    down_above: float = 60.0  # above which one is drained
    min_instances: int = 1
    initial_instances: int = 0  # 0 = all
    startup_s: float = 10.0  # from the decision to the first request; assumption

    is_static = False

    @property
    def steps(self) -> bool:
        """Replicas go one iteration at a time: a request may leave after any."""
        return self.migrate or self.scale

    @property
    def reads_cache(self) -> bool:
        """Iterations that have ended must be booked before an arrival: freeness counts pages."""
        return not self.steps

    def __post_init__(self) -> None:
        for name in POSITIVE + NOT_NEGATIVE:
            value, least = getattr(self, name), "> 0" if name in POSITIVE else ">= 0"
            if value < 0 or (value == 0 and name in POSITIVE):
                raise ConfigError(f"router.{name}: expected a number {least} (got {value!r})")
        if self.victim not in VICTIMS:
            names = " or ".join(VICTIMS)
            raise ConfigError(f"router.victim: expected {names} (got {self.victim!r})")
        if self.up_below >= self.down_above:
            raise ConfigError(
                f"router.up_below: expected a number < down_above = {self.down_above!r} "
                f"(got {self.up_below!r})"
            )

    def clash(self, scheduler: Any, allocator: Any) -> str:
        """Why migration does not go with these; "" where it does."""
        if not self.steps:
            return ""
        if getattr(scheduler, "runs_to_completion", False):
            return "a batch that runs to completion lets nobody leave; use another scheduler"
        if hasattr(allocator, "reserve"):
            return "a piece reserved in one place cannot move; use the allocator paged"
        return ""

    def choose(self, number: int, seq: Sequence, ranks: Ranks[InstanceView]) -> int:
        """The open instance that is freest once its whole queue has been admitted."""
        return max(
            (i for i, rank in enumerate(ranks) if rank.is_open),
            key=lambda i: (
                self.freeness(ranks[i], ranks[i].queued_pages, ranks[i].num_waiting),
                -i,
            ),
        )

    def spare(self, rank: InstanceView) -> float:
        """Freeness for pairing: of the queue it counts the head alone."""
        if not rank.is_open:
            return -math.inf
        return self.freeness(rank, rank.head_pages, min(1, rank.num_waiting))

    def freeness(self, rank: InstanceView, demand_pages: int, num_queued: int) -> float:
        """Blocks left to each request once `num_queued` more have what they demand."""
        left = rank.num_pages - rank.used_pages - demand_pages
        if self.headroom_tokens and rank.num_urgent:
            left -= -(-self.headroom_tokens // rank.block_tokens) * rank.block_pages
        return left / rank.block_pages / max(1, rank.num_running + num_queued)

    def mean_freeness(self, ranks: Ranks[InstanceView]) -> float:
        """Blocks left to each request of all open instances together, queues included."""
        left, num = 0.0, 0
        for rank in ranks:
            if rank.is_open:
                left += (rank.num_pages - rank.used_pages - rank.queued_pages) / rank.block_pages
                num += rank.num_running + rank.num_waiting
        return left / max(1, num)
