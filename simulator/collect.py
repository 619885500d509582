"""The columns of a run that has ended, as its `Result`."""

from __future__ import annotations

from collections import Counter

import numpy as np

from simulator.forking import ForkLane
from simulator.lane import Lane
from simulator.recorder import (
    SEGMENT_COLUMNS,
    SPECULATION_COLUMNS,
    LaneResult,
    Recorder,
    Result,
    as_ints,
)
from simulator.replica import Replica
from simulator.request import Ints
from simulator.setup import Setup, policy_of, pool_of
from simulator.speculating import SpeculatingLane


def collect(setup: Setup, recorder: Recorder, replicas: list[Replica]) -> Result:
    """Book what is left, check that nothing is, and gather.

    Raises:
        InvariantViolation: a lane is empty, and its pages are not all free.
    """
    lanes: list[tuple[int, int, Lane]] = []  # replica, lane within it
    for number, replica in enumerate(replicas):
        for position, batch in enumerate(replica.batches):
            lanes += [(number, position, lane) for lane in batch.lanes]
    lanes.sort(key=lambda entry: entry[2].key)
    for _, _, lane in lanes:
        lane.rank.catch_up()
        lane.check_drained()
    spans = as_ints(recorder.spans).reshape(-1, 4)
    asked, given = _reservations(setup)
    names = ("span_request", "span_lane", "span_first", "span_last")
    return Result(
        table=setup.table,
        lanes=tuple(_lane_result(*entry) for entry in lanes),
        spans=dict(zip(names, spans.T, strict=True)),
        num_blocks=tuple(rank.allocator.num_pages for r in replicas for rank in r.ranks),
        block_tokens=setup.kinds[0].layout.block_tokens,
        end_ns=max((lane.log.end_ns[-1] for _, _, lane in lanes if lane.log.end_ns), default=0),
        notes=setup.table.notes,
        pauses=as_ints(recorder.pauses),
        pages_per_block=setup.kinds[0].layout.most,
        asked_tokens=asked,
        given_tokens=given,
        counters=_counters(replicas),
        **recorder.columns(),  # type: ignore[arg-type]
    )


def _reservations(setup: Setup) -> tuple[Ints | None, Ints | None]:
    """Tokens that each request asks for at admission, and the slots it is given."""
    policy, pool = policy_of(setup), pool_of(setup, setup.kinds[0])
    pages = policy.reserved_pages(pool)
    if pages is None:
        return None, None
    slots: Ints = pages * pool.layout.block_tokens // pool.layout.most
    return policy.asked_tokens(pool), slots


def _counters(replicas: list[Replica]) -> dict[str, int]:
    """What allocators and lanes have counted, over all ranks."""
    total: Counter[str] = Counter()
    for replica in replicas:
        for rank in replica.ranks:
            total.update(getattr(rank.allocator, "counters", {}))
        for batch in replica.batches:
            for lane in batch.lanes:
                total.update(getattr(lane, "counters", {}))
    return dict(total)


def _lane_result(replica: int, position: int, lane: Lane) -> LaneResult:
    log = lane.log
    columns = as_ints(log.segments).reshape(-1, len(SEGMENT_COLUMNS)).T
    drafted = as_ints(log.speculation).reshape(-1, len(SPECULATION_COLUMNS)).T
    speculates = isinstance(lane, SpeculatingLane)
    return LaneResult(
        replica=replica,
        rank=lane.rank.index,
        lane=position,
        end_ns=as_ints(log.end_ns),
        segment_start_ns=as_ints(log.start_ns),
        segments=dict(zip(SEGMENT_COLUMNS, columns, strict=True)),
        speculation=dict(zip(SPECULATION_COLUMNS, drafted, strict=True)) if speculates else None,
        accepted_at=np.array(lane.accepted_at) if isinstance(lane, SpeculatingLane) else None,
        saved_blocks=as_ints(log.saved_pages) if isinstance(lane, ForkLane) else None,
    )
