"""How the compiled tables are summed into the price of one iteration: the reference of the engine.

Stage time = linear[T] + expert[T over ranks / stride] + attention, plus the hand-over to the next
stage; LM head and sampling on the last stage; the host once, on the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from simulator.costs.compiled import TICKS_PER_S, AttentionCost, CompiledCost, StageCost
from simulator.errors import ConfigError
from simulator.work import prefill_pairs


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One iteration of one attention rank; every prefill chunk is taken to end its prompt."""

    prefill: tuple[tuple[int, int], ...]  # (new tokens, tokens already in KV) of each chunk
    decode: tuple[tuple[int, int], ...]  # (number of sequences, context of each, itself included)

    @property
    def num_decode(self) -> int:
        return sum(num for num, _ in self.decode)

    @property
    def prefill_tokens(self) -> int:
        return sum(new for new, _ in self.prefill)

    @property
    def num_tokens(self) -> int:
        return self.prefill_tokens + self.num_decode

    @property
    def num_seqs(self) -> int:
        """Sequences in the iteration, and tokens it samples."""
        return self.num_decode + len(self.prefill)

    def decode_kv_tokens(self, window: int) -> int:
        """Sum over decoding sequences of the context they read."""
        return sum(num * (min(ctx, window) if window else ctx) for num, ctx in self.decode)

    def spread_tokens(self) -> int:
        """Tokens by which the decoding contexts together fall short of the longest of them."""
        longest = max(context for _, context in self.decode)
        return self.num_decode * longest - self.decode_kv_tokens(0)

    def pairs(self, window: int) -> int:
        """Query-key pairs of the chunks."""
        return sum(prefill_pairs(new, context, window) for new, context in self.prefill)

    def context_tokens(self, window: int) -> int:
        """Cached context the chunks read."""
        return sum(min(ctx, window) if window else ctx for _, ctx in self.prefill)


def checked_batch(
    prefill: Sequence[tuple[int, int]],
    decode: Sequence[tuple[int, int]],
    max_num_tokens: int,
    max_num_seqs: int,
) -> Batch:
    """A batch within the tables.

    Raises:
        ConfigError: no token, more than max_num_tokens tokens or max_num_seqs sequences.
    """
    batch = Batch(prefill=tuple(prefill), decode=tuple(decode))
    if not 1 <= batch.num_tokens <= max_num_tokens:
        raise ConfigError(
            f"iteration: expected 1 to {max_num_tokens} tokens (got {batch.num_tokens})"
        )
    if batch.num_seqs > max_num_seqs:
        raise ConfigError(
            f"iteration: expected at most {max_num_seqs} sequences (got {batch.num_seqs})"
        )
    return batch


def attention_ticks(cost: AttentionCost, batch: Batch) -> int:
    """Price of one attention window of one stage."""
    ticks = 0
    if batch.num_decode:
        ticks += cost.decode_base[batch.num_decode]
        ticks += cost.decode_per_token[batch.num_decode] * batch.decode_kv_tokens(cost.window)
        if cost.decode_spread:
            ticks += cost.decode_spread[batch.num_decode] * batch.spread_tokens()
    if batch.prefill:
        ticks += cost.prefill_base
        ticks += cost.prefill_per_token * batch.prefill_tokens
        ticks += cost.prefill_per_pair * batch.pairs(cost.window)
        ticks += cost.prefill_per_context_token * batch.context_tokens(cost.window)
    return ticks


def _piece_ticks(piece: StageCost, batch: Batch) -> int:
    attention = sum(attention_ticks(cost, batch) for cost in piece.attention)
    return piece.linear[batch.num_tokens] + attention


def price_iteration(
    compiled: CompiledCost,
    prefill: Sequence[tuple[int, int]],
    decode: Sequence[tuple[int, int]],
) -> list[float]:
    """Seconds on each pipeline stage of one iteration; every attention rank runs the same batch.

    `prefill` holds (new tokens, context) of each chunk, `decode` (sequences, context of each).
    """
    batch = checked_batch(prefill, decode, compiled.max_num_tokens, compiled.max_num_seqs)
    seconds = []
    for index, stage in enumerate(compiled.stages):
        ticks = stage.linear[batch.num_tokens]
        if stage.expert:
            ticks += stage.expert[batch.num_tokens]  # stride = ranks: all ranks' tokens
        ticks += sum(attention_ticks(cost, batch) for cost in stage.attention)
        ticks += max((_piece_ticks(piece, batch) for piece in stage.pieces), default=0)
        if stage.send:
            ticks += stage.send[batch.num_tokens]
        if index == 0:
            ticks += compiled.host[batch.num_seqs]
        if index == len(compiled.stages) - 1:
            ticks += compiled.logits[batch.num_seqs]
        seconds.append(ticks / TICKS_PER_S)
    return seconds
