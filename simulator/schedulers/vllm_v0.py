"""vLLM before V1 (as of 0.3.3): prompts first, in iterations of their own.

While a waiting request has room, an iteration computes whole prompts only and every decode waits;
otherwise it decodes only. Admission leaves a watermark of free blocks, first come, first served;
where pages run out the youngest request gives way, by recomputation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.errors import ConfigError
from simulator.schedulers.steps import UNTIL_CHANGE, admit_whole, decode_all

if TYPE_CHECKING:
    from simulator.schedulers.view import LaneView


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmV0:
    """Prompt-only iterations before decode-only ones, FCFS, recompute preemption."""

    watermark: float = 0.01  # share of the pages that admission leaves free

    chunked_prefill = False

    def __post_init__(self) -> None:
        if not 0 <= self.watermark < 1:
            raise ConfigError(
                f"scheduler.watermark: expected a number in [0, 1) (got {self.watermark!r})"
            )

    @property
    def by_priority(self) -> bool:
        return False

    @property
    def arrivals_wait(self) -> bool:
        return True

    def longest_context(self, max_num_tokens: int) -> int:
        return max_num_tokens

    def plan(self, lane: LaneView) -> int:
        if lane.waiting and lane.may_admit:
            spare = math.ceil(self.watermark * lane.num_pages)
            admit_whole(lane, lane.max_num_tokens, lane.max_num_seqs, spare)
            if lane.prefilling:
                return 1
        preempted = decode_all(lane)
        if not lane.has_work:
            return 0
        return 1 if preempted else UNTIL_CHANGE
