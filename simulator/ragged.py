"""Decoding sequences that gain uneven numbers of tokens: arrays instead of the decode calendar.

Where an iteration gives one sequence three tokens and another one, nothing stays constant relative
to a counter, so this sibling of `DecodeSet` keeps a column a sequence and adds to all at once.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.batch import PageLayout
from simulator.request import Sequence

Ints = NDArray[np.int64]
Runs = NDArray[np.int8]

CONTEXT, CURSOR, LEFT, NEED = range(4)  # rows; all four grow by the tokens gained


class RaggedSet:
    """Decoding sequences of one lane that speculates.

    `state` rows, [num_seqs] each: context read by the coming iteration with its first new token;
    place of the next token's outcome in `runs`; minus the tokens still to come; context less the
    tokens that fit the pages held, never above 0 once the coming iteration has its pages.
    """

    __slots__ = (
        "_slot",
        "_soonest",
        "_stride",
        "kv_tokens",
        "layout",
        "limits",
        "num_seqs",
        "runs",
        "seqs",
        "state",
        "windows",
    )

    def __init__(self, layout: PageLayout, windows: tuple[int, ...], has_limits: bool) -> None:
        self.layout = layout
        self.windows = windows  # of the model's layers that have one
        self.num_seqs = 0
        self.kv_tokens = 0  # context of all
        self.seqs: list[Sequence] = []
        self._soonest = 0  # nobody has fewer tokens to come than this
        self._slot: dict[Sequence, int] = {}
        self._stride = 64  # outcomes kept a sequence
        self.state = np.zeros((4, 8), dtype=np.int64)
        self.runs: Runs = np.zeros(8 * 64, dtype=np.int8)
        self.limits: Runs | None = np.zeros(8 * 64, dtype=np.int8) if has_limits else None

    def add(self, seq: Sequence, runs: Runs, limits: Runs | None) -> None:
        """`seq` has its prompt's KV and one more token; outcomes by output position."""
        n = self.num_seqs
        self._fit(n + 1, len(runs))
        first = n * self._stride
        self.runs[first : first + len(runs)] = runs
        if self.limits is not None and limits is not None:
            self.limits[first : first + len(limits)] = limits
        context = seq.prefill_tokens + 1
        held = -(-(context - 1) // self.layout.block_tokens) * self.layout.block_tokens
        self.state[:, n] = (
            context,
            first + seq.generated_tokens,
            seq.generated_tokens - seq.output_tokens,
            context - held,
        )
        left = seq.output_tokens - seq.generated_tokens
        self._soonest = min(self._soonest, left) if n else left
        self.seqs.append(seq)
        self._slot[seq] = n
        self.num_seqs = n + 1
        self.kv_tokens += context

    def _fit(self, num_seqs: int, length: int) -> None:
        """Room for so many sequences of so many outcomes."""
        slots, stride = self.state.shape[1], self._stride
        if num_seqs <= slots and length <= stride:
            return
        more = slots if num_seqs <= slots else 2 * slots
        wide = stride if length <= stride else 1 << (length - 1).bit_length()
        state = np.zeros((4, more), dtype=np.int64)
        state[:, :slots] = self.state
        state[CURSOR, : self.num_seqs] += np.arange(self.num_seqs) * (wide - stride)
        self.runs = _moved(self.runs, slots, stride, more, wide)
        if self.limits is not None:
            self.limits = _moved(self.limits, slots, stride, more, wide)
        self.state, self._stride = state, wide

    def remove(self, seq: Sequence) -> tuple[int, int]:
        """Take `seq` out; returns its context and the pages it holds."""
        slot = self._slot.pop(seq)
        context, _, _, need = self.state[:, slot].tolist()
        last = self.num_seqs - 1
        if slot != last:
            moved = self.seqs[last]
            self.seqs[slot] = moved
            self._slot[moved] = slot
            self.state[:, slot] = self.state[:, last]
            self.state[CURSOR, slot] -= (last - slot) * self._stride
            self._move(self.runs, last, slot)
            if self.limits is not None:
                self._move(self.limits, last, slot)
        self.seqs.pop()
        self.num_seqs = last
        self.kv_tokens -= context
        return context, self.layout.pages(context - need)

    def _move(self, outcomes: Runs, source: int, target: int) -> None:
        stride = self._stride
        outcomes[target * stride : (target + 1) * stride] = outcomes[
            source * stride : (source + 1) * stride
        ]

    def slot(self, seq: Sequence) -> int:
        return self._slot[seq]

    def generated(self, seq: Sequence) -> int:
        """Output tokens `seq` has."""
        return seq.output_tokens + int(self.state[LEFT, self._slot[seq]])

    def lacking(self, drafts: int | Ints, most: int) -> tuple[Ints, int]:
        """Tokens of new blocks each sequence needs for its drafts of at most `most`, and pages.

        A sequence's blocks held all of its last drafts, so it needs at most `most` + 1 tokens more.
        """
        short = self.state[NEED, : self.num_seqs] + drafts
        block, layout = self.layout.block_tokens, self.layout
        if most < block and not layout.windows:
            who = short > 0
            return who * block, int(np.count_nonzero(who)) * layout.full
        blocks = np.maximum(short + (block - 1), 0) // block
        pages = int(blocks.sum()) * layout.full
        if layout.windows:
            state = self.state[:, : self.num_seqs]
            held = (state[CONTEXT] - state[NEED]) // block
            for cap, weight in layout.windows:
                grown = np.minimum(held + blocks, cap) - np.minimum(held, cap)
                pages += int(grown.sum()) * weight
        return blocks * block, pages

    def window_tokens(self, window: int, queries: int | Ints = 1) -> int:
        """Sum over sequences of min(context, window), each so many times."""
        seen = np.minimum(self.state[CONTEXT, : self.num_seqs], window)
        return int((seen * queries).sum())

    def advance(self, gained: Ints | int, most: int, total: int) -> bool:
        """Every sequence gains so many tokens, at most `most`; True if somebody has its last."""
        state = self.state[:, : self.num_seqs]
        state += gained
        self.kv_tokens += total
        self._soonest -= most
        if self._soonest > 0:
            return False
        self._soonest = -int(np.maximum.reduce(state[LEFT]))
        return self._soonest <= 0

    def finished(self) -> list[tuple[Sequence, int]]:
        """Who has all its tokens, and how many it was given beyond them."""
        beyond = self.state[LEFT, : self.num_seqs]
        who = np.flatnonzero(beyond >= 0)
        return [
            (self.seqs[i], over) for i, over in zip(who.tolist(), beyond[who].tolist(), strict=True)
        ]


def _moved(outcomes: Runs, slots: int, stride: int, more: int, wide: int) -> Runs:
    grown = np.zeros((more, wide), dtype=np.int8)
    grown[:slots, :stride] = outcomes.reshape(slots, stride)
    return grown.ravel()
