"""The compiled cost model: all the engine ever asks is a few look-ups and additions.

Prices are integers of 2**-20 ns ("ticks"). At a fixed number of decoding sequences a price is
affine in their KV tokens, so a run of n decode iterations is n sums of one affine form, and
grouping iterations cannot change a result: the engine shifts each price to whole ns by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field

TICK_BITS = 20
# Sizes of iterations for which kernels are compiled when they are first met: eight, as many as
# Mixtral's measured runs stall for a second.
SIZE_CLASS_TOKENS, MOST_SIZE_CLASS = 256, 7
TICKS_PER_S = 1e9 * (1 << TICK_BITS)


def to_ticks(seconds: float) -> int:
    """Nearest whole tick of a time in seconds."""
    return round(seconds * TICKS_PER_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCost:
    """One attention kind (one window) of one stage, summed over that stage's layers of the kind.

    decode  = decode_base[B] + decode_per_token[B] * sum over sequences of min(context, window)
              + decode_spread[B] * (B * longest context - sum of contexts), without a window
    prefill = prefill_base + prefill_per_token * tokens + prefill_per_pair * query-key pairs
              + prefill_per_context_token * cached context read
    """

    window: int  # 0 = full
    decode_base: list[int]  # [num_decode], ticks; [0] = 0
    decode_per_token: list[int]  # [num_decode], ticks
    prefill_base: int
    prefill_per_token: int
    prefill_per_pair: int
    prefill_per_context_token: int
    # [num_decode], ticks; [] = unequal contexts cost their mean
    decode_spread: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """One pipeline stage."""

    # Everything that depends on the number of tokens alone: GEMMs, norms, rope, collectives of
    # the tensor-parallel group, with CUDA-graph padding. With attention_dp = 1, experts too.
    linear: list[int]  # [num_tokens of the fullest attention rank], [0] = 0
    # Experts and their all-to-all, where attention_dp > 1; index: tokens of all ranks /
    # expert_stride, rounded up. Empty where attention_dp = 1.
    expert: list[int]
    expert_stride: int
    attention: tuple[AttentionCost, ...]
    send: list[int]  # [num_tokens] hand-over to the next stage; empty for the last
    cold: int = 0  # ticks more where an iteration with a chunk is the first of its size class
    pieces: tuple[StageCost, ...] = ()  # nano-batches: the largest of these prices is added


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledCost:
    """Price of any iteration of one replica; see `simulator.lane` for how it is summed."""

    stages: tuple[StageCost, ...]
    logits: list[int]  # [rows] LM head and sampling on the last stage; rows = tokens sampled
    host: list[int]  # [num_seqs in the iteration] host time the GPU waits for, once per iteration
    windows: tuple[int, ...]  # distinct attention windows, 0 first where present
    max_num_tokens: int
    max_num_seqs: int

    @property
    def reads_longest(self) -> bool:
        """Whether a price depends on the longest context of a batch."""
        parts = [part for stage in self.stages for part in (stage, *stage.pieces)]
        return any(attention.decode_spread for part in parts for attention in part.attention)
