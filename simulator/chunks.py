"""Slices of prompts that a lane computes in the coming iteration, as totals that prices need."""

from __future__ import annotations

from simulator.costs.compiled import AttentionCost
from simulator.request import Sequence
from simulator.work import prefill_pairs


class PromptChunks:
    """At most one chunk of each prompt; `members` in the order they were given."""

    __slots__ = ("ending", "members", "pairs", "tokens")

    def __init__(self) -> None:
        self.members: list[tuple[Sequence, int]] = []
        self.tokens = 0
        self.pairs = 0  # query-key pairs, full causal
        self.ending = 0  # tokens sampled by chunks that end their prompt: one each

    def add(self, seq: Sequence, num_tokens: int) -> None:
        """The next `num_tokens` of a prompt."""
        before = seq.computed_tokens
        self.members.append((seq, num_tokens))
        self.tokens += num_tokens
        self.pairs += num_tokens * before + num_tokens * (num_tokens + 1) // 2
        if before + num_tokens == seq.prefill_tokens:
            self.ending += 1

    def cancel(self, seq: Sequence) -> None:
        """Without the chunk of `seq`, if it has one."""
        for chunk in self.members:
            if chunk[0] is seq:
                self.members.remove(chunk)
                num_tokens, before = chunk[1], seq.computed_tokens
                self.tokens -= num_tokens
                self.pairs -= num_tokens * before + num_tokens * (num_tokens + 1) // 2
                self.ending -= before + num_tokens == seq.prefill_tokens
                return

    def clear(self) -> None:
        """They have been computed."""
        self.members.clear()
        self.tokens = self.pairs = self.ending = 0

    @property
    def context_tokens(self) -> int:
        """Of all prompts, what was computed before their chunks."""
        return sum(seq.computed_tokens for seq, _ in self.members)

    def ticks(self, cost: AttentionCost) -> int:
        """Their attention on one stage, in the layers of one kind."""
        pairs, context, window = self.pairs, 0, cost.window
        if window:
            pairs = 0
            for seq, num_tokens in self.members:
                pairs += prefill_pairs(num_tokens, seq.computed_tokens, window)
                context += min(seq.computed_tokens, window)
        else:
            for seq, _ in self.members:
                context += seq.computed_tokens
        return (
            cost.prefill_base
            + cost.prefill_per_token * self.tokens
            + cost.prefill_per_pair * pairs
            + cost.prefill_per_context_token * context
        )
