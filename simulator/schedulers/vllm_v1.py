"""vLLM V1's default scheduler: computed tokens chase known tokens under one token budget.

There is no prefill or decode phase. Each iteration first gives every running sequence its next
token (one for a decode, a chunk for an unfinished prompt), preempting the youngest when pages run
out, and then admits waiting requests while budget, sequence slots and pages last. Behaviour as of
vLLM 0.33; admission needs free pages for the whole prompt there (`scheduler_reserve_full_isl`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.errors import ConfigError

if TYPE_CHECKING:
    from simulator.schedulers.view import LaneView

UNTIL_CHANGE = 1 << 60


@dataclass(frozen=True, slots=True, kw_only=True)
class VllmV1:
    """Chunked prefill under a token budget, FCFS or priority, recompute preemption."""

    policy: str = "fcfs"  # or "priority": smaller first, then arrival
    chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0  # largest chunk of one prompt; 0 = the budget
    reserve_full_prompt: bool = True

    waits_for_loads = True  # it knows that `cached` may take a request out of the queue

    def __post_init__(self) -> None:
        if self.policy not in ("fcfs", "priority"):
            raise ConfigError(
                f"scheduler.policy: expected 'fcfs' or 'priority' (got {self.policy!r})"
            )
        if self.long_prefill_token_threshold < 0:
            raise ConfigError(
                "scheduler.long_prefill_token_threshold: expected an int >= 0 "
                f"(got {self.long_prefill_token_threshold!r})"
            )

    @property
    def by_priority(self) -> bool:
        return self.policy == "priority"

    def longest_context(self, max_num_tokens: int) -> int:
        """Most tokens of a sequence it can ever (re)compute; without chunks, one iteration's."""
        return UNTIL_CHANGE if self.chunked_prefill else max_num_tokens

    @property
    def arrivals_wait(self) -> bool:
        return self.policy == "fcfs"

    def plan(self, lane: LaneView) -> int:
        preempted = False
        while lane.decode():
            if not self._preempt(lane):
                lane.stall()
                break
            preempted = True
        budget = lane.max_num_tokens - lane.decode_tokens
        if lane.prefilling:
            before = lane.num_running
            budget = self._continue_prompts(lane, budget)
            preempted = preempted or lane.num_running < before
        stays = not preempted
        if lane.waiting and not preempted and lane.may_admit:
            stays = self._admit(lane, budget)
        if not lane.has_work:
            return 0
        return 1 if lane.prefilling or not stays else UNTIL_CHANGE

    def _continue_prompts(self, lane: LaneView, budget: int) -> int:
        for seq in list(lane.prefilling):
            chunk = self._chunk(seq.prefill_tokens - seq.computed_tokens, budget)
            if chunk == 0:
                break
            while seq in lane.prefilling:
                if lane.extend(seq, chunk):
                    budget -= chunk
                    break
                if not self._preempt(lane):
                    lane.stall()
                    break
        return budget

    def _admit(self, lane: LaneView, budget: int) -> bool:
        """Admit while possible; True if who is refused stays refused while pages only dwindle."""
        waiting = lane.waiting
        room = lane.max_num_seqs - lane.num_running
        while waiting and budget > 0 and room > 0:
            seq = waiting[0]
            cached = lane.cached(seq)
            if cached < 0:  # it has left, to come back when its KV has been loaded
                continue
            missing = seq.prefill_tokens - cached
            chunk = self._chunk(missing, budget)
            if not self.chunked_prefill and chunk < self._chunk(missing, missing):
                return True
            if not lane.admit(seq, cached, chunk, self.reserve_full_prompt):
                # Evicting part of a cached prefix makes the first chunk, and its need, smaller.
                return self.reserve_full_prompt or cached == 0
            budget -= chunk
            room -= 1
        return True

    def _chunk(self, missing: int, budget: int) -> int:
        limit = self.long_prefill_token_threshold
        if 0 < limit < missing:
            missing = limit
        return min(missing, budget)

    def _preempt(self, lane: LaneView) -> bool:
        if not self.by_priority:
            return lane.preempt_last()
        youngest_first = reversed(lane.running())
        return lane.preempt(max(youngest_first, key=lambda seq: (seq.priority, seq.id)))
