"""A run as a file that Perfetto and chrome://tracing open, in the Trace Event format (JSON).

Replicas are processes and lanes are threads: every iteration is a complete event (`X`) with what
was in it. A request is an async span (`b`, `e`) with its phases nested in it: queued, prefill,
decode, preempted. KV blocks in use, and requests running and waiting, are counters (`C`). Events
are bounded by a window, whole where they overlap it; times are simulated microseconds. Preemptions
before the first token count as prefill. Used blocks are those at the start of equal iterations.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulator.itl import TokenLog, token_log
from simulator.occupancy import StepSeries, step_series
from simulator.recorder import REJECTED, LaneResult, Result
from simulator.save import replacing

Ints = NDArray[np.int64]
Event = dict[str, Any]

MOST_EVENTS = 270_000  # of the default window: some 40 MB
EVENTS_PER_REQUEST = 12  # four spans with two ends, and what they change in the counters
QUEUED, PREFILL, DECODE, PREEMPTED = PHASES = ("queued", "prefill", "decode", "preempted")
# Replica r is pid r + 1; its requests are a process of their own, not to bury lanes and counters.
ROUTER, REQUESTS = 0, 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """What requests were doing when, one row a phase, in order of request and time."""

    request: Ints
    phase: Ints  # index into PHASES
    start_ns: Ints
    end_ns: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a timeline file holds."""

    num_events: int
    window_ns: tuple[int, int]
    end_ns: int  # of the run


def save_timeline(
    path: str | Path, result: Result, window_ns: tuple[int, int] | None = None
) -> Written:
    """Write the events that overlap `window_ns`; by default from 0 to what some 40 MB hold.

    Raises:
        ConfigError: the suffix is not .json, or the file cannot be written.
    """
    result = result.samples or result  # of requests with several answers, each answer
    window = window_ns or default_window_ns(result)
    window = (window[0], min(window[1], end_of(result)))
    num_events = 0
    with replacing(path, (".json",)) as place, place.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[\n')
        for event in events(result, window):
            file.write(",\n" if num_events else "")
            file.write(json.dumps(event, separators=(",", ":"), allow_nan=False))
            num_events += 1
        about = {"window_s": [ns / 1e9 for ns in window], "run_s": end_of(result) / 1e9}
        file.write(f'\n],"otherData":{json.dumps(about)}}}\n')
    return Written(num_events=num_events, window_ns=window, end_ns=end_of(result))


def end_of(result: Result) -> int:
    """End of the last iteration, or the last arrival if that is later (ns)."""
    return max(result.end_ns, int(result.sent_ns.max()), 1)


def default_window_ns(result: Result) -> tuple[int, int]:
    """From 0 to the moment by which MOST_EVENTS have happened."""
    parts = [lane.end_ns for lane in result.lanes]
    parts += [np.repeat(result.sent_ns[result.sent_ns >= 0], EVENTS_PER_REQUEST)]
    parts += [np.repeat(lane.segment_start_ns, 2) for lane in result.lanes]  # counters
    moments = np.concatenate(parts) if parts else np.empty(0, np.int64)
    if len(moments) <= MOST_EVENTS:
        return 0, end_of(result)
    return 0, int(np.partition(moments, MOST_EVENTS)[MOST_EVENTS])


def events(result: Result, window_ns: tuple[int, int]) -> Iterator[Event]:
    """All events of the window: names, iterations, requests, counters."""
    phases = request_phases(result)
    replica = _replica_of_requests(result)
    yield from _names(result)
    for lane in result.lanes:
        yield from _iterations(lane, window_ns)
    yield from _requests(result, phases, replica, window_ns)
    yield from _counters(result, phases, replica, window_ns)


def request_phases(result: Result) -> Phases:
    """The phases of every request that was accepted; what the end of the run cut ends there."""
    log, end_ns = token_log(result), end_of(result)
    accepted = (result.status != REJECTED) & (result.sent_ns >= 0)
    columns: list[tuple[Ints, Ints, Ints, Ints]] = []

    def add(phase: str, request: Ints, start: Ints, end: Ints) -> None:
        ends = np.where(end < 0, end_ns, end)
        columns.append((request, np.full(len(request), PHASES.index(phase)), start, ends))

    moments = (result.sent_ns, result.scheduled_ns, result.first_token_ns)
    for phase, start, end in zip(PHASES[:2], moments[:2], moments[1:], strict=True):
        chosen = np.flatnonzero(accepted & (start >= 0))
        add(phase, chosen, start[chosen], end[chosen])
    for phase, request, start, end in _after_first_token(result, log):
        add(phase, request, start, end)
    request, kind, start, end = (np.concatenate(column) for column in zip(*columns, strict=True))
    order = np.lexsort((kind, start, request))
    order = order[end[order] > start[order]]
    return Phases(
        request=request[order], phase=kind[order], start_ns=start[order], end_ns=end[order]
    )


def _after_first_token(result: Result, log: TokenLog) -> Iterator[tuple[str, Ints, Ints, Ints]]:
    """Decode, cut where the request was preempted, and the preemptions themselves."""
    gap = log.after_gaps()
    if log.paused is not None:  # still admitted, pages held
        gap = gap[~log.paused[gap - 1]]
    lost, back = log.end_ns[log.last[gap - 1]], log.end_ns[log.first[gap]]
    yield PREEMPTED, log.request[gap], lost, back
    begun = np.flatnonzero(result.first_token_ns >= 0)
    request = np.concatenate((begun, log.request[gap]))
    start = np.concatenate((result.first_token_ns[begun], back))
    order = np.lexsort((start, request))
    request, start = request[order], start[order]
    finish = np.concatenate((result.finish_ns[begun], lost))
    ends = np.concatenate((begun, log.request[gap]))
    late = np.where(finish < 0, np.iinfo(np.int64).max, finish)  # unfinished: after all others
    order = np.lexsort((late, ends))
    yield DECODE, request, start, finish[order]


def _replica_of_requests(result: Result) -> Ints:
    """Replica of each request, -1 where none took it."""
    ranks = sorted({(lane.replica, lane.rank) for lane in result.lanes}, key=lambda pair: pair[1])
    by_rank = np.full(max((rank for _, rank in ranks), default=-1) + 2, -1, dtype=np.int64)
    for replica, rank in ranks:
        by_rank[rank] = replica
    return by_rank[np.where(result.target < 0, -1, result.target)]


def _tid(lane: LaneResult) -> int:
    return lane.rank * 1000 + lane.lane + 1


def _names(result: Result) -> Iterator[Event]:
    """Metadata: what processes and threads are called, and their order."""

    def named(what: str, pid: int, tid: int, **args: object) -> Event:
        return {"ph": "M", "name": what, "pid": pid, "tid": tid, "args": args}

    yield named("process_name", ROUTER, 0, name="router")
    for replica in sorted({lane.replica for lane in result.lanes}):
        for pid, what in ((replica + 1, ""), (REQUESTS + replica + 1, " requests")):
            yield named("process_name", pid, 0, name=f"replica {replica}{what}")
            yield named("process_sort_index", pid, 0, sort_index=pid)
    for lane in result.lanes:
        name = f"rank {lane.rank}, lane {lane.lane}"
        yield named("thread_name", lane.replica + 1, _tid(lane), name=name)


def _iterations(lane: LaneResult, window_ns: tuple[int, int]) -> Iterator[Event]:
    """Complete events of one lane; batches in flight of a pipeline overlap between lanes."""
    columns = lane.segments
    after = np.cumsum(columns["iterations"])
    first = after - columns["iterations"]
    previous = np.concatenate(([0], lane.end_ns[:-1])) if len(lane.end_ns) else lane.end_ns
    begin, end = np.searchsorted(lane.end_ns, window_ns, side="right")
    end = min(int(end) + 1, len(lane.end_ns))  # the one that runs when the window ends
    segment = int(np.searchsorted(after, begin, side="right"))
    for index in range(int(begin), end):
        while after[segment] <= index:
            segment += 1
        start_ns = int(previous[index])
        if index == first[segment]:
            start_ns = max(start_ns, int(lane.segment_start_ns[segment]))
        if start_ns >= window_ns[1]:
            return
        row = {name: int(column[segment]) for name, column in columns.items()}
        yield {
            "ph": "X",
            "cat": "iteration",
            "name": _kind(row),
            "pid": lane.replica + 1,
            "tid": _tid(lane),
            "ts": start_ns / 1e3,
            "dur": (int(lane.end_ns[index]) - start_ns) / 1e3,
            "args": {
                "prefill_tokens": row["prefill_tokens"],
                "prefill_chunks": row["num_prefill"],
                "decode_seqs": row["num_decode"],
                "kv_tokens": row["decode_kv_tokens"]
                + row["num_decode"] * (index - int(first[segment])),
            },
        }


def _kind(row: dict[str, int]) -> str:
    if row["prefill_tokens"] and row["num_decode"]:
        return "prefill + decode"
    return "prefill" if row["prefill_tokens"] else "decode"


def _requests(
    result: Result, phases: Phases, replica: Ints, window_ns: tuple[int, int]
) -> Iterator[Event]:
    """A request's life as nested async spans; a rejected one is an instant of the router."""
    table, edges = result.table, np.searchsorted(phases.request, np.arange(len(result.table) + 1))
    digits = len(str(len(table) - 1))  # viewers sort by name
    leaders = table.leader
    of = None if leaders is None else np.unique(leaders, return_inverse=True)[1]
    for number in range(len(table)):
        sent_ns = int(result.sent_ns[number])
        if result.status[number] == REJECTED:
            if window_ns[0] <= sent_ns < window_ns[1]:
                base = {"ph": "i", "s": "p", "cat": "request", "name": "rejected"}
                place = {"pid": ROUTER, "tid": 0, "ts": sent_ns / 1e3}
                yield {**base, **place, "args": {"request": number}}
            continue
        mine = range(int(edges[number]), int(edges[number + 1]))
        if not len(mine) or sent_ns >= window_ns[1] or phases.end_ns[mine[-1]] <= window_ns[0]:
            continue
        pid = REQUESTS + int(replica[number]) + 1
        args = {
            "prompt_tokens": int(table.prompt_tokens[number]),
            "output_tokens": int(table.output_tokens[number]),
            "cached_tokens": int(result.cached_tokens[number]),
            "preemptions": int(result.preemptions[number]),
        }
        label = f"request {number:0{digits}}"
        if leaders is not None and of is not None:
            label = f"request {of[number]:0{digits}} answer {number - leaders[number]}"
        begin, end = _span(label, number, pid, sent_ns, phases.end_ns[mine[-1]])
        yield begin | {"args": args}
        for row in mine:
            name = PHASES[phases.phase[row]]
            yield from _span(name, number, pid, phases.start_ns[row], phases.end_ns[row])
        yield end


def _span(name: str, request: int, pid: int, start_ns: int, end_ns: int) -> tuple[Event, Event]:
    # An id within the process: spans with a global one are drawn apart from it.
    same = {"cat": "request", "name": name, "id2": {"local": request}, "pid": pid, "tid": 0}
    begin, end = ({"ts": int(ns) / 1e3, **same} for ns in (start_ns, end_ns))
    return {"ph": "b", **begin}, {"ph": "e", **end}


def _counters(
    result: Result, phases: Phases, replica: Ints, window_ns: tuple[int, int]
) -> Iterator[Event]:
    """Requests running and waiting of each replica, and KV blocks of each rank."""
    place = replica[phases.request]
    for number in sorted({lane.replica for lane in result.lanes}):
        mine = place == number
        running = np.isin(phases.phase, [PHASES.index(PREFILL), PHASES.index(DECODE)])
        for name, chosen in (("running", mine & running), ("waiting", mine & ~running)):
            start, end = phases.start_ns[chosen], phases.end_ns[chosen]
            change = np.repeat([1, -1], [len(start), len(end)])
            series = step_series(np.concatenate((start, end)), change)
            yield from _counter(name, "requests", number + 1, series, window_ns)
    for rank in sorted({lane.rank for lane in result.lanes}):
        lanes = [lane for lane in result.lanes if lane.rank == rank]
        time_ns = np.concatenate([lane.segment_start_ns for lane in lanes])
        used = np.concatenate([lane.segments["used_blocks"] for lane in lanes])
        order = np.argsort(time_ns, kind="stable")
        series = StepSeries(time_ns=time_ns[order], values=used[order].astype(np.float64))
        pid = lanes[0].replica + 1
        yield from _counter(f"KV blocks, rank {rank}", "used", pid, series, window_ns)


def _counter(
    name: str, key: str, pid: int, series: StepSeries, window_ns: tuple[int, int]
) -> Iterable[Event]:
    """The changes of a step function in the window, and its value as the window opens."""
    begin, end = np.searchsorted(series.time_ns, window_ns, side="right").tolist()
    last: int | None = None
    for index in range(max(0, begin - 1), end):
        value = int(series.values[index])
        if value != last:
            at_ns = max(int(series.time_ns[index]), window_ns[0])
            yield {
                "ph": "C",
                "name": name,
                "pid": pid,
                "tid": 0,
                "ts": at_ns / 1e3,
                "args": {key: value},
            }
        last = value
