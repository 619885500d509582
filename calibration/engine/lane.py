"""The books of the engine: which sequence holds which KV blocks, and what the next batch computes.

`EngineLane` is a `LaneView`, so the simulator's own scheduler plans for it: what the simulator says
of a batch and what this engine does with it can differ in time only. Unlike the simulator's lane it
keeps real block numbers and real tokens.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from calibration.engine.trace import CannotServe, Trace
from simulator.request import Sequence
from simulator.schedulers.view import WaitingQueue

Ints32 = NDArray[np.int32]
TABLE_ALIGNMENT = 16  # blocks; rows of the block table begin at 64 bytes


@dataclass(frozen=True, slots=True)
class Batch:
    """What one iteration computes: one token of each of `decodes`, then the chunks."""

    decodes: tuple[Sequence, ...]
    chunks: tuple[tuple[Sequence, int], ...]

    @property
    def num_tokens(self) -> int:
        return len(self.decodes) + sum(n for _, n in self.chunks)

    @property
    def num_seqs(self) -> int:
        return len(self.decodes) + len(self.chunks)


@dataclass(slots=True)
class Progress:
    """What became of a request; iterations are numbered from 0."""

    token_iterations: list[int] = field(default_factory=list)  # that produced each output token
    first_iteration: int = -1  # that computed something of it
    preemptions: int = 0


class EngineLane:
    """Sequences that iterate together on one GPU, and its pool of KV blocks."""

    def __init__(
        self, trace: Trace, prompts: list[Ints32], *,
        num_blocks: int, block_tokens: int, max_num_tokens: int, max_num_seqs: int,
        longest: int = 0,
    ) -> None:  # fmt: skip
        """`longest`: tokens that a row of the block table holds; default, the trace's longest."""
        longest = (longest or trace.longest) - 1  # the last token is never read
        if longest > num_blocks * block_tokens:
            raise CannotServe(
                f"{trace.name}: a request of {longest} tokens does not fit "
                f"{num_blocks} blocks of {block_tokens}"
            )
        self.block_tokens = block_tokens
        self.max_num_tokens = max_num_tokens
        self.max_num_seqs = max_num_seqs
        self.waiting: WaitingQueue = deque()
        self.prefilling: list[Sequence] = []
        self.decoding: dict[Sequence, None] = {}
        self._running: dict[Sequence, None] = {}
        self._chunks: list[tuple[Sequence, int]] = []
        self._granted = False
        self.num_blocks = num_blocks
        self.free = list(range(num_blocks - 1, -1, -1))
        width = -(-self._blocks(longest) // TABLE_ALIGNMENT) * TABLE_ALIGNMENT
        # By request id: blocks in order, how many of them, the tokens known so far.
        self.table = np.zeros((len(trace), width), dtype=np.int32)
        self.held = [0] * len(trace)
        self.tokens = [
            np.concatenate([prompt, np.zeros(num, np.int32)])
            for prompt, num in zip(prompts, trace.output_tokens.tolist(), strict=True)
        ]
        self.progress = [Progress() for _ in prompts]
        self.num_iterations = self.num_finished = self.num_preemptions = 0

    # --- what a scheduler sees and does: see `simulator.schedulers.view.LaneView` ----------------

    key = 0  # the only lane
    num_swapped = 0  # preemption recomputes
    paused = False  # nobody else holds its blocks
    now_ns = 0  # requests are given to it, none is late

    def sent_ns(self, seq: Sequence) -> int:
        return self.now_ns

    @property
    def kv_tokens(self) -> int:
        return self.num_blocks * self.block_tokens

    @property
    def num_pages(self) -> int:
        return self.num_blocks

    @property
    def decode_iterations(self) -> int:
        return self.num_iterations

    @property
    def num_decode(self) -> int:
        return len(self.decoding)

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def has_work(self) -> bool:
        return bool(self._chunks) or (self._granted and bool(self.decoding))

    @property
    def may_admit(self) -> bool:
        return True

    def running(self) -> list[Sequence]:
        return list(self._running)

    def stall(self) -> None:
        raise RuntimeError("one batch in flight: there is nobody whose blocks to wait for")

    def decode(self) -> int:
        needs = {seq: self._missing(seq, seq.computed_tokens + 1) for seq in self.decoding}
        lacking = sum(needs.values()) - len(self.free)
        if lacking > 0:
            return lacking
        for seq, num in needs.items():
            self._take(seq, num)
        self._granted = True
        return 0

    def extend(self, seq: Sequence, num_tokens: int) -> bool:
        num = self._missing(seq, seq.computed_tokens + num_tokens)
        if num > len(self.free):
            return False
        self._take(seq, num)
        self._chunks.append((seq, num_tokens))
        return True

    def cached(self, seq: Sequence) -> int:
        return 0

    @property
    def decode_tokens(self) -> int:
        return len(self.decoding)

    def swap_in(self, spare_pages: int) -> None:
        return None

    def generated(self, seq: Sequence) -> int:
        return seq.generated_tokens

    def admit(
        self,
        seq: Sequence,
        cached_tokens: int,
        num_tokens: int,
        reserve: bool,
        spare_pages: int = 0,
    ) -> bool:
        wanted = self._blocks(seq.prefill_tokens if reserve else num_tokens)
        if wanted + spare_pages > len(self.free):
            return False
        self.waiting.popleft()
        self._running[seq] = None
        self.prefilling.append(seq)
        return self.extend(seq, num_tokens)

    def preempt_last(self) -> bool:
        return self.preempt(next(reversed(self._running)))

    def preempt(self, seq: Sequence) -> bool:
        self._leave(seq)
        self._chunks = [chunk for chunk in self._chunks if chunk[0] is not seq]
        seq.prefill_tokens = seq.prompt_tokens + seq.generated_tokens
        seq.computed_tokens = 0
        self.waiting.appendleft(seq)
        self.progress[seq.id].preemptions += 1
        self.num_preemptions += 1
        return True

    # --- what the engine does --------------------------------------------------------------------

    def arrive(self, id: int, prompt_tokens: int, output_tokens: int) -> None:
        """A request joins the queue."""
        self.waiting.append(Sequence(id, prompt_tokens, output_tokens))

    def batch(self) -> Batch:
        """What has been planned."""
        return Batch(tuple(self.decoding) if self._granted else (), tuple(self._chunks))

    def commit(self, batch: Batch, sampled: list[int]) -> None:
        """The iteration has ended; `sampled` holds a token of each decode, then of each chunk."""
        number = self.num_iterations
        self.num_iterations += 1
        self._granted = False
        self._chunks = []
        work = [*((seq, 1) for seq in batch.decodes), *batch.chunks]
        for (seq, num_tokens), token in zip(work, sampled, strict=True):
            progress = self.progress[seq.id]
            if progress.first_iteration < 0:
                progress.first_iteration = number
            seq.computed_tokens += num_tokens
            if seq.computed_tokens < seq.prompt_tokens + seq.generated_tokens:
                continue  # more of its prompt is to come
            self.tokens[seq.id][seq.computed_tokens] = token
            seq.generated_tokens += 1
            progress.token_iterations.append(number)
            if seq.generated_tokens == seq.output_tokens:
                self._leave(seq)
                self.num_finished += 1
            elif seq not in self.decoding:
                self.prefilling.remove(seq)
                self.decoding[seq] = None

    def check(self) -> None:
        """Every block is free or held once.

        Raises:
            RuntimeError: a block was lost, or is held twice.
        """
        held = [b for seq in self._running for b in self.table[seq.id, : self.held[seq.id]]]
        if sorted([*held, *self.free]) != list(range(self.num_blocks)):
            raise RuntimeError(
                f"{len(held)} blocks held and {len(self.free)} free of {self.num_blocks}"
            )

    def _leave(self, seq: Sequence) -> None:
        del self._running[seq]
        if seq in self.decoding:
            del self.decoding[seq]
        else:
            self.prefilling.remove(seq)
        held, self.held[seq.id] = self.held[seq.id], 0
        self.free += self.table[seq.id, :held].tolist()

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)

    def _missing(self, seq: Sequence, num_tokens: int) -> int:
        return self._blocks(num_tokens) - self.held[seq.id]

    def _take(self, seq: Sequence, num: int) -> None:
        if num > 0:
            held = self.held[seq.id]
            self.table[seq.id, held : held + num] = [self.free.pop() for _ in range(num)]
            self.held[seq.id] = held + num
