"""Lanes that switch requests in and out of the GPU, their KV copied over PCIe.

A copy is dispatched (so long for each piece of it; one lock for all copies) and then crosses the
link, which each direction has for itself. The coming iteration waits for it, or it goes on beside
iterations: then the pages it reads are not free before its end, and the pages it fills are set
aside before its beginning. Waiting costs everybody who decodes the copy's time, not waiting costs
one request up to an iteration: the smaller of the two is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Listed
from dataclasses import dataclass

from simulator.copying import CopyingLane
from simulator.costs.compiled import TICK_BITS, CompiledCost, StageCost
from simulator.host_copies import HostCopies
from simulator.rank import Rank
from simulator.recorder import LaneLog
from simulator.request import RequestTable, Sequence
from simulator.schedulers.swapping import SwapSpace
from simulator.units import to_ns


@dataclass(frozen=True, slots=True)
class Pcie:
    """What a copy of pages between one GPU and its host takes."""

    space: SwapSpace
    num_layers: int
    page_bytes: float
    bytes_per_s: float

    def dispatch_ns(self, num_pages: int) -> int:
        return to_ns(self.space.time_s(num_pages, self.num_layers, 0.0, self.bytes_per_s))

    def link_ns(self, num_pages: int) -> int:
        return to_ns(num_pages * self.page_bytes / self.bytes_per_s)


@dataclass(frozen=True, slots=True)
class Flight:
    """A copy beside iterations."""

    end_ns: int
    seq: Sequence
    pages: int  # of the GPU, read or filled


class SwitchLane(CopyingLane):
    """A lane whose requests come and go by priority."""

    __slots__ = ("_away", "_in", "_links_ns", "_lock_ns", "_names", "_out", "_pcie", "_wait_ns",
                 "asynchronous", "copies", "counters")  # fmt: skip

    def __init__(self, key: int, rank: Rank, cost: CompiledCost, log: LaneLog) -> None:
        super().__init__(key, rank, cost, log)
        self.asynchronous = False
        self._away: dict[Sequence, int] = {}  # whose KV is on the host: pages
        self._out: list[Flight] = []
        self._in: list[Flight] = []
        self._links_ns = [0, 0]  # when each direction is free: out, in
        self._lock_ns = 0
        self._wait_ns = 0  # the coming iteration begins with this
        self._names: Listed[int] = ()
        self.counters = dict.fromkeys(
            ("swaps_out", "swap_out_bytes", "swap_in_bytes", "swap_wait_ns", "swaps_async",
             "swaps_recomputed", "swap_reused_bytes", "swap_contaminated_pages"), 0)  # fmt: skip

    def furnish(
        self, pcie: Pcie, asynchronous: bool, reuse: bool, conversations: Listed[int]
    ) -> None:
        """What the scheduler asks for; conversations of requests, () = each is its own."""
        self._pcie = pcie
        self.asynchronous = asynchronous
        self._names = conversations
        reuse = reuse and not self.rank.layout.windows  # there pages are given back before the end
        self.copies = HostCopies(pcie.space.pages or self.allocator.num_pages, reuse)

    # --- what the scheduler sees --------------------------------------------------------------

    @property
    def num_iterations(self) -> int:
        return len(self.log.end_ns)

    @property
    def num_copying(self) -> int:
        return len(self._in) + len(self._out)

    @property
    def coming(self) -> int:
        return sum(flight.pages for flight in self._out)

    def conversation(self, seq: Sequence) -> int:
        return self._names[seq.id] if self._names else seq.id

    def outside(self) -> list[Sequence]:
        waiting = self.waiting
        return [*(waiting[i] for i in range(len(waiting))), *self._away]

    def room(self, seq: Sequence, spare_pages: int) -> int:
        free = self.allocator.free_pages - self.decodes.new_pages() - spare_pages
        return free - self.rank.layout.pages(seq.prefill_tokens)

    def pages_of(self, seq: Sequence) -> int:
        return self.rank.layout.pages(self.decodes.context(seq) - 1)

    def land(self) -> None:
        """Copies that have ended by now."""
        now_ns = self.rank.now_ns
        self.granted = False  # as it is left by an idle plan
        while self._out and self._out[0].end_ns <= now_ns:
            self._left(self._out.pop(0))
        while self._in and self._in[0].end_ns <= now_ns:
            flight = self._in.pop(0)
            self.rank.incoming -= 1
            self._run(flight.seq, flight.pages)

    def wait_for_pages(self) -> bool:
        if not self._out:
            return False
        flight = self._out.pop(0)
        self._wait_until(flight.end_ns)
        self._left(flight)
        return True

    def send_out(self, seq: Sequence, now: bool) -> None:
        pages, conversation = self.pages_of(seq), self.conversation(seq)
        tokens = self.decodes.context(seq) - 1
        full = tokens // self.rank.layout.block_tokens if self.copies.reuse else 0
        contaminated = self.copies.contaminated
        missing = self.copies.put(conversation, pages, full)
        self.counters["swap_contaminated_pages"] += self.copies.contaminated - contaminated
        if missing < 0:
            self.counters["swaps_recomputed"] += 1
            self.evict(seq)
            return
        self._withdraw_for_swap(seq)
        end_ns = self._copy(missing, 0, 0)
        self.counters["swaps_out"] += 1
        self.counters["swap_reused_bytes"] += round((pages - missing) * self._pcie.page_bytes)
        flight = Flight(end_ns, seq, pages)
        if now or self._waits(end_ns):
            self._wait_until(end_ns)
            self._left(flight)
        else:
            self._fly(self._out, flight)

    def bring_in(self, seq: Sequence, budget: int) -> int:
        if seq not in self._away:
            return self._admit(seq, budget)
        pages = self._away.pop(seq)
        self.copies.take(self.conversation(seq))
        self.allocator.claim(seq, 0)
        self.allocator.take(pages)
        end_ns = self._copy(pages, 1, self._wait_ns)
        if self._waits(end_ns):
            self._wait_until(end_ns)
            self._run(seq, pages)
        else:
            self.rank.incoming += 1
            self._fly(self._in, Flight(end_ns, seq, pages))
        return budget

    def cached(self, seq: Sequence) -> int:
        """What is kept on the host of the turns before, but for the last block."""
        block = self.rank.layout.block_tokens
        blocks = min(self.copies.valid(self.conversation(seq)), (seq.prefill_tokens - 1) // block)
        self._match = (blocks * block, 0, 0)
        return blocks * block

    # --- how ----------------------------------------------------------------------------------

    def _admit(self, seq: Sequence, budget: int) -> int:
        """Compute the whole prompt, but for what is copied from the host."""
        cached = self.cached(seq)
        missing = seq.prefill_tokens - cached
        if missing > budget:
            return -1
        self.waiting.put_first(seq)  # type: ignore[attr-defined]
        if not self.admit(seq, cached, missing, True):
            return -1
        if cached:
            pages = cached // self.rank.layout.block_tokens
            self._wait_until(self._copy(pages, 1, self._wait_ns))
        return budget - missing

    def _withdraw_for_swap(self, seq: Sequence) -> None:
        rank = self.rank
        del rank.running[seq]
        rank.blocked = False
        rank.num_evictions += 1
        self._withdraw(seq)
        rank.recorder.preempted(seq, self.key, len(self.log.end_ns) - 1)
        seq.prefill_tokens = seq.prompt_tokens + seq.generated_tokens
        seq.computed_tokens = seq.blocks = 0

    def _left(self, flight: Flight) -> None:
        """Its KV is on the host, and its pages are free."""
        self.allocator.release(flight.seq, flight.pages)
        self._away[flight.seq] = flight.pages

    def _run(self, seq: Sequence, pages: int) -> None:
        self.rank.running[seq] = None
        seq.prefill_tokens -= 1  # KV of all but the latest token, as when it went
        seq.computed_tokens = seq.prefill_tokens
        seq.blocks = pages
        seq.lane = self.key
        self.decodes.add(seq)
        self.paused = True  # its span of tokens begins with the next one

    def _copy(self, num_pages: int, direction: int, after_ns: int) -> int:
        """Occupy lock and link for so many pages; when that will have ended."""
        if num_pages == 0:
            return max(self.rank.now_ns, after_ns)
        pcie, name = self._pcie, ("swap_out_bytes", "swap_in_bytes")[direction]
        self.counters[name] += round(num_pages * pcie.page_bytes)
        begin_ns = max(self.rank.now_ns, self._lock_ns, after_ns)
        self._lock_ns = begin_ns + pcie.dispatch_ns(num_pages)
        end_ns = max(self._lock_ns, self._links_ns[direction]) + pcie.link_ns(num_pages)
        self._links_ns[direction] = end_ns
        return end_ns

    def _waits(self, end_ns: int) -> bool:
        """Whether it costs less to wait than to go on without one."""
        if not self.asynchronous:
            return True
        ends = self.log.end_ns
        latest_ns = ends[-1] - ends[-2] if len(ends) > 1 else 0
        begins_ns = max(self.rank.now_ns, self._wait_ns)
        return (end_ns - begins_ns) * self.decodes.num_seqs <= latest_ns

    def _fly(self, flights: list[Flight], flight: Flight) -> None:
        self.counters["swaps_async"] += 1
        flights.append(flight)
        self.at(flight.end_ns, lambda: None)

    def _wait_until(self, end_ns: int) -> None:
        self._wait_ns = max(self._wait_ns, end_ns)

    # --- what the replica does ----------------------------------------------------------------

    def needs_plan(self, is_alone: bool) -> bool:
        """Who is on the host is in no queue."""
        return bool(self._away or self._in or self._out) or super().needs_plan(is_alone)

    def attention_form(self, stage: StageCost) -> list[int]:
        price, growth = super().attention_form(stage)
        wait_ns = max(0, self._wait_ns - self.rank.now_ns)
        return [price + (wait_ns << TICK_BITS), growth]

    def _repeats(self, claim: int) -> int:
        return 1 if self._wait_ns > self.rank.now_ns else super()._repeats(claim)

    def _book(self, end_ns: int) -> None:
        self.counters["swap_wait_ns"] += max(0, self._wait_ns - self.since_ns)
        self._wait_ns = 0
        super()._book(end_ns)

    def _finish(self, seq: Sequence, pages: int, end_ns: int) -> None:
        super()._finish(seq, pages, end_ns)
        if not self._names:
            self.copies.forget(seq.id)  # nobody comes back to it

    def check_drained(self) -> None:
        if not self._in and not self._out:  # else a horizon has cut them off
            super().check_drained()


def switch_maker(
    pcie: Pcie, scheduler: object, table: RequestTable | None
) -> Callable[[int, Rank, CompiledCost, LaneLog], SwitchLane]:
    """Makes the lanes of a scheduler that switches."""
    names = [] if table is None else conversations(table)

    def switching(key: int, rank: Rank, cost: CompiledCost, log: LaneLog) -> SwitchLane:
        lane = SwitchLane(key, rank, cost, log)
        asynchronous, reuse = (getattr(scheduler, name) for name in ("asynchronous", "reuse"))
        lane.furnish(pcie, asynchronous, reuse, names)
        return lane

    return switching


def conversations(table: RequestTable) -> list[int]:
    """The first turn of each request's conversation; [] where nobody follows anybody.

    A turn goes on with the one before where its prompt has room for that one's prompt and answer.
    """
    if table.parent is None:
        return []
    prompt, output = table.prompt_tokens.tolist(), table.output_tokens.tolist()
    first: list[int] = []
    for i, parent in enumerate(table.parent.tolist()):
        goes_on = parent >= 0 and prompt[i] >= prompt[parent] + output[parent]
        first.append(first[parent] if goes_on else i)
    return first
