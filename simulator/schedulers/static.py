"""Static batching (FasterTransformer behind a batcher): a batch runs until its longest answer ends.

The next batch is as many waiting requests as fit, up to a batch size; nobody joins and nobody
leaves before the last is done. Those that are done early are computed on as padding, and every
answer is returned with the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.errors import ConfigError
from simulator.schedulers.steps import UNTIL_CHANGE, WholePrompts, admit_whole, decode_all

if TYPE_CHECKING:
    from simulator.schedulers.view import LaneView


@dataclass(frozen=True, slots=True, kw_only=True)
class Static(WholePrompts):
    """Request-level scheduling: one batch at a time, to its end."""

    max_batch_size: int = 8

    runs_to_completion = True  # its lanes keep whoever is done until all are

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ConfigError(
                f"scheduler.max_batch_size: expected an int >= 1 (got {self.max_batch_size!r})"
            )

    def clash(self, allocator: object) -> str:
        """Why it cannot run on such memory; "" where it can."""
        if getattr(allocator, "reserve", "") == "max":
            return ""
        return (
            "a batch that is computed to its longest answer needs memory for the longest context: "
            "allocator {kind: reserved, reserve: max} or {kind: buddy, reserve: max}"
        )

    def plan(self, lane: LaneView) -> int:
        if not lane.num_running and lane.may_admit:
            most = min(self.max_batch_size, lane.max_num_seqs)
            admit_whole(lane, lane.max_num_tokens, most)
        if lane.prefilling:
            return 1
        decode_all(lane)
        return UNTIL_CHANGE if lane.has_work else 0
