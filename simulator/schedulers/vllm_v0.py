"""vLLM before V1 (as of 0.3.3): prompts first, in iterations of their own.

While a waiting request has room, an iteration computes whole prompts only and every decode waits;
otherwise it decodes only. Admission leaves a watermark of free blocks, first come, first served;
where pages run out the youngest request gives way: it is recomputed, or its KV is copied to the
host and back (`preemption: swap`), which the iterations wait for. Nobody is admitted while somebody
is swapped out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.errors import ConfigError
from simulator.schedulers.steps import UNTIL_CHANGE, WholePrompts, admit_whole, decode_all
from simulator.schedulers.swapping import SwapSpace

if TYPE_CHECKING:
    from simulator.schedulers.view import LaneView


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmV0(WholePrompts):
    """Prompt-only iterations before decode-only ones, FCFS, recompute preemption."""

    watermark: float = 0.01  # share of the pages that admission leaves free
    preemption: str = "recompute"  # or "swap", as requests with several sequences always are
    swap_pages: int = 0  # of the host's memory; 0 = as many as the GPU has
    swap_copy_latency_s: float = 8e-6  # of one copy; a page is 2 a layer
    swap_group_pages: int = 1  # adjoining pages in one copy (FastSwitch: about 20)

    def __post_init__(self) -> None:
        if self.preemption not in ("recompute", "swap"):
            raise ConfigError(
                f"scheduler.preemption: expected 'recompute' or 'swap' (got {self.preemption!r})"
            )
        self._space()
        if not 0 <= self.watermark < 1:
            raise ConfigError(
                f"scheduler.watermark: expected a number in [0, 1) (got {self.watermark!r})"
            )

    @property
    def swap_space(self) -> SwapSpace | None:
        """Where preempted requests' KV goes; None = nowhere, it is computed again."""
        return self._space() if self.preemption == "swap" else None

    @property
    def group_space(self) -> SwapSpace:
        """Where requests with several sequences go: vLLM swaps those whatever `preemption` is."""
        return self._space()

    def _space(self) -> SwapSpace:
        return SwapSpace(
            pages=self.swap_pages,
            copy_latency_s=self.swap_copy_latency_s,
            group_pages=self.swap_group_pages,
        )

    def clash(self, allocator: object) -> str:
        """Why it cannot run on such memory; "" where it can."""
        if self.preemption == "recompute" or type(allocator).__name__ == "Paged":
            return ""
        return "swapping needs pages that nobody shares: allocator paged, or preemption: recompute"

    def plan(self, lane: LaneView) -> int:
        spare = math.ceil(self.watermark * lane.num_pages)
        if lane.waiting and lane.may_admit and not lane.num_swapped:
            admit_whole(lane, lane.max_num_tokens, lane.max_num_seqs, spare)
            if lane.prefilling:
                return 1
        if lane.num_swapped:
            lane.swap_in(spare if lane.num_decode else 0)
        preempted = decode_all(lane)
        if not lane.has_work:
            return 0
        return 1 if preempted else UNTIL_CHANGE
