"""Steps that several schedulers share; each returns what the caller needs to go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulator.schedulers.view import LaneView

UNTIL_CHANGE = 1 << 60


class WholePrompts:
    """First come, first served, and prompts are never cut, so the budget holds the longest."""

    __slots__ = ()

    chunked_prefill = False
    by_priority = False
    arrivals_wait = True

    def longest_context(self, max_num_tokens: int) -> int:
        return max_num_tokens


def decode_all(lane: LaneView) -> bool:
    """Every decode gains a token, the youngest request giving way where pages lack.

    Returns whether somebody had to.
    """
    before = lane.num_running
    while lane.decode():
        if not lane.preempt_last():
            lane.stall()
            break
    return lane.num_running < before


def continue_prompts(lane: LaneView, budget: int) -> int:
    """A chunk for each unfinished prompt in order of admission; returns the budget left."""
    for seq in list(lane.prefilling):
        chunk = min(seq.prefill_tokens - seq.computed_tokens, budget)
        if chunk <= 0:
            break
        while seq in lane.prefilling:
            if lane.extend(seq, chunk):
                budget -= chunk
                break
            if not lane.preempt_last():
                lane.stall()
                break
    return budget


def admit_whole(lane: LaneView, budget: int, max_num_seqs: int, spare_pages: int = 0) -> int:
    """Admit waiting prompts, none of them cut, while they fit; returns the budget left."""
    while lane.waiting and lane.num_running < max_num_seqs:
        seq = lane.waiting[0]
        cached = lane.cached(seq)
        missing = seq.prefill_tokens - cached
        spare = spare_pages if lane.num_running else 0
        if missing > budget or not lane.admit(seq, cached, missing, True, spare):
            break
        budget -= missing
    return budget


def admit_chunks(lane: LaneView, budget: int, max_num_seqs: int) -> int:
    """Admit waiting prompts, the last of them cut where the budget ends; returns what is left."""
    while lane.waiting and budget > 0 and lane.num_running < max_num_seqs:
        seq = lane.waiting[0]
        cached = lane.cached(seq)
        chunk = min(seq.prefill_tokens - cached, budget)
        if not lane.admit(seq, cached, chunk, True):
            break
        budget -= chunk
    return budget
