"""What was occupied when: KV blocks, running and waiting requests, as step functions of time.

The log samples used KV blocks where a segment starts; inside a segment of n decode iterations the
use grows by num_decode / block_tokens blocks an iteration, which is what is assumed here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.itl import TokenLog
from simulator.recorder import REJECTED, Result
from simulator.segments import SegmentTable

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeries:
    """values[i] holds from time_ns[i] to time_ns[i + 1]; 0 before the first, the last stays."""

    time_ns: Ints  # increasing
    values: Floats

    def max(self) -> float:
        return float(self.values.max()) if len(self.values) else 0.0

    def means(self, edges_ns: Floats) -> Floats:
        """Time-weighted mean between each two edges (NaN between equal ones)."""
        width = np.diff(edges_ns)
        area = np.diff(self._integral(edges_ns))
        nothing = np.full(len(width), np.nan)
        means: Floats = np.divide(area, width, out=nothing, where=width > 0)
        return means

    def at(self, time_ns: Ints) -> Floats:
        """Values at these moments."""
        index = np.searchsorted(self.time_ns, time_ns, side="right") - 1
        if len(self.values) == 0:
            return np.zeros(len(time_ns))
        return np.where(index < 0, 0.0, self.values[index])

    def mean(self, start_ns: int, end_ns: int) -> float:
        return float(self.means(np.array([start_ns, end_ns], dtype=np.float64))[0])

    def _integral(self, time_ns: Floats) -> Floats:
        if len(self.time_ns) == 0:
            return np.zeros(len(time_ns))
        known = np.concatenate(([0.0], np.cumsum(self.values[:-1] * np.diff(self.time_ns))))
        index = np.searchsorted(self.time_ns, time_ns, side="right") - 1
        partial = self.values[index] * (time_ns - self.time_ns[index])
        return np.where(index < 0, 0.0, known[index] + partial)


def step_series(time_ns: Ints, change: Ints | Floats) -> StepSeries:
    """Running sum of `change`; changes at one instant count as one."""
    order = np.argsort(time_ns, kind="stable")
    at, value = time_ns[order], np.cumsum(change[order], dtype=np.float64)
    keep = np.append(at[1:] != at[:-1], True) if len(at) else np.zeros(0, dtype=np.bool_)
    return StepSeries(time_ns=at[keep], values=value[keep])


def running_and_waiting(
    result: Result, log: TokenLog, mine: NDArray[np.bool_] | None = None
) -> tuple[StepSeries, StepSeries]:
    """Requests in the system: admitted, and waiting; only those that are `mine`, if given.

    Waiting is from being sent to the first admission and, after a preemption, from the last token
    before it to the first one after it (known of completed requests). Rejected ones never wait.
    Of requests with several answers each answer counts.
    """
    result = result.samples or result
    accepted = result.status != REJECTED
    if mine is not None:
        accepted &= mine
    sent = result.sent_ns[accepted & (result.sent_ns >= 0)]
    scheduled = result.scheduled_ns[accepted & (result.scheduled_ns >= 0)]
    finished = result.finish_ns[accepted & (result.finish_ns >= 0)]
    later = log.after_gaps()
    if mine is not None:
        later = later[mine[log.request[later]]]
    if log.paused is not None:  # they wait for a token, but stay admitted
        later = later[~log.paused[later - 1]]
    paused, resumed = log.end_ns[log.last[later - 1]], log.end_ns[log.first[later]]
    time_ns = np.concatenate((scheduled, resumed, finished, paused))
    running = np.repeat([1, -1], [len(scheduled) + len(resumed), len(finished) + len(paused)])
    waiting_ns = np.concatenate((sent, paused, scheduled, resumed))
    waiting = np.repeat([1, -1], [len(sent) + len(paused), len(scheduled) + len(resumed)])
    return step_series(time_ns, running), step_series(waiting_ns, waiting)


def kv_utilisation(
    result: Result, segments: SegmentTable, only_rank: int | None = None
) -> tuple[StepSeries, float]:
    """Share of all KV blocks in use over time, and the highest share any rank reached.

    Of one rank's blocks, where `only_rank` says which.
    """
    time_ns, change, peak = [np.empty(0, np.int64)], [np.empty(0)], 0.0
    ranks = range(len(result.num_blocks)) if only_rank is None else (only_rank,)
    for rank in ranks:
        num_blocks = result.num_blocks[rank]
        mine = np.flatnonzero(segments.rank == rank)
        if len(mine) == 0 or num_blocks == 0:
            continue
        mine = mine[np.argsort(segments.start_ns[mine], kind="stable")]
        start_ns, end_ns, first, last = _kv_pieces(result, segments, mine, num_blocks)
        time_ns += [start_ns, end_ns]
        change += [(first + last) / 2, -(first + last) / 2]
        peak = max(peak, float(last.max()) / num_blocks)
    blocks = step_series(np.concatenate(time_ns), np.concatenate(change))
    total = max(1, sum(result.num_blocks[rank] for rank in ranks))
    # Sums of halves are exact; the clip is for a clean zero where growth was not a binary fraction.
    shares = np.clip(blocks.values / total, 0.0, 1.0)
    return StepSeries(time_ns=blocks.time_ns, values=shares), peak


def sharing_saves(result: Result, segments: SegmentTable) -> float:
    """Blocks saved by sharing over those that would be held without it, each summed over time.

    PagedAttention's measure (SOSP'23, section 6.3), for sequences that fork from one prompt.
    """
    columns = segments.columns
    growth = columns["num_decode"] * (columns["iterations"] - 1) / result.block_tokens / 2
    saved = float(np.dot(segments.busy_ns, columns["saved_blocks"]))
    used = float(np.dot(segments.busy_ns, columns["used_blocks"] + growth))
    return saved / (saved + used) if saved else 0.0


def _kv_pieces(
    result: Result, segments: SegmentTable, mine: Ints, num_blocks: int
) -> tuple[Ints, Ints, Floats, Floats]:
    """Start, end, and blocks used at both ends, of each sample of one rank in time order.

    A rank's lanes share its blocks, so a sample holds until any lane takes the next one, and only
    while some lane has an iteration in flight: an idle rank references no block.
    """
    start_ns, end_ns = segments.start_ns[mine], segments.end_ns[mine]
    used = segments.columns["used_blocks"][mine].astype(np.float64)
    iterations = segments.columns["iterations"][mine]
    grows = result.given_tokens is None  # else all pages are given at admission
    growth = segments.columns["num_decode"][mine] * (iterations - 1) * grows / result.block_tokens
    until_ns = np.maximum.accumulate(end_ns)
    until_ns[:-1] = np.minimum(until_ns[:-1], start_ns[1:])
    elapsed = np.minimum(until_ns, end_ns) - start_ns
    share = elapsed / np.maximum(1, end_ns - start_ns)
    return start_ns, until_ns, used, np.minimum(used + growth * share, num_blocks)
