"""A lane that speculates: drafts before every iteration, verifies in it, gains what was accepted.

It keeps a `Lane`'s verbs and books and replaces its decode calendar by a `RaggedSet`. Progress is
uneven, so no plan stands for more than one iteration. Drafts never displace work: where pages or
the token budget lack, a batch drafts less or nothing before anybody is preempted.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.costs.compiled import TICK_BITS, CompiledCost, StageCost
from simulator.drafting import DraftPrices, SpeculationKind
from simulator.lane import Lane
from simulator.ragged import CURSOR, NEED, RaggedSet
from simulator.rank import Rank
from simulator.recorder import LaneLog
from simulator.request import Sequence

Ints = NDArray[np.int64]


class SpeculatingLane(Lane):
    """Sequences of one rank that iterate together and gain one to k + 1 tokens each."""

    __slots__ = (
        "_asked",
        "_chooser",
        "_decoded",
        "_drafting",
        "_finished",
        "_kind",
        "_lengths",
        "_pending",
        "_prices",
        "_source",
        "_total",
        "accepted_at",
        "ragged",
    )

    def __init__(
        self, key: int, rank: Rank, cost: CompiledCost, log: LaneLog, kind: SpeculationKind
    ) -> None:
        super().__init__(key, rank, cost, log)
        policy = kind.policy
        most = policy.num_speculative_tokens
        self._kind = kind
        self._source = policy.acceptance.open(policy.drafter, most, kind.seed, kind.lengths)
        self._chooser = policy.length.open(most)
        windows = tuple(w for w in cost.windows if w)
        self.ragged = RaggedSet(rank.layout, windows, self._source.has_limits)
        self._prices = DraftPrices(kind, cost, self.ragged)
        self._decoded = 0  # iterations in which the decodes had their pages
        self._asked = 0  # tokens each sequence was to draft for the coming iteration
        self._lengths: int | Ints = 0  # and what each does
        self._total = 0  # tokens gained by the latest iteration's decodes
        self._finished: list[Sequence] = []  # whose last was among them
        self._drafting = 0  # ticks of the drafts of the coming iteration
        self._pending = 0  # tokens of the target that the drafter has not seen
        self.accepted_at = [0] * (most + 1)  # drafts by tokens accepted

    # --- what a scheduler sees and does -------------------------------------------------------

    @property
    def decode_iterations(self) -> int:
        return self._decoded

    def generated_by(self, seq: Sequence) -> int:
        return seq.generated_tokens if seq in self.prefilling else self.ragged.generated(seq)

    @property
    def num_decode(self) -> int:
        return self.ragged.num_seqs

    @property
    def decode_tokens(self) -> int:
        return self.ragged.num_seqs + self.drafts

    @property
    def has_work(self) -> bool:
        return bool(self.chunks.members) or (self.granted and self.ragged.num_seqs > 0)

    def decode(self) -> int:
        ragged = self.ragged
        num = ragged.num_seqs
        self.drafts = self._asked = 0
        self._lengths = 0
        if num == 0:
            self.granted = True
            return 0
        prices = self._prices
        asked = self._chooser.choose(num, self._price)
        while asked and num * (1 + prices.verified(asked)) > self.max_num_tokens:
            asked -= 1
        lengths: int | Ints = self._each_length(asked)
        drafts: int | Ints = prices.verified(lengths)
        free = self.allocator.free_pages
        tokens, pages = ragged.lacking(drafts, prices.most_verified)
        if pages > free and asked:
            asked = 0
            lengths = drafts = 0
            tokens, pages = ragged.lacking(0, 0)
        if pages > free:
            return pages - free
        if pages:
            self.allocator.take(pages)
            ragged.state[NEED, :num] -= tokens
        self._asked, self._lengths = asked, lengths
        self.drafts = drafts * num if isinstance(drafts, int) else int(drafts.sum())
        self.granted = True
        return 0

    def _each_length(self, asked: int) -> int | Ints:
        """Tokens each sequence drafts, where it is asked for so many."""
        if asked == 0:
            return 0
        ragged = self.ragged
        lengths: int | Ints = asked
        if self._chooser.per_request:
            spread = self._chooser.spread(asked, [seq.id for seq in ragged.seqs])
            if spread is not None:
                lengths = spread
                total = ragged.num_seqs + int(np.sum(self._prices.verified(spread)))
                if total > self.max_num_tokens:
                    lengths = asked
        if ragged.limits is None:
            return lengths
        most = ragged.limits.take(ragged.state[CURSOR, : ragged.num_seqs])
        return np.minimum(most, lengths).astype(np.int64)

    def _withdraw(self, seq: Sequence) -> int:
        ragged = self.ragged
        seq.generated_tokens = ragged.generated(seq)
        if isinstance(self._lengths, np.ndarray) and self.granted:
            slot = ragged.slot(seq)
            self._lengths[slot] = self._lengths[-1]
            self._lengths = self._lengths[:-1]
        _, pages = ragged.remove(seq)
        if self.granted:
            verified = self._prices.verified(self._lengths)
            num = ragged.num_seqs
            self.drafts = verified * num if isinstance(verified, int) else int(verified.sum())
        return pages

    # --- what the replica does ----------------------------------------------------------------

    @property
    def num_decoding(self) -> int:
        return self.ragged.num_seqs if self.granted else 0

    def load(self) -> tuple[int, int, int]:
        num = self.num_decoding
        chunks, drafts = self.chunks, self.drafts
        tokens = num + chunks.tokens + drafts
        return tokens, num + len(chunks.members), num + chunks.ending + drafts

    def needs_plan(self, is_alone: bool) -> bool:
        is_booked = self.ragged.num_seqs > 0 and not self.granted
        if self.claim <= 0 or is_booked or self.rank.starved:
            return True
        return len(self.waiting) > 0 and not (self.sealed if is_alone else self.rank.blocked)

    def _repeats(self, claim: int) -> int:
        return 1

    def attention_form(self, stage: StageCost) -> list[int]:
        """Price of drafts and of attention in the coming iteration; nothing grows."""
        self._drafting = price = self._draft_ticks()
        if self.num_decoding:
            prices = self._prices
            price += prices.verification(stage, prices.verified(self._lengths), self.drafts)
        if self.chunks.members:
            price += sum(self.chunks.ticks(cost) for cost in stage.attention)
            if stage.cold and self._size_class() not in self.rank.warm:
                price += stage.cold
        return [price, 0]

    def _draft_ticks(self) -> int:
        """Price of the drafts of the coming iteration, and of its prompts in the drafter."""
        draft = self._kind.draft
        num, asked = self.num_decoding, self._asked
        tokens = price = 0
        if num and (asked or draft.passes_beyond):
            tokens = num if self._kind.shares_layers else max(num, self._pending)
            price = self._prices.proposal(self._lengths, asked)
        if draft.attention is None:
            return price
        chunks = self.chunks
        if chunks.members:
            price += draft.prompts(chunks.tokens, chunks.pairs, chunks.context_tokens)
            tokens += chunks.tokens
        return price + draft.computes(tokens)

    def _price(self, length: int) -> int:
        return self._prices.iteration(length, self._total)

    # --- after an iteration -------------------------------------------------------------------

    def _log_segment(self, num_iterations: int, start_ns: int) -> None:
        log, ragged = self.log, self.ragged
        num = self.num_decoding
        kv_tokens = ragged.kv_tokens if num else 0
        proposing, accepted = self._verify() if num else (0, 0)
        emitted = self._total if num else 0
        chunks = self.chunks
        ends = chunks.ending
        log.start_ns.append(start_ns)
        log.segments.extend(
            (
                num_iterations,  # several where the lane idles while other ranks do not
                num,
                kv_tokens,
                len(chunks.members),
                chunks.tokens,
                chunks.pairs,
                emitted + ends,
                self.used_pages,
                self.num_waiting,
            )
        )
        draft_ns = self._drafting >> TICK_BITS
        log.speculation.extend((proposing, self._asked, self.drafts, accepted, draft_ns))
        if self._asked and num:
            self._pending = 0
        self._pending = min(self._pending + emitted + ends, ragged.kv_tokens + emitted)
        self.drafts = self._asked = 0  # a scheduler may not decode in the next iteration

    def _verify(self) -> tuple[int, int]:
        """Look up what is accepted of every draft; returns drafts, and tokens accepted."""
        ragged, lengths, chooser = self.ragged, self._lengths, self._chooser
        num = ragged.num_seqs
        if self._asked == 0:
            self._total = num
            if ragged.advance(1, 1, num):
                self._finished = [seq for seq, _ in ragged.finished()]
            chooser.observe(num, -1, 0, 0)
            return 0, 0
        accepted = np.minimum(ragged.runs.take(ragged.state[CURSOR, :num]), lengths)
        counts = np.bincount(accepted, minlength=1).tolist()
        total = sum(position * count for position, count in enumerate(counts))
        most = self._asked + 1
        # Tested: every token accepted, and the one refused where a draft did not end first.
        if isinstance(lengths, int):
            proposing, refused = num, num - (counts[lengths] if len(counts) > lengths else 0)
        else:
            proposing = int(np.count_nonzero(lengths))
            refused = int(np.count_nonzero(accepted < lengths))
            counts[0] -= num - proposing
            most = len(self.accepted_at)  # a request's own length may exceed the common one
        for position, count in enumerate(counts):
            self.accepted_at[position] += count
        if chooser.per_request:
            each = np.broadcast_to(np.asarray(lengths), (num,))
            chooser.observe_each([seq.id for seq in ragged.seqs], accepted.astype(np.int64), each)
        self._total = num + total
        gained = np.add(accepted, 1, dtype=np.int64)
        if ragged.advance(gained, most, self._total):
            for seq, beyond in ragged.finished():
                self._finished.append(seq)
                self._total -= beyond
        chooser.observe(num, proposing, total, total + refused)
        return proposing, total

    def _advance(self, num_iterations: int, end_ns: int) -> None:
        self._decoded += num_iterations
        if self.paused:
            self.paused = False
            for seq in self._decoding():
                if seq.span_start < 0:
                    seq.span_start = len(self.log.end_ns) - 1
        if self._finished:
            finished, self._finished = self._finished, []
            for seq in finished:
                seq.generated_tokens = seq.output_tokens
                _, pages = self.ragged.remove(seq)
                self._finish(seq, pages, end_ns)

    def _start_decoding(self, seq: Sequence) -> None:
        runs, limits = self._source.outcomes(seq.id)
        self.ragged.add(seq, runs, limits)

    def _finish(self, seq: Sequence, pages: int, end_ns: int) -> None:
        self._source.finished(seq.id)
        super()._finish(seq, pages, end_ns)
