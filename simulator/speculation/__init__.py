"""Speculative decoding: who drafts, what is accepted, how many tokens are drafted.

Three independent policies, one registry each. A drafter says what it runs and how many tokens the
target verifies; an acceptance model draws, for every position of a request's output, how many
drafts that begin there are accepted; a length policy chooses how far to draft before every
iteration. Only acceptance models see a request's true length.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from simulator.errors import ConfigError
from simulator.speculation.acceptance import (
    Acceptance,
    Beta,
    Confidence,
    Geometric,
    PerPosition,
    Source,
)
from simulator.speculation.drafters import (
    Drafter,
    DraftModel,
    Eagle,
    Kangaroo,
    Lookahead,
    NGram,
    Tree,
)
from simulator.speculation.lengths import (
    BatchTable,
    Chooser,
    Fixed,
    LengthPolicy,
    NoSpeculation,
    SmartSpec,
)
from simulator.speculation.recorded import Recorded
from simulator.speculation.text import TrieText

DRAFTERS: dict[str, type] = {
    "draft_model": DraftModel,
    "ngram": NGram,
    "lookahead": Lookahead,
    "eagle": Eagle,
    "tree": Tree,
    "kangaroo": Kangaroo,
}
ACCEPTANCES: dict[str, type] = {
    "geometric": Geometric,
    "beta": Beta,
    "per_position": PerPosition,
    "confidence": Confidence,
    "recorded": Recorded,
    "trie_text": TrieText,
}
LENGTHS: dict[str, type] = {
    "fixed": Fixed,
    "none": NoSpeculation,
    "smartspec": SmartSpec,
    "batch_table": BatchTable,
}
MOST_TOKENS = 64  # of a draft: outcomes are kept in a byte, and no published draft is longer


@dataclass(frozen=True, slots=True, kw_only=True)
class Speculation:
    """Draft, verify and accept, beside any scheduler, allocator and router."""

    drafter: Drafter
    num_speculative_tokens: int = 4  # longest draft; depth of a tree
    acceptance: Acceptance = field(default_factory=Geometric)
    length: LengthPolicy = field(default_factory=Fixed)

    def __post_init__(self) -> None:
        if not 1 <= self.num_speculative_tokens <= MOST_TOKENS:
            raise ConfigError(
                f"speculation.num_speculative_tokens: expected an int from 1 to {MOST_TOKENS} "
                f"(got {self.num_speculative_tokens})"
            )
        needs = self.drafter.needs_acceptance
        if needs and self.acceptance.kind != needs:
            raise ConfigError(
                f"speculation: the {self.drafter.kind} drafter decides by confidence or text, "
                f"so it needs acceptance kind {needs} (got {self.acceptance.kind})"
            )
        if self.acceptance.needs_drafter not in ("", self.drafter.kind):
            raise ConfigError(
                f"speculation: acceptance kind {self.acceptance.kind} is of the "
                f"{self.acceptance.needs_drafter} drafter (got {self.drafter.kind})"
            )
        self.length.check(self.num_speculative_tokens)

    def most_queries(self) -> int:
        """Most query tokens of one sequence in one verification."""
        return 1 + self.drafter.verified(self.num_speculative_tokens)


__all__ = [
    "ACCEPTANCES",
    "DRAFTERS",
    "LENGTHS",
    "Acceptance",
    "BatchTable",
    "Beta",
    "Chooser",
    "Confidence",
    "DraftModel",
    "Drafter",
    "Eagle",
    "Fixed",
    "Geometric",
    "Kangaroo",
    "LengthPolicy",
    "Lookahead",
    "NGram",
    "NoSpeculation",
    "PerPosition",
    "Recorded",
    "SmartSpec",
    "Source",
    "Speculation",
    "Tree",
    "TrieText",
]
