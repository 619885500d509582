"""Instruments of the engine tests: a scheduler that notes plans, audited pages, result equality."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from simulator import engine
from simulator.allocators import KVAllocator
from simulator.allocators.lcm import Page
from simulator.allocators.reserved import ReservedAllocator
from simulator.allocators.typed import TypedAllocator
from simulator.batch import FOREVER
from simulator.costs.compiled import TICK_BITS, CompiledCost
from simulator.engine import run
from simulator.recorder import LaneResult, Result
from simulator.request import RequestTable, Sequence
from simulator.schedulers import Scheduler
from simulator.setup import ReplicaKind, Setup
from tests.simulator.toys import toy_cost, toy_setup

Ints = NDArray[np.int64]

COLUMNS = (
    "status",
    "sent_ns",
    "scheduled_ns",
    "first_token_ns",
    "finish_ns",
    "cached_tokens",
    "preemptions",
    "target",
)
REPEATED = ("num_decode", "num_prefill", "prefill_tokens", "prefill_pairs", "sampled")
PLANNED = ("used_blocks", "waiting")  # of a segment's first iteration


@dataclass(frozen=True, slots=True)
class Planned:
    """One plan: what each request computes, who was preempted for it, and the state after it."""

    tokens: dict[int, int]  # by request
    preempted: list[int]
    num_decode: int
    granted: bool  # the decodes have their pages
    lacking: int  # pages the decodes lacked when last asked
    num_running: int  # of the rank
    free_pages: int


class View:
    """A lane that notes which of its verbs a scheduler used."""

    def __init__(self, lane: Any) -> None:
        self.lane = lane
        self.lacking = 0
        self.granted = False
        self.chunks: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.lane, name)

    def decode(self) -> int:
        self.lacking = self.lane.decode()
        self.granted = self.lacking == 0
        return self.lacking

    def extend(self, seq: Sequence, num_tokens: int) -> bool:
        done = self.lane.extend(seq, num_tokens)
        if done:
            self.chunks[seq.id] = num_tokens
        return done

    def admit(self, seq: Sequence, cached_tokens: int, num_tokens: int, *how: Any) -> bool:
        done = self.lane.admit(seq, cached_tokens, num_tokens, *how)
        if done:
            self.chunks[seq.id] = num_tokens
        return done


class Watched:
    """A scheduler that plans as another one does and hands every plan to `note`."""

    def __init__(self, scheduler: Scheduler, note: Callable[[Planned, Any], None]) -> None:
        self.scheduler = scheduler
        self.note = note

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)

    def plan(self, lane: Any) -> int:
        before = [seq.id for seq in lane.running()]
        view = View(lane)
        claim = self.scheduler.plan(view)  # type: ignore[arg-type]
        running = lane.running()
        after = {seq.id for seq in running}
        prefilling = {seq.id for seq in lane.prefilling}
        decoding = [seq.id for seq in running if seq.lane == lane.key and seq.id not in prefilling]
        tokens = dict.fromkeys(decoding, 1) if view.granted else {}
        tokens |= {i: n for i, n in view.chunks.items() if i in after}
        preempted = [i for i in reversed(before) if i not in after]
        free = lane.allocator.free_pages
        self.note(
            Planned(
                tokens, preempted, lane.num_decode, view.granted, view.lacking, len(running), free
            ),
            lane,
        )
        return claim


class Audited:
    """A KV allocator whose every gift and return is checked; `taken` is counted apart."""

    def __init__(self, inner: KVAllocator) -> None:
        self.inner = inner
        self.taken = 0
        self.shares = hasattr(inner, "block_tokens")
        self.reserves = isinstance(
            inner, ReservedAllocator
        )  # takes its pages by itself, at admission
        self.by_name = isinstance(inner, TypedAllocator)  # takes pages for a sequence, not a number

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def grow(self, wanted: list[tuple[Sequence, int]]) -> int:
        lacks: int = self.inner.grow(wanted)  # type: ignore[attr-defined]
        self._check()
        return lacks

    def slide(self, seq: Sequence, query: int) -> bool:
        found: bool = self.inner.slide(seq, query)  # type: ignore[attr-defined]
        self._check()
        return found

    def _check(self) -> None:
        if self.by_name:
            self.taken = check_kinds(self.inner)  # type: ignore[arg-type]
        free, total = self.inner.free_pages, self.inner.num_pages
        assert 0 <= free <= total
        assert self.taken + free == total

    def match(self, seq: Sequence) -> tuple[int, int, int]:
        tokens, held, unpinned = self.inner.match(seq)
        assert 0 <= tokens < seq.prefill_tokens
        if self.reserves:
            assert unpinned > 0
            return tokens, held, unpinned
        assert 0 <= unpinned <= held
        assert unpinned <= self.inner.free_pages
        return tokens, held, unpinned

    def claim(self, seq: Sequence, num_pages: int, *cached_tokens: int) -> None:
        self.taken += self.inner.match(seq)[2] if num_pages or self.reserves else 0
        self.inner.claim(seq, num_pages, *cached_tokens)
        self._check()

    def take(self, num_pages: int) -> None:
        assert 0 <= num_pages <= self.inner.free_pages
        self.taken += num_pages
        self.inner.take(num_pages)
        self._check()

    def release(self, seq: Sequence, num_pages: int) -> None:
        before = self.inner.free_pages
        self.inner.release(seq, num_pages)
        returned = self.inner.free_pages - before
        assert self.reserves or self.by_name or 0 <= returned <= num_pages
        assert self.shares or self.reserves or returned == num_pages
        self.taken -= returned
        self._check()


def check_kinds(allocator: TypedAllocator) -> int:
    """Recount what every sequence holds, and compare the pools' books with it.

    Returns the large pages in use, as the allocator counts them.
    """
    refs: Counter[Page] = Counter()
    for held in allocator.held.values():
        for number, pages in enumerate(held.pages):
            refs.update(pages)
            assert all(page.large.kind == allocator.kinds[number].name for page in pages)
    assert all(page.refs == count for page, count in refs.items())
    used = 0.0
    for pool in allocator.pools:
        mine = {kind.name for kind in allocator.kinds if kind.pool is pool}
        larges = Counter(page.large for page in refs if page.large.kind in mine)
        assert all(large.num_used == count for large, count in larges.items())
        assert pool.num_available + len(larges) == pool.num_large
        for name in mine:
            left = [len(large.pages) - large.num_used for large in larges if large.kind == name]
            assert pool.spare[name] == sum(left)
        used += len(larges) * pool.large_bytes
    return int(used / min(pool.large_bytes for pool in allocator.pools))


def run_audited(setup: Setup, made: list[Audited]) -> Result:
    """Run with audited allocators, which are added to `made`."""
    make = engine._allocator

    def build(setup: Setup, kind: ReplicaKind) -> KVAllocator:
        made.append(Audited(make(setup, kind)))
        return made[-1]  # type: ignore[return-value]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "_allocator", build)
        return run(setup)


def plans_of(table: RequestTable, **changes: Any) -> list[Planned]:
    """Every plan of a toy set-up that computes or preempts something, one iteration at a time."""
    plans: list[Planned] = []

    def note(plan: Planned, lane: object) -> None:
        if plan.tokens or plan.preempted:
            plans.append(plan)

    setup = toy_setup(table, coalesce=False, **changes)
    run(replace(setup, scheduler=Watched(setup.scheduler, note)))
    return plans


def flat_cost(
    ns: int,
    *,
    max_num_tokens: int = 512,
    max_num_seqs: int = 64,
    stage_ns: tuple[int, ...] = (),
    send_ns: int = 0,
    num_ranks: int = 1,
    windows: tuple[int, ...] = (0,),
) -> CompiledCost:
    """Every iteration costs the same `ns`, or `stage_ns` on each stage; nothing else costs."""
    stages_ns = stage_ns or (ns,)
    toy = toy_cost(
        max_num_tokens=max_num_tokens,
        max_num_seqs=max_num_seqs,
        num_stages=len(stages_ns),
        windows=windows,
        num_ranks=num_ranks,
    )
    free = [0] * (max_num_seqs + 1)
    nothing = {"prefill_base": 0, "prefill_per_token": 0, "prefill_per_pair": 0}
    stages = tuple(
        replace(
            stage,
            linear=[0] + [price << TICK_BITS] * max_num_tokens,
            expert=[0] * len(stage.expert),
            attention=tuple(
                replace(
                    kind,
                    decode_base=free,
                    decode_per_token=free,
                    decode_spread=[],
                    prefill_per_context_token=0,
                    **nothing,
                )
                for kind in stage.attention
            ),
            send=[send_ns << TICK_BITS] * len(stage.send),
        )
        for stage, price in zip(toy.stages, stages_ns, strict=True)
    )
    return replace(toy, stages=stages, logits=free, host=free)


def difference(a: Result, b: Result, *, but: tuple[str, ...] = ()) -> str:
    """What two results differ in first; "" where they are equal in everything but grouping."""
    for name in COLUMNS:
        x, y = getattr(a, name), getattr(b, name)
        if name not in but and not np.array_equal(x, y):
            where = np.flatnonzero(x != y)[:4]
            return f"{name} of requests {where}: {x[where]} != {y[where]}"
    if a.end_ns != b.end_ns or a.num_blocks != b.num_blocks:
        return f"end {a.end_ns} != {b.end_ns}, or pages {a.num_blocks} != {b.num_blocks}"
    if not np.array_equal(span_rows(a), span_rows(b)):
        return "token spans"
    for number, (x, y) in enumerate(zip(a.lanes, b.lanes, strict=True)):
        what = _lane_difference(x, y, but)
        if what:
            return f"lane {number}: {what}"
    return ""


def _lane_difference(a: LaneResult, b: LaneResult, but: tuple[str, ...]) -> str:
    if not np.array_equal(a.end_ns, b.end_ns):
        return f"iteration ends ({len(a.end_ns)} and {len(b.end_ns)} iterations)"
    each_a, each_b = iterations(a), iterations(b)
    for name, column in each_a.items():
        if not np.array_equal(column, each_b[name]):
            return f"{name} of iterations {np.flatnonzero(column != each_b[name])[:4]}"
    firsts = [np.cumsum(x.segments["iterations"]) - x.segments["iterations"] for x in (a, b)]
    _, in_a, in_b = np.intersect1d(*firsts, return_indices=True)
    for name in PLANNED:
        x, y = a.segments[name][in_a], b.segments[name][in_b]
        if name not in but and not np.array_equal(x, y):
            return f"{name} of segments {in_a[x != y][:4]}: {x[x != y][:4]} != {y[x != y][:4]}"
    return ""


def iterations(lane: LaneResult) -> dict[str, Ints]:
    """The segment columns of every single iteration, and the context its decodes read."""
    repeats = lane.segments["iterations"]
    each = {name: np.repeat(lane.segments[name], repeats) for name in REPEATED}
    first = np.repeat(np.cumsum(repeats) - repeats, repeats)
    within = np.arange(len(lane.end_ns)) - first
    start = np.repeat(lane.segments["decode_kv_tokens"], repeats)
    each["decode_kv_tokens"] = start + within * each["num_decode"]
    return each


def span_rows(result: Result) -> Ints:
    """The token spans as sorted rows (request, lane, first, last), adjoining ones joined."""
    rows = np.column_stack(list(result.spans.values()))
    return rows[np.lexsort(rows.T[::-1])]


def token_ns(result: Result) -> list[Ints]:
    """When each request got each of its tokens, in the order of the lanes' clocks."""
    times: list[list[Ints]] = [[] for _ in range(len(result.table))]
    for request, lane, first, last in span_rows(result).tolist():
        times[request].append(result.lanes[lane].end_ns[first : last + 1])
    empty = np.array([], dtype=np.int64)
    return [np.sort(np.concatenate([empty, *parts])) for parts in times]


def is_cut(setup: Setup) -> bool:
    return setup.horizon_ns < FOREVER
