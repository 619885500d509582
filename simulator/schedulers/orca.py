"""Orca's iteration-level scheduling (OSDI'22, algorithm 1): join and leave at every iteration.

Requests join first come, first served, up to a batch size, with their whole prompt beside the
others' decodes. Orca itself reserves memory for the longest answer (`allocator: buddy` or
`reserved`), so that nothing runs out; on pages that grow, the youngest is recomputed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.errors import ConfigError
from simulator.schedulers.steps import UNTIL_CHANGE, WholePrompts, admit_whole, decode_all

if TYPE_CHECKING:
    from simulator.schedulers.view import LaneView


@dataclass(frozen=True, slots=True, kw_only=True)
class Orca(WholePrompts):
    """Iteration-level scheduling with whole prompts, FCFS."""

    max_batch_size: int = 0  # 0 = the engine's max_num_seqs

    def __post_init__(self) -> None:
        if self.max_batch_size < 0:
            raise ConfigError(
                f"scheduler.max_batch_size: expected an int >= 0 (got {self.max_batch_size!r})"
            )

    def plan(self, lane: LaneView) -> int:
        most = min(self.max_batch_size or lane.max_num_seqs, lane.max_num_seqs)
        preempted = decode_all(lane)
        if lane.waiting and not preempted and lane.may_admit:
            admit_whole(lane, lane.max_num_tokens - lane.decode_tokens, most)
        if not lane.has_work:
            return 0
        return 1 if lane.prefilling or preempted else UNTIL_CHANGE
