"""The iteration log of all lanes as one table of segments, with the time each was busy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.recorder import SEGMENT_COLUMNS, SPECULATION_COLUMNS, LaneResult, Result

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentTable:
    """Runs of identical iterations, lane after lane; every column is [num_segments]."""

    columns: dict[str, Ints]  # SEGMENT_COLUMNS, those of speculation, saved_blocks: else zeros
    replica: Ints
    rank: Ints  # attention rank over all replicas, index into Result.num_blocks
    start_ns: Ints  # dispatch of the first iteration
    end_ns: Ints  # end of the last iteration
    busy_ns: Ints  # of [start, end], what the lane's previous segment did not cover

    def __len__(self) -> int:
        return len(self.start_ns)

    def total(self, column: str) -> int:
        """Sum of a per-iteration column over all iterations."""
        return int(np.dot(self.columns["iterations"], self.columns[column]))


def segment_table(result: Result) -> SegmentTable:
    """All lanes' segments, lane after lane, in time order within a lane."""
    ranks = {key: index for index, key in enumerate(sorted({_rank(x) for x in result.lanes}))}
    lanes = result.lanes
    counts = [len(lane.segment_start_ns) for lane in lanes]
    ends = [segment_end_ns(lane) for lane in lanes]
    return SegmentTable(
        columns={
            **{name: _join([x.segments[name] for x in lanes]) for name in SEGMENT_COLUMNS},
            **{name: _join([_drafted(x, name) for x in lanes]) for name in SPECULATION_COLUMNS},
            "saved_blocks": _join([_saved(x) for x in lanes]),
        },
        replica=np.repeat(np.array([x.replica for x in lanes], dtype=np.int64), counts),
        rank=np.repeat(np.array([ranks[_rank(x)] for x in lanes], dtype=np.int64), counts),
        start_ns=_join([lane.segment_start_ns for lane in lanes]),
        end_ns=_join(ends),
        busy_ns=_join([_busy_ns(x, end) for x, end in zip(lanes, ends, strict=True)]),
    )


def _drafted(lane: LaneResult, name: str) -> Ints:
    if lane.speculation is None:
        return np.zeros(len(lane.segment_start_ns), dtype=np.int64)
    return lane.speculation[name]


def _saved(lane: LaneResult) -> Ints:
    zeros = np.zeros(len(lane.segment_start_ns), dtype=np.int64)
    return zeros if lane.saved_blocks is None else lane.saved_blocks


def segment_end_ns(lane: LaneResult) -> Ints:
    """End of the last iteration of each segment of a lane."""
    return lane.end_ns[np.cumsum(lane.segments["iterations"]) - 1]


def _busy_ns(lane: LaneResult, end_ns: Ints) -> Ints:
    start_ns = lane.segment_start_ns.copy()
    start_ns[1:] = np.maximum(start_ns[1:], end_ns[:-1])
    return end_ns - start_ns


def _rank(lane: LaneResult) -> tuple[int, int]:
    return lane.replica, lane.rank


def _join(parts: list[Ints]) -> Ints:
    return np.concatenate([np.empty(0, np.int64), *parts])
