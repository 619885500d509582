"""Kinds of lanes for schedulers that ask for more than a plain lane does."""

from __future__ import annotations

from collections.abc import Callable

from simulator.allocators import AllocatorPolicy, VAttention
from simulator.allocators.vattention import MappedAllocator
from simulator.costs.compiled import CompiledCost, StageCost, to_ticks
from simulator.lane import Lane
from simulator.rank import Rank
from simulator.recorder import LaneLog
from simulator.request import Sequence
from simulator.schedulers import Scheduler


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


Make = Callable[[int, Rank, CompiledCost, LaneLog], Lane]


def lane_maker(scheduler: Scheduler, allocator: AllocatorPolicy, num_layers: int) -> Make:
    """Makes the lanes that a scheduler and an allocator need; `num_layers` of a stage."""
    if getattr(scheduler, "runs_to_completion", False):
        return StaticLane
    if not isinstance(allocator, VAttention):
        return Lane

    def mapped(key: int, rank: Rank, cost: CompiledCost, log: LaneLog) -> Lane:
        lane = MappedLane(key, rank, cost, log)
        lane.map_s = 2 * num_layers * allocator.map_latency_s
        lane.background = allocator.background
        return lane

    return mapped
