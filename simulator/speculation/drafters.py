"""Drafters: what proposes tokens, at what cost, and how many tokens the target verifies for them.

Sources: draft model, Leviathan et al. (arXiv 2211.17192); prompt lookup, as vLLM's ngram; EAGLE
(arXiv 2401.15077) and token trees (SpecInfer, arXiv 2305.09781); Lookahead's trie (KDD 2024,
PainlessInferenceAcceleration); Kangaroo's double early exit (NeurIPS 2024).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

from simulator.catalog import load_model
from simulator.draft import DraftSpec
from simulator.errors import ConfigError
from simulator.spec import ModelSpec

# Authors' fit on an H100 (SmartSpec's vLLM branch `batch-dsd`): proposing n-grams takes 4 % of an
# iteration of 6.94 ms.
NGRAM_HOST_S = 0.28e-3
TRIE_HOST_S = 0.3e-3  # a retrieval and an update of the trie, by Lookahead's authors' account


# Medusa (arXiv 2401.10774) reports heads that are right six times in ten, and eight with any of
# five candidates: the misses of w candidates fall as w^-0.43.
RANK_EXPONENT = 0.43


def any_rank(rate: float, width: int) -> float:
    """Chance that one of the `width` likeliest tokens is right, `rate` that the likeliest is."""
    return 1.0 - (1.0 - rate) * float(width**-RANK_EXPONENT)


class Drafter(Protocol):
    """Who drafts; `kind` is its name in files."""

    kind: ClassVar[str]
    needs_acceptance: ClassVar[str]  # the only kind of acceptance it works with; "" = any
    match: float  # share of positions where it has anything to propose
    threshold: float  # confidence below which it stops; 0 = never

    def draft(self, target: ModelSpec) -> DraftSpec:
        """What it runs and stores beside this target."""
        ...

    def verified(self, num_tokens: int) -> int:
        """Tokens the target verifies for a draft so long or deep; 0 for none."""
        ...

    def hit_rate(self, rate: float) -> float:
        """Chance that a position's candidates hold its token, `rate` that the likeliest is it."""
        ...


def _check_match(match: float) -> None:
    if not 0.0 < match <= 1.0:
        raise ConfigError(
            f"speculation.drafter.match: expected a number above 0, at most 1 (got {match})"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftModel:
    """A smaller model of the same vocabulary drafts one token a step."""

    kind: ClassVar[str] = "draft_model"
    needs_acceptance: ClassVar[str] = ""
    match: ClassVar[float] = 1.0
    threshold: ClassVar[float] = 0.0
    model: str  # bundled model, Hugging Face id, or path of a config.json
    tensor_parallel: int = 0  # 0 = the target's degree, or 1 where that does not divide the model

    def draft(self, target: ModelSpec) -> DraftSpec:
        model = load_model(self.model).with_formats(kv_format=target.kv_format)
        return DraftSpec(model=model, tp=self.tensor_parallel)

    def verified(self, num_tokens: int) -> int:
        return num_tokens

    def hit_rate(self, rate: float) -> float:
        return rate


@dataclass(frozen=True, slots=True, kw_only=True)
class NGram:
    """Prompt lookup: the text repeats itself where an n-gram of it has been seen before."""

    kind: ClassVar[str] = "ngram"
    needs_acceptance: ClassVar[str] = ""
    threshold: ClassVar[float] = 0.0
    match: float = 0.5  # share of positions whose last n-gram occurred earlier
    host_s: float = NGRAM_HOST_S  # of one proposal

    def __post_init__(self) -> None:
        _check_match(self.match)

    def draft(self, target: ModelSpec) -> DraftSpec:
        return DraftSpec(host_s=self.host_s)

    def verified(self, num_tokens: int) -> int:
        return num_tokens

    def hit_rate(self, rate: float) -> float:
        return rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Lookahead:
    """Branches out of a trie of all text seen, verified together as one tree."""

    kind: ClassVar[str] = "lookahead"
    needs_acceptance: ClassVar[str] = ""
    threshold: ClassVar[float] = 0.0
    decoding_length: int = 64  # tokens verified, over all branches
    match: float = 1.0  # share of positions that the trie knows; not with text
    host_s: float = TRIE_HOST_S
    branches: int = 4  # candidates at a position; not with text

    def __post_init__(self) -> None:
        _check_match(self.match)
        if self.decoding_length < 1 or self.branches < 1:
            raise ConfigError(
                "speculation.drafter: expected decoding_length and branches >= 1 "
                f"(got {self.decoding_length} and {self.branches})"
            )

    def draft(self, target: ModelSpec) -> DraftSpec:
        return DraftSpec(host_s=self.host_s)

    def verified(self, num_tokens: int) -> int:
        return self.decoding_length if num_tokens else 0

    def hit_rate(self, rate: float) -> float:
        return any_rank(rate, self.branches)


def eagle_draft(target: ModelSpec, width: int = 1) -> DraftSpec:
    """One more layer of the target behind a projection of its features and the token's embedding.

    Embedding and LM head are the target's; an MoE target gets a dense layer of its active width,
    as the published EAGLE heads of such models have.
    """
    layer = target.layer_kinds[target.layer_order[-1]]
    ffn = layer.ffn
    if ffn.num_experts:
        size = ffn.ffn_size * ffn.experts_per_token + ffn.shared_ffn_size
        layer = replace(
            layer,
            ffn=replace(
                ffn,
                ffn_size=size,
                num_experts=0,
                experts_per_token=0,
                shared_ffn_size=0,
                shared_gate=False,
            ),
        )
    layer = replace(layer, attention=replace(layer.attention, window=0))
    hidden = target.hidden_size
    return DraftSpec(
        model=replace(target, name=f"{target.name}-eagle", layer_kinds=(layer,), layer_order=(0,)),
        owns_vocabulary=False,
        extra_gemms=((2 * hidden, hidden),),
        width=width,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Eagle:
    """EAGLE: one layer on the target's own features drafts a chain."""

    kind: ClassVar[str] = "eagle"
    needs_acceptance: ClassVar[str] = ""
    match: ClassVar[float] = 1.0
    threshold: ClassVar[float] = 0.0

    def draft(self, target: ModelSpec) -> DraftSpec:
        return eagle_draft(target)

    def verified(self, num_tokens: int) -> int:
        return num_tokens

    def hit_rate(self, rate: float) -> float:
        return rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """An EAGLE layer drafts a tree: `width` candidates at each of num_speculative_tokens depths.

    All of a depth's candidates are taken to follow the accepted one above, which is generous to
    wide trees.
    """

    kind: ClassVar[str] = "tree"
    needs_acceptance: ClassVar[str] = ""
    match: ClassVar[float] = 1.0
    threshold: ClassVar[float] = 0.0
    width: int = 4

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"speculation.drafter.width: expected an int >= 1 (got {self.width})")

    def draft(self, target: ModelSpec) -> DraftSpec:
        return eagle_draft(target, self.width)

    def verified(self, num_tokens: int) -> int:
        return self.width * num_tokens

    def hit_rate(self, rate: float) -> float:
        return any_rank(rate, self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kangaroo:
    """The target's own first layers and a small adapter draft; both exits are early.

    One attention layer and two norms (67 M parameters on a 7B model) lead from the first layers to
    the target's LM head. A draft ends before a token whose confidence is below the threshold; that
    token's pass is paid for. Verification runs the remaining layers only.
    """

    kind: ClassVar[str] = "kangaroo"
    match: ClassVar[float] = 1.0
    exit_layer: int = 2
    threshold: float = 0.6  # 0 = always draft num_speculative_tokens

    @property
    def needs_acceptance(self) -> str:
        return "confidence" if self.threshold > 0.0 else ""

    def __post_init__(self) -> None:
        if self.exit_layer < 1 or not 0.0 <= self.threshold < 1.0:
            raise ConfigError(
                "speculation.drafter: expected exit_layer >= 1 and a threshold from 0 to below 1 "
                f"(got {self.exit_layer} and {self.threshold})"
            )

    def draft(self, target: ModelSpec) -> DraftSpec:
        if self.exit_layer >= target.num_layers:
            raise ConfigError(
                f"speculation.drafter.exit_layer: expected an int below {target.num_layers}, the "
                f"layers of {target.name} (got {self.exit_layer})"
            )
        order = target.layer_order[: self.exit_layer]
        attention = target.layer_kinds[order[-1]].attention
        heads, kv_heads = attention.num_q_heads, attention.num_kv_heads
        size, hidden = attention.head_dim, target.hidden_size
        return DraftSpec(
            model=replace(target, name=f"{target.name}-exit", layer_order=order),
            owns_layers=False,
            owns_vocabulary=False,
            extra_gemms=((hidden, (heads + 2 * kv_heads) * size), (heads * size, hidden)),
            extra_attention=1,
            passes_beyond=1,
            skipped_layers=self.exit_layer,
        )

    def verified(self, num_tokens: int) -> int:
        return num_tokens

    def hit_rate(self, rate: float) -> float:
        return rate
