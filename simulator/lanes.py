"""Kinds of lanes for schedulers that ask for more than a plain lane does."""

from __future__ import annotations

from simulator.costs.compiled import CompiledCost
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


def lane_kind(scheduler: Scheduler) -> type[Lane]:
    """The lanes a scheduler needs."""
    return StaticLane if getattr(scheduler, "runs_to_completion", False) else Lane
