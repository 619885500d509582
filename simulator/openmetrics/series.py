"""The metrics of a run at moments of simulated time, from its columns: no loop over tokens.

Everything is per attention rank (vLLM's label `engine`). Counters and histograms hold what happened
up to and including a moment. Gaps between tokens are those of completed requests. A preemption
whose moment the log does not hold (of a prompt that was still being computed) counts at the
request's first token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.itl import TokenLog, token_log
from simulator.latency import RequestTimes, request_times
from simulator.occupancy import kv_utilisation, running_and_waiting
from simulator.openmetrics.names import HISTOGRAMS, TOKEN_HISTOGRAMS, token_buckets
from simulator.recorder import Result
from simulator.segments import SegmentTable, segment_table

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """A histogram over time."""

    ends: tuple[float, ...]  # upper ends of the buckets, the infinite one left out
    counts: Ints  # [num_moments, num_buckets + 1] observations up to each end
    sums: Floats  # [num_moments]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSeries:
    """Every metric of one rank, by its name without prefix and suffix."""

    gauges: dict[str, Floats]  # [num_moments]
    counters: dict[str, Ints]
    success: Ints
    histograms: dict[str, Distribution]


@dataclass(frozen=True, slots=True)
class _Run:
    result: Result
    log: TokenLog
    times: RequestTimes
    segments: SegmentTable
    lane_rank: Ints  # [num_lanes]
    gap_rank: Ints  # of `log.ended_gaps`
    most_tokens: int


def rank_series(result: Result, moments_ns: Ints, most_tokens: int = 0) -> Iterator[RankSeries]:
    """The metrics of each rank at these moments, which increase."""
    log, segments = token_log(result), segment_table(result)
    lengths = [len(lane.end_ns) for lane in result.lanes]
    places = sorted({(lane.replica, lane.rank) for lane in result.lanes})
    lane_rank = np.array([places.index((x.replica, x.rank)) for x in result.lanes], dtype=np.int64)
    _, _, ended = log.ended_gaps()
    run = _Run(
        result,
        log,
        request_times(result, log),
        segments,
        lane_rank,
        np.repeat(lane_rank, lengths)[ended],
        most_tokens or int((result.table.prompt_tokens + result.table.output_tokens).max()),
    )
    for rank in range(len(result.num_blocks)):
        yield _of_rank(run, rank, moments_ns)


def _of_rank(run: _Run, rank: int, moments_ns: Ints) -> RankSeries:
    result, mine = run.result, run.result.target == rank
    running, waiting = running_and_waiting(result, run.log, mine)
    memory = kv_utilisation(result, run.segments, rank)[0]
    finished = mine & result.completed
    return RankSeries(
        gauges={
            "num_requests_running": running.at(moments_ns),
            "num_requests_waiting": waiting.at(moments_ns),
            "kv_cache_usage_perc": memory.at(moments_ns),
        },
        counters={
            "num_preemptions": _preemptions(run, mine, moments_ns),
            "prompt_tokens": _up_to(
                moments_ns, result.first_token_ns, result.table.prompt_tokens, mine
            ),
            "generation_tokens": _generated(run, rank, moments_ns),
            "prefix_cache_queries": _up_to(
                moments_ns, result.scheduled_ns, result.table.prompt_tokens, mine
            ),
            "prefix_cache_hits": _up_to(
                moments_ns, result.scheduled_ns, result.cached_tokens, mine
            ),
        },
        success=_up_to(moments_ns, result.finish_ns, np.ones_like(result.finish_ns), finished),
        histograms=_histograms(run, rank, mine, moments_ns),
    )


def _up_to(moments_ns: Ints, time_ns: Ints, amount: Ints, mine: Bools) -> Ints:
    """Sum of the amounts up to each moment; a time below 0 never comes."""
    kept = mine & (time_ns >= 0)
    place = np.searchsorted(moments_ns, time_ns[kept])
    added = np.zeros(len(moments_ns) + 1, dtype=np.int64)
    np.add.at(added, place, amount[kept])
    return np.cumsum(added[:-1])


def _generated(run: _Run, rank: int, moments_ns: Ints) -> Ints:
    total = np.zeros(len(moments_ns), dtype=np.int64)
    for lane, at in zip(run.result.lanes, run.lane_rank.tolist(), strict=True):
        if at == rank:
            tokens = np.cumsum(np.repeat(lane.segments["sampled"], lane.segments["iterations"]))
            before = np.searchsorted(lane.end_ns, moments_ns, side="right")
            total += np.concatenate(([0], tokens))[before]
    return total


def _preemptions(run: _Run, mine: Bools, moments_ns: Ints) -> Ints:
    result, log = run.result, run.log
    later = log.after_gaps()
    if log.paused is not None:
        later = later[~log.paused[later - 1]]
    request, time_ns = log.request[later], log.end_ns[log.last[later - 1]]
    once = np.ones(len(later), dtype=np.int64)
    known = np.bincount(request, minlength=len(result.table))
    rest = np.maximum(result.preemptions - known, 0)
    never = result.first_token_ns < 0
    rest_ns = np.where(never, result.end_ns, result.first_token_ns)
    return _up_to(moments_ns, time_ns, once, mine[request]) + _up_to(
        moments_ns, rest_ns, rest, mine
    )


def _histograms(run: _Run, rank: int, mine: Bools, moments_ns: Ints) -> dict[str, Distribution]:
    result, times = run.result, run.times
    first, finish = result.first_token_ns, np.where(result.completed, result.finish_ns, -1)
    observed = {  # values, when each was observed
        "time_to_first_token_seconds": (times.ttft_s, first),
        "request_time_per_output_token_seconds": (times.tpot_s, finish),
        "e2e_request_latency_seconds": (times.e2e_s, finish),
        "request_queue_time_seconds": (times.queueing_s, finish),
        "request_inference_time_seconds": (times.e2e_s - times.queueing_s, finish),
        "request_prefill_time_seconds": (times.prefill_s, finish),
        "request_decode_time_seconds": (times.e2e_s - times.ttft_s, finish),
        "request_prompt_tokens": (result.table.prompt_tokens.astype(np.float64), finish),
        "request_generation_tokens": (result.table.output_tokens.astype(np.float64), finish),
    }
    found: dict[str, Distribution] = {}
    for name in (*HISTOGRAMS, *TOKEN_HISTOGRAMS):
        ends = HISTOGRAMS[name][0] if name in HISTOGRAMS else tuple(token_buckets(run.most_tokens))
        if name == "inter_token_latency_seconds":
            gap_ns, counts, ended = run.log.ended_gaps()
            kept = run.gap_rank == rank
            values, time_ns = gap_ns[kept] / 1e9, run.log.end_ns[ended[kept]]
            found[name] = _distribution(moments_ns, ends, values, time_ns, counts[kept])
            continue
        values, time_ns = observed[name]
        kept = mine & (time_ns >= 0) & ~np.isnan(values)
        once = np.ones(int(kept.sum()), dtype=np.int64)
        found[name] = _distribution(moments_ns, ends, values[kept], time_ns[kept], once)
    return found


def _distribution(
    moments_ns: Ints, ends: tuple[float, ...], values: Floats, time_ns: Ints, counts: Ints
) -> Distribution:
    """Values, each observed `counts` times, in buckets that include their upper end."""
    place, bucket = np.searchsorted(moments_ns, time_ns), np.searchsorted(ends, values)
    added = np.zeros((len(moments_ns) + 1, len(ends) + 1), dtype=np.int64)
    np.add.at(added, (place, bucket), counts)
    total = np.zeros(len(moments_ns) + 1)
    np.add.at(total, place, values * counts)
    return Distribution(
        ends=tuple(float(end) for end in ends),
        counts=np.cumsum(np.cumsum(added[:-1], axis=0), axis=1),
        sums=np.cumsum(total[:-1]),
    )
