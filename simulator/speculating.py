"""A lane that speculates: drafts before every iteration, verifies in it, gains what was accepted.

It keeps a `Lane`'s verbs and books and replaces its decode calendar by a `RaggedSet`. Progress is
uneven, so no plan stands for more than one iteration. Drafts never displace work: where pages or
the token budget lack, a batch drafts less or nothing before anybody is preempted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.costs.compiled import TICK_BITS, CompiledCost, StageCost
from simulator.costs.drafting import DraftCost, compile_draft, compile_verification
from simulator.draft import DraftSpec
from simulator.errors import InfeasiblePlan
from simulator.experiment import Experiment
from simulator.lane import Lane
from simulator.ragged import CONTEXT, CURSOR, NEED, RaggedSet
from simulator.rank import Rank
from simulator.recorder import LaneLog
from simulator.request import Sequence
from simulator.spec import NodeGroup
from simulator.speculation import Speculation

Ints = NDArray[np.int64]
CHUNK_WEIGHT = 1 / 16  # of the newest iteration in the mean prompt tokens an iteration


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeculationKind:
    """What a replica's lanes need to speculate: policies, prices of drafts and verification."""

    policy: Speculation
    draft: DraftCost
    pair_ticks: tuple[int, ...]  # a query-key pair of verification, by window of the target
    shares_layers: bool  # drafts leave the first layers' states behind: only new tokens pass them
    lengths: Ints  # [requests] output tokens: outcomes are drawn ahead
    seed: int = 0


def speculation_kind(
    experiment: Experiment, group: NodeGroup
) -> tuple[CompiledCost, DraftSpec, SpeculationKind]:
    """Prices of the target when it verifies, the drafter, and what the lanes need.

    Raises:
        InfeasiblePlan: a pipeline, or a draft model that cannot be split as asked.
    """
    policy = experiment.speculation
    assert policy is not None
    model, plan, settings = experiment.model, experiment.plan, experiment.settings
    if plan.pp > 1:
        raise InfeasiblePlan(
            f"speculation with the {policy.drafter.kind} drafter runs on one pipeline stage "
            f"(got pp={plan.pp})"
        )
    draft, queries = policy.drafter.draft(model), policy.most_queries()
    cost, pairs = compile_verification(draft, model, plan, group, settings, queries)
    kind = SpeculationKind(
        policy=policy,
        draft=compile_draft(draft, model, plan, group, settings, queries),
        pair_ticks=pairs,
        shares_layers=not draft.owns_layers,
        lengths=experiment.workload.output_tokens,
        seed=experiment.seed,
    )
    return cost, draft, kind


class SpeculatingLane(Lane):
    """Sequences of one rank that iterate together and gain one to k + 1 tokens each."""

    __slots__ = ("_asked", "_chooser", "_cost", "_drafting", "_finished", "_kind", "_lengths", "_mean_chunk",
                 "_pending", "_source", "_steps_of", "_total", "_verified",
                 "_verified_each", "accepted_at", "ragged")  # fmt: skip

    def __init__(
        self, key: int, rank: Rank, cost: CompiledCost, log: LaneLog, kind: SpeculationKind
    ) -> None:
        super().__init__(key, rank, cost, log)
        policy = kind.policy
        most = policy.num_speculative_tokens
        self._kind = kind
        self._cost = cost
        self._source = policy.acceptance.open(policy.drafter, most, kind.seed, kind.lengths)
        self._chooser = policy.length.open(most)
        self._verified = [policy.drafter.verified(k) for k in range(most + 1)]
        self._verified_each = np.array(self._verified)
        windows = tuple(w for w in cost.windows if w)
        self.ragged = RaggedSet(rank.layout, windows, self._source.has_limits)
        self._asked = 0  # tokens each sequence was to draft for the coming iteration
        self._lengths: int | Ints = 0  # and what each does
        self._total = 0  # tokens gained by the latest iteration's decodes
        self._finished: list[Sequence] = []  # whose last was among them
        self._steps_of: dict[tuple[int, int], tuple[int, int]] = {}  # drafts of one length
        self._drafting = 0  # ticks of the drafts of the coming iteration
        self._pending = 0  # tokens of the target that the drafter has not seen
        self._mean_chunk = 0.0
        self.accepted_at = [0] * (most + 1)  # drafts by tokens accepted

    # --- what a scheduler sees and does -------------------------------------------------------

    @property
    def num_decode(self) -> int:
        return self.ragged.num_seqs

    @property
    def decode_tokens(self) -> int:
        return self.ragged.num_seqs + self.drafts

    @property
    def has_work(self) -> bool:
        return bool(self.chunks) or (self.granted and self.ragged.num_seqs > 0)

    def decode(self) -> int:
        ragged = self.ragged
        num = ragged.num_seqs
        self.drafts = self._asked = 0
        self._lengths = 0
        if num == 0:
            self.granted = True
            return 0
        verified = self._verified
        asked = self._chooser.choose(num, self._price)
        while asked and num * (1 + verified[asked]) > self.max_num_tokens:
            asked -= 1
        lengths = self._each_length(asked)
        drafts = self._queries(lengths) - 1
        free = self.allocator.free_pages
        tokens, pages = ragged.lacking(drafts, verified[-1])
        if pages > free and asked:
            asked = lengths = drafts = 0
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
                total = ragged.num_seqs + int(self._verified_each[spread].sum())
                if total > self.max_num_tokens:
                    lengths = asked
        if ragged.limits is None:
            return lengths
        most = ragged.limits.take(ragged.state[CURSOR, : ragged.num_seqs])
        return np.minimum(most, lengths).astype(np.int64)

    def _queries(self, lengths: int | Ints) -> int | Ints:
        """Query tokens of each sequence in the verification of such drafts."""
        if isinstance(lengths, int):
            return 1 + self._verified[lengths]
        queries: Ints = 1 + self._verified_each[lengths]
        return queries

    def _withdraw(self, seq: Sequence) -> int:
        ragged = self.ragged
        seq.generated_tokens = ragged.generated(seq)
        if isinstance(self._lengths, np.ndarray) and self.granted:
            slot = ragged.slot(seq)
            self._lengths[slot] = self._lengths[-1]
            self._lengths = self._lengths[:-1]
        _, pages = ragged.remove(seq)
        if self.granted:
            queries = self._queries(self._lengths)
            if isinstance(queries, int):
                self.drafts = (queries - 1) * ragged.num_seqs
            else:
                self.drafts = int(queries.sum()) - ragged.num_seqs
        return pages

    # --- what the replica does ----------------------------------------------------------------

    @property
    def num_decoding(self) -> int:
        return self.ragged.num_seqs if self.granted else 0

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
            price += self._verification_ticks(stage, self._queries(self._lengths), self.drafts)
        if self.chunks:
            price += sum(self._prefill_ticks(cost) for cost in stage.attention)
        return [price, 0]

    def _verification_ticks(self, stage: StageCost, queries: int | Ints, drafts: int) -> int:
        """Attention of the query tokens: contexts are read once, or computed on if longer."""
        ragged = self.ragged
        num, kv_tokens, price = ragged.num_seqs, ragged.kv_tokens, 0
        for cost, pair_ticks in zip(stage.attention, self._kind.pair_ticks, strict=True):
            if cost.window:
                tokens = ragged.window_tokens(cost.window)
                pairs = ragged.window_tokens(cost.window, queries)
            elif isinstance(queries, int):
                tokens, pairs = kv_tokens, kv_tokens * queries
            else:
                tokens = kv_tokens
                pairs = int(ragged.state[CONTEXT, :num] @ queries)
            read = cost.decode_per_token[num] * (tokens + drafts)
            price += cost.decode_base[num] + max(read, pair_ticks * pairs)
        return price

    def _draft_ticks(self) -> int:
        """Price of the drafts of the coming iteration, and of its prompts in the drafter."""
        draft, ragged = self._kind.draft, self.ragged
        num, asked = self.num_decoding, self._asked
        tokens = price = 0
        if num and (asked or draft.passes_beyond):
            tokens = num if self._kind.shares_layers else max(num, self._pending)
            price = self._proposal_ticks(num, self._lengths)
        if draft.attention is None:
            return price
        if self.chunks:
            context = sum(seq.computed_tokens for seq, _ in self.chunks)
            price += draft.prompts(self.chunk_tokens, self.chunk_pairs, context)
            tokens += self.chunk_tokens
        return price + draft.computes(tokens)

    def _proposal_ticks(self, num: int, lengths: int | Ints) -> int:
        """Passes of the drafter for drafts so long, the first one's token-wise ops excepted."""
        draft = self._kind.draft
        if isinstance(lengths, int):
            steps = self._steps_of.get((num, lengths))
            if steps is None:
                steps = draft.steps([num] * (lengths + draft.passes_beyond))
                self._steps_of[num, lengths] = steps
            is_asked = lengths > 0
        else:
            at_least = np.bincount(lengths, minlength=self._asked + 1)[::-1].cumsum()[::-1]
            passes = at_least[0 if draft.passes_beyond else 1 :].tolist()
            steps = draft.steps([count for count in passes if count])
            is_asked = True
        fixed, slope = steps
        host = draft.host[num] if is_asked else 0
        return host + fixed + slope * (self.ragged.kv_tokens // num)

    def _price(self, length: int) -> int:
        """Ticks of the coming iteration, were every sequence to draft so many tokens."""
        cost, ragged, kind = self._cost, self.ragged, self._kind
        stage, num = cost.stages[0], ragged.num_seqs
        queries = 1 + self._verified[length]
        rows = min(num * queries, len(cost.logits) - 1)
        tokens = min(num * queries + round(self._mean_chunk), self.max_num_tokens)
        price = stage.linear[tokens] + cost.host[num] + cost.logits[rows]
        if stage.expert:
            price += stage.expert[min(tokens, len(stage.expert) - 1)]
        price += self._verification_ticks(stage, queries, num * (queries - 1))
        draft = kind.draft
        if length or draft.passes_beyond:
            price += self._proposal_ticks(num, length)
            if draft.attention is not None:
                price += draft.computes(num if kind.shares_layers else max(num, self._total))
        return price

    # --- after an iteration -------------------------------------------------------------------

    def _log_segment(self, num_iterations: int, start_ns: int) -> None:
        log, ragged = self.log, self.ragged
        num = self.num_decoding
        kv_tokens = ragged.kv_tokens if num else 0
        proposing, accepted = self._verify() if num else (0, 0)
        emitted = self._total if num else 0
        ends = 0
        if self.chunks:
            ends = sum(seq.computed_tokens + n == seq.prefill_tokens for seq, n in self.chunks)
        log.start_ns.append(start_ns)
        log.segments.extend(
            (
                num_iterations,  # several where the lane idles while other ranks do not
                num,
                kv_tokens,
                len(self.chunks),
                self.chunk_tokens,
                self.chunk_pairs,
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
        if num or self.chunks:
            self._mean_chunk += CHUNK_WEIGHT * (self.chunk_tokens - self._mean_chunk)

    def _verify(self) -> tuple[int, int]:
        """Look up what is accepted of every draft; returns drafts, and tokens accepted."""
        ragged, lengths, chooser = self.ragged, self._lengths, self._chooser
        num = ragged.num_seqs
        if self._asked == 0:
            self._total = num
            if ragged.advance(1, num):
                self._finished = [seq for seq, _ in ragged.finished()]
            chooser.observe(num, -1, 0, 0)
            return 0, 0
        accepted = np.minimum(ragged.runs.take(ragged.state[CURSOR, :num]), lengths)
        if isinstance(lengths, int):
            proposing = num
            counts = np.bincount(accepted, minlength=lengths + 1).tolist()
            total, trials = _totals(counts, lengths)
        else:
            drafted = lengths > 0
            counts = np.bincount(accepted[drafted], minlength=1).tolist()
            total, proposing = int(accepted.sum()), int(np.count_nonzero(drafted))
            trials = int(np.minimum(accepted + 1, lengths).sum())
        for position, count in enumerate(counts):
            self.accepted_at[position] += count
        if chooser.per_request:
            each = np.broadcast_to(np.asarray(lengths), (num,))
            chooser.observe_each([seq.id for seq in ragged.seqs], accepted.astype(np.int64), each)
        self._total = num + total
        if ragged.advance(np.add(accepted, 1, dtype=np.int64), self._total):
            for seq, beyond in ragged.finished():
                self._finished.append(seq)
                self._total -= beyond
        chooser.observe(num, proposing, total, trials)
        return proposing, total

    def _advance(self, num_iterations: int, end_ns: int) -> None:
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


def _totals(counts: list[int], length: int) -> tuple[int, int]:
    """Tokens accepted, and tokens tested up to the first refused, of drafts of one length."""
    accepted = trials = at_least = 0
    for position in range(length, -1, -1):
        at_least += counts[position]
        accepted += position * counts[position]
        if position < length:
            trials += at_least
    return accepted, trials
