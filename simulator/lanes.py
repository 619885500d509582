"""Kinds of lanes for schedulers that ask for more than a plain lane does."""

from __future__ import annotations

from collections.abc import Callable

from simulator.allocators import AllocatorPolicy, VAttention
from simulator.allocators.vattention import MappedAllocator
from simulator.costs.compiled import CompiledCost, StageCost, to_ticks
from simulator.lane import Lane
from simulator.rank import Rank
from simulator.recorder import LaneLog
from simulator.request import RequestTable, Sequence
from simulator.schedulers import Scheduler
from simulator.switching import Pcie, switch_maker
from simulator.typed_lane import TypedLane


class StaticLane(Lane):
    """A batch that decodes until its longest answer ends; whoever is done earlier is padding."""

    __slots__ = ("_answers",)

    def __init__(self, key: int, rank: Rank, cost: CompiledCost, log: LaneLog) -> None:
        super().__init__(key, rank, cost, log)
        self._answers: dict[Sequence, int] = {}  # the true lengths of the batch

    def _end_prompt(self, seq: Sequence, end_ns: int) -> None:
        if not self._answers:  # the first of the batch: all its prompts end with this iteration
            batch = [other for other in self.rank.running if other.lane == self.key]
            self._answers = {other: other.output_tokens for other in batch}
            longest = max(self._answers.values())
            for other in batch:
                other.output_tokens = longest
        super()._end_prompt(seq, end_ns)

    def _finish(self, seq: Sequence, pages: int, end_ns: int) -> None:
        seq.output_tokens = self._answers.pop(seq)
        super()._finish(seq, pages, end_ns)
        # Its tokens are those of its own length; the rest of the span was padding.
        self.rank.recorder.spans[-1] = seq.span_start + seq.output_tokens - 1


class SwapLane(Lane):
    """Preempts by copying KV to the host; the coming iteration waits for the copies.

    Where the host has no room left, and for prompts that are not computed yet, it recomputes.
    """

    __slots__ = ("_copies_s", "_room", "_swapped", "swap_s")

    def __init__(self, key: int, rank: Rank, cost: CompiledCost, log: LaneLog) -> None:
        super().__init__(key, rank, cost, log)
        self._swapped: dict[Sequence, int] = {}  # pages on the host, the first to go first
        self._copies_s = 0.0  # of the coming iteration
        self._room = self.allocator.num_pages  # pages left on the host
        self.swap_s: Callable[[int], float] = lambda num_pages: 0.0

    def limit(self, num_pages: int) -> None:
        """The host has so many pages."""
        self._room = num_pages

    @property
    def num_swapped(self) -> int:
        return len(self._swapped)

    def evict(self, seq: Sequence) -> None:
        pages = 0
        if seq not in self.prefilling:
            pages = self.rank.layout.pages(self.decodes.context(seq) - 1)
        if pages == 0 or pages > self._room:
            super().evict(seq)
            return
        super().evict(seq)
        self.waiting.popleft()  # not there: it keeps what it has computed
        self._put_away(seq, pages)

    def _put_away(self, seq: Sequence, pages: int) -> None:
        self._swapped[seq] = pages
        self._room -= pages
        self._copies_s += self.swap_s(pages)

    def _needs(self, seq: Sequence, pages: int) -> tuple[int, int]:
        """Sequences and pages that it comes back with, the pages of the next token included."""
        return 1, self.rank.layout.pages(seq.prefill_tokens)

    def swap_in(self, spare_pages: int) -> None:
        free = self.allocator.free_pages - self.decodes.new_pages() - spare_pages
        for seq, pages in list(self._swapped.items()):
            num_seqs, needs = self._needs(seq, pages)
            if needs > free or self.num_running + num_seqs > self.max_num_seqs:
                return
            free -= needs
            del self._swapped[seq]
            self._room += pages
            self._copies_s += self.swap_s(pages)
            self._resume(seq, pages)

    def _resume(self, seq: Sequence, pages: int) -> None:
        self.allocator.claim(seq, 0)
        self.allocator.take(pages)
        self._rejoin(seq, pages)

    def _rejoin(self, seq: Sequence, pages: int) -> None:
        self.rank.running[seq] = None
        seq.prefill_tokens -= 1  # KV of all but the latest token, as when it went
        seq.computed_tokens = seq.prefill_tokens
        seq.blocks = pages
        seq.lane = self.key
        self.decodes.add(seq)
        self.paused = True  # its span of tokens begins with the next one

    def needs_plan(self, is_alone: bool) -> bool:
        return (len(self._swapped) > 0 and not is_alone) or super().needs_plan(is_alone)

    def _repeats(self, claim: int) -> int:
        """Copies have a price; and an end in another lane's batch may let somebody come back."""
        waits = self._swapped and len(self.rank.lanes) > 1
        return 1 if self._copies_s or waits else super()._repeats(claim)

    def attention_form(self, stage: StageCost) -> list[int]:
        price, growth = super().attention_form(stage)
        return [price + to_ticks(self._copies_s), growth]

    def _book(self, end_ns: int) -> None:
        self._copies_s = 0.0
        super()._book(end_ns)


class MappedLane(Lane):
    """Iterations that wait for physical pages to be mapped behind virtual memory (vAttention).

    Prompts wait for their own pages. Those of decodes are mapped during the iteration before, and
    only what takes longer than it is waited for; without a background thread all of it.
    """

    __slots__ = ("_decode_pages", "_prompt_pages", "background", "map_s")

    def __init__(self, key: int, rank: Rank, cost: CompiledCost, log: LaneLog) -> None:
        super().__init__(key, rank, cost, log)
        self._prompt_pages = self._decode_pages = 0  # to be mapped for the coming iteration
        self.map_s = 0.0  # of one page, in all tensors of a worker
        self.background = False

    def decode(self) -> int:
        lacking = super().decode()
        if self.taken and not lacking:
            allocator = self._mapped()
            for seq in self._decoding():
                pages = self.rank.layout.pages(self.decodes.context(seq))
                self._decode_pages += allocator.map(seq, pages)
        return lacking

    def _compute(self, seq: Sequence, num_tokens: int, num_pages: int) -> None:
        super()._compute(seq, num_tokens, num_pages)
        self._prompt_pages += self._mapped().map(seq, seq.blocks)

    def _repeats(self, claim: int) -> int:
        """An iteration that maps has a price of its own, so a run ends before the next growth."""
        if self._decode_pages or self._prompt_pages or self.taken:
            return 1
        return self.decodes.iterations_within(0, super()._repeats(claim))

    def attention_form(self, stage: StageCost) -> list[int]:
        price, growth = super().attention_form(stage)
        waits_s = self._prompt_pages * self.map_s
        hidden_s = 0.0
        if self.background:
            ends = self.log.end_ns
            hidden_s = (ends[-1] - (ends[-2] if len(ends) > 1 else 0)) / 1e9 if ends else 0.0
        waits_s += max(0.0, self._decode_pages * self.map_s - hidden_s)
        return [price + to_ticks(waits_s), growth]

    def _book(self, end_ns: int) -> None:
        self._prompt_pages = self._decode_pages = 0
        super()._book(end_ns)

    def _mapped(self) -> MappedAllocator:
        allocator = self.allocator
        return allocator  # type: ignore[return-value]


class NanoLane(Lane):
    """Iterations in nano-batches: a price that is the largest of several affine ones.

    A claim ends before another of them becomes the largest.
    """

    __slots__ = ("_stages",)

    def __init__(self, key: int, rank: Rank, cost: CompiledCost, log: LaneLog) -> None:
        super().__init__(key, rank, cost, log)
        distinct = {id(stage.pieces): stage for stage in cost.stages}
        self._stages = tuple(distinct.values())

    def attention_form(self, stage: StageCost) -> list[int]:
        price, growth = max(self._forms(stage))
        return [price + super().attention_form(stage)[0], growth]

    def _forms(self, stage: StageCost) -> list[list[int]]:
        tokens = self.num_decoding + self.chunks.tokens
        forms = []
        for piece in stage.pieces:
            price, growth = super().attention_form(piece)
            forms.append([price + piece.linear[tokens], growth])
        return forms

    def _repeats(self, claim: int) -> int:
        most = super()._repeats(claim)
        for stage in self._stages:
            forms = self._forms(stage)
            price, growth = max(forms)
            for other, faster in forms:
                if faster > growth:
                    most = min(most, (price - other) // (faster - growth) + 1)
        return most


Make = Callable[[int, Rank, CompiledCost, LaneLog], Lane]


def lane_maker(
    scheduler: Scheduler,
    allocator: AllocatorPolicy,
    num_layers: int,
    page_bytes: float,
    host_bytes_per_s: float,
    overlaps: bool = False,
    table: RequestTable | None = None,
) -> Make:
    """Makes the lanes that a scheduler and an allocator need.

    Layers and bytes of a page are those of the longest stage, on one GPU. `overlaps`: prices are of
    nano-batches.
    """
    if (switch_space := getattr(scheduler, "switch_space", None)) is not None:
        pcie = Pcie(switch_space(), num_layers, page_bytes, host_bytes_per_s)
        return switch_maker(pcie, scheduler, table)
    space = getattr(scheduler, "swap_space", None)
    if space is not None:

        def swapping(key: int, rank: Rank, cost: CompiledCost, log: LaneLog) -> Lane:
            lane = SwapLane(key, rank, cost, log)
            lane.limit(space.pages or rank.allocator.num_pages)
            lane.swap_s = lambda num: space.time_s(num, num_layers, page_bytes, host_bytes_per_s)
            return lane

        return swapping
    if getattr(scheduler, "runs_to_completion", False):
        return StaticLane
    if getattr(allocator, "knows_holders", False):
        return TypedLane
    if not isinstance(allocator, VAttention):
        return NanoLane if overlaps else Lane

    def mapped(key: int, rank: Rank, cost: CompiledCost, log: LaneLog) -> Lane:
        lane = MappedLane(key, rank, cost, log)
        lane.map_s = 2 * num_layers * allocator.map_latency_s
        lane.background = allocator.background
        return lane

    return mapped
