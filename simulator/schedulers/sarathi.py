"""Sarathi-Serve (OSDI'24, algorithm 3): stall-free batches under a token budget.

Each iteration: every decode takes its token, then prompts already begun get chunks, then waiting
prompts are admitted, until the budget is spent. Decodes never wait for a prompt. The paper's two
ablations drop one half each: without `hybrid` chunks and decodes take turns in iterations of their
own; without `chunked` whole prompts run beside the decodes, as in Orca.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.errors import ConfigError
from simulator.schedulers.steps import (
    UNTIL_CHANGE,
    admit_chunks,
    admit_whole,
    continue_prompts,
    decode_all,
)

if TYPE_CHECKING:
    from simulator.schedulers.view import LaneView


@dataclass(frozen=True, slots=True, kw_only=True)
class Sarathi:
    """Decodes first, then chunks of prompts, under a token budget."""

    token_budget: int = 0  # 0 = the engine's max_num_batched_tokens
    chunked: bool = True  # false = whole prompts
    hybrid: bool = True  # false = chunks and decodes in iterations of their own

    def __post_init__(self) -> None:
        if self.token_budget < 0:
            raise ConfigError(
                f"scheduler.token_budget: expected an int >= 0 (got {self.token_budget!r})"
            )
        if not (self.chunked or self.hybrid):
            raise ConfigError("scheduler: without chunked and hybrid nothing of Sarathi is left")
        if self.token_budget and not self.chunked:
            raise ConfigError("scheduler.token_budget: expected none without chunks")

    @property
    def chunked_prefill(self) -> bool:
        return self.chunked

    @property
    def by_priority(self) -> bool:
        return False

    @property
    def arrivals_wait(self) -> bool:
        return True

    def longest_context(self, max_num_tokens: int) -> int:
        return UNTIL_CHANGE if self.chunked else max_num_tokens

    def plan(self, lane: LaneView) -> int:
        if not self.hybrid and not lane.paused and self._prompts_only(lane):
            return 1
        preempted = decode_all(lane)
        if self.hybrid:
            budget = self._budget(lane) - lane.decode_tokens
            if lane.prefilling:
                budget = continue_prompts(lane, budget)
            if not preempted:
                self._admit(lane, budget)
        if not lane.has_work:
            return int(not self.hybrid and self._prompts_only(lane))
        may_turn = not self.hybrid and (lane.prefilling or lane.waiting)
        return 1 if lane.prefilling or preempted or may_turn else UNTIL_CHANGE

    def _budget(self, lane: LaneView) -> int:
        return min(self.token_budget or lane.max_num_tokens, lane.max_num_tokens)

    def _prompts_only(self, lane: LaneView) -> bool:
        """An iteration of chunks while the decodes wait; False where there is none to compute."""
        budget = self._budget(lane)
        left = continue_prompts(lane, budget)
        left = self._admit(lane, left)
        return left < budget

    def _admit(self, lane: LaneView, budget: int) -> int:
        if not lane.waiting or not lane.may_admit:
            return budget
        if self.chunked:
            most = min(lane.max_num_seqs, self._budget(lane))  # each may come to decode
            return admit_chunks(lane, budget, most)
        return admit_whole(lane, budget, lane.max_num_seqs)
