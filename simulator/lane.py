"""One lane of one attention rank: the batch that iterates together, and the books of its pages.

A lane offers the scheduler its verbs, prices the attention of what was planned, and books
iterations when they have ended. A plan stands for a number of iterations, its claim; meanwhile the
lane lets them run and books them together, when something changes or somebody looks.
"""

from __future__ import annotations

from simulator.batch import FOREVER, DecodeSet
from simulator.chunks import PromptChunks
from simulator.costs.compiled import (
    MOST_SIZE_CLASS,
    SIZE_CLASS_TOKENS,
    CompiledCost,
    StageCost,
)
from simulator.errors import InvariantViolation
from simulator.rank import Rank
from simulator.recorder import LaneLog
from simulator.request import Sequence


class Lane:
    """Sequences of one rank that iterate together."""

    __slots__ = (
        "_match",
        "allocator",
        "behind",
        "chunks",
        "claim",
        "decodes",
        "drafts",
        "granted",
        "in_flight",
        "key",
        "log",
        "max_num_seqs",
        "max_num_tokens",
        "num_waiting",
        "paused",
        "prefilling",
        "rank",
        "sealed",
        "since_ns",
        "taken",
        "used_pages",
        "waiting",
    )

    def __init__(self, key: int, rank: Rank, cost: CompiledCost, log: LaneLog) -> None:
        self.key = key  # index among all lanes of the run
        self.rank = rank
        self.waiting = rank.waiting
        self.allocator = rank.allocator
        self.max_num_tokens = cost.max_num_tokens
        self.max_num_seqs = cost.max_num_seqs
        self.decodes = DecodeSet(
            rank.layout,
            tuple(w for w in cost.windows if w),
            cost.reads_longest,
        )
        self.prefilling: list[Sequence] = []
        self.chunks = PromptChunks()
        self.granted = False  # the decodes have their pages for the coming iteration
        self.taken = 0  # pages given to the decodes of the coming iteration
        self.drafts = 0  # tokens the coming iteration verifies beside its decodes
        self.log = log
        self.claim = 0  # further iterations that stay as planned
        self.behind = 0  # of those, ended but not yet booked
        self.used_pages = self.num_waiting = 0  # of the rank, when that was planned
        self.since_ns = 0  # dispatch of the first of them
        self.sealed = False  # somebody waits who cannot be admitted, nor can a newcomer
        self.in_flight = False  # dispatched, not yet ended
        self.paused = False  # its decodes did not gain a token in the latest iteration
        self._match = (0, 0, 0)
        rank.lanes[key] = self

    # --- what a scheduler sees and does -------------------------------------------------------

    @property
    def decode_iterations(self) -> int:
        return self.decodes.iteration

    @property
    def num_decode(self) -> int:
        return self.decodes.num_seqs

    @property
    def decode_tokens(self) -> int:
        return self.decodes.num_seqs

    @property
    def num_pages(self) -> int:
        return self.allocator.num_pages

    @property
    def block_tokens(self) -> int:
        return self.rank.layout.block_tokens

    @property
    def kv_tokens(self) -> int:
        layout = self.rank.layout
        return self.allocator.num_pages // layout.most * layout.block_tokens

    @property
    def now_ns(self) -> int:
        return self.rank.now_ns

    def sent_ns(self, seq: Sequence) -> int:
        return self.rank.recorder.sent_ns[seq.id]

    @property
    def num_running(self) -> int:
        rank = self.rank
        return len(rank.running) + rank.incoming

    @property
    def has_work(self) -> bool:
        return bool(self.chunks.members) or (self.granted and self.decodes.num_seqs > 0)

    @property
    def may_admit(self) -> bool:
        return not self.rank.starved

    def running(self) -> list[Sequence]:
        return list(self.rank.running)

    def generated(self, seq: Sequence) -> int:
        if seq not in self.rank.running:
            return seq.generated_tokens
        return self.rank.lanes[seq.lane].generated_by(seq)

    def generated_by(self, seq: Sequence) -> int:
        """Tokens a running sequence of this lane has been given."""
        if seq in self.prefilling:
            return seq.generated_tokens
        return seq.generated_tokens + self.decodes.iteration - seq.decode_since

    @property
    def num_swapped(self) -> int:
        return 0

    def swap_in(self, spare_pages: int) -> None:
        return None

    def stall(self) -> None:
        self.rank.starved.add(self.key)

    def decode(self) -> int:
        """Give the decoding sequences their pages for one token, or tell how many lack."""
        pages = self.decodes.new_pages()
        lacking = pages - self.allocator.free_pages
        if lacking > 0:
            return lacking
        if pages:
            self.allocator.take(pages)
        self.taken = pages
        self.granted = True
        return 0

    def extend(self, seq: Sequence, num_tokens: int) -> bool:
        pages = self.rank.layout.pages(seq.computed_tokens + num_tokens) - seq.blocks
        if pages > self.allocator.free_pages:
            return False
        self._compute(seq, num_tokens, pages)
        return True

    def cached(self, seq: Sequence) -> int:
        self._match = self.allocator.match(seq)
        return self._match[0]

    def admit(
        self,
        seq: Sequence,
        cached_tokens: int,
        num_tokens: int,
        reserve: bool,
        spare_pages: int = 0,
    ) -> bool:
        pages = self.rank.layout.pages
        _, held, unpinned = self._match
        known = cached_tokens + num_tokens
        needs = pages(known)
        required = pages(seq.prefill_tokens) if reserve and known < seq.prefill_tokens else needs
        if required - held + unpinned > self.allocator.free_pages - spare_pages:
            # Evicting part of a cached prefix makes a first chunk, and so its need, smaller.
            self.rank.blocked = (reserve or cached_tokens == 0) and not self.rank.reorders
            return False
        self.waiting.popleft()
        self.rank.recorder.admitted(seq, cached_tokens, self.rank.now_ns)
        self.allocator.claim(seq, held)
        seq.blocks = held
        seq.computed_tokens = seq.cached_tokens = cached_tokens
        seq.lane = self.key
        self.rank.running[seq] = None
        self.prefilling.append(seq)
        self._compute(seq, num_tokens, needs - held if needs > held else 0)
        return True

    def _compute(self, seq: Sequence, num_tokens: int, num_pages: int) -> None:
        self.allocator.take(num_pages)
        seq.blocks += num_pages
        self.chunks.add(seq, num_tokens)
        self.allocator.computed(seq, seq.computed_tokens + num_tokens)

    def preempt_last(self) -> bool:
        return self.preempt(next(reversed(self.rank.running)))

    def preempt(self, seq: Sequence) -> bool:
        owner = self.rank.lanes[seq.lane]
        if owner.in_flight:
            return False
        owner.evict(seq)
        return True

    def evict(self, seq: Sequence) -> None:
        """Send a running sequence back to the head of `waiting`, to be recomputed."""
        del self.rank.running[seq]
        self.rank.blocked = False
        self.rank.num_evictions += 1
        self.claim = 0  # another lane may have evicted it: the plan, and its price, stand no more
        if seq in self.prefilling:
            self.prefilling.remove(seq)
            pages = seq.blocks
            self.chunks.cancel(seq)
        else:
            pages = self._withdraw(seq)
        self.allocator.release(seq, pages)
        self.rank.recorder.preempted(seq, self.key, len(self.log.end_ns) - 1)
        seq.prefill_tokens = seq.prompt_tokens + seq.generated_tokens
        seq.computed_tokens = seq.blocks = 0
        self.waiting.appendleft(seq)

    def _withdraw(self, seq: Sequence) -> int:
        """Take a decoding sequence out; returns the pages it holds."""
        decodes = self.decodes
        seq.generated_tokens += decodes.iteration - seq.decode_since
        context = decodes.context(seq)
        pages = decodes.remove(seq)
        if self.granted:  # it has been given its page for the coming token already
            given = self.rank.layout.pages(context) - pages
            self.taken -= given
            pages += given
        return pages

    # --- what the replica does ----------------------------------------------------------------

    @property
    def num_decoding(self) -> int:
        """Sequences that gain a token by decoding in the coming iteration."""
        return self.decodes.num_seqs if self.granted else 0

    def load(self) -> tuple[int, int, int]:
        """Of the coming iteration: tokens, sequences, and tokens sampled.

        Sampled is one a decode, one a prompt that ends, and each draft that is verified.
        """
        num = self.decodes.num_seqs if self.granted else 0
        chunks = self.chunks
        return num + chunks.tokens, num + len(chunks.members), num + chunks.ending

    def needs_plan(self, is_alone: bool) -> bool:
        """Whether the scheduler could decide anything new; else the old plan stands.

        With several batches in flight, an end in one may admit into another, unless nobody can.
        """
        if self.claim <= 0 or self.rank.starved:
            return True
        if not self.granted and self.decodes.num_seqs:  # booked
            return True
        return len(self.waiting) > 0 and not (self.sealed if is_alone else self.rank.blocked)

    def planned(self, claim: int, arrivals_wait: bool) -> None:
        """The scheduler has planned, and would do so again for `claim` iterations."""
        if claim == 0:  # idle, until somebody waits
            self.claim = 1 if self.waiting else FOREVER
        else:
            self.claim = self._repeats(claim) if claim > 1 else 1
        num_waiting = len(self.waiting)
        self.sealed = arrivals_wait and num_waiting > 0
        self.used_pages = self.allocator.num_pages - self.allocator.free_pages
        self.num_waiting = num_waiting
        rank = self.rank
        if len(rank.running) + rank.incoming >= self.max_num_seqs and not rank.reorders:
            rank.blocked = True

    def look(self) -> None:
        """Note what the log says of the moment an iteration is planned."""
        self.used_pages = self.allocator.num_pages - self.allocator.free_pages
        self.num_waiting = len(self.waiting)

    def share_pages(self, num_lanes: int) -> None:
        """Keep the claim within this lane's share of the rank's free pages."""
        if self.granted and self.claim > 1:
            pages = self.allocator.free_pages // num_lanes + self.taken
            most = self.decodes.iterations_within(pages, self.behind + self.claim)
            self.claim = max(1, most - self.behind)

    def _repeats(self, claim: int) -> int:
        """Iterations that are certain to be identical but for one more token of context each."""
        decodes = self.decodes
        most = min(claim, decodes.iterations_to_finish())
        if decodes.windows:
            most = min(most, decodes.iterations_to_change())
        return decodes.iterations_within(self.allocator.free_pages + self.taken, most)

    def attention_form(self, stage: StageCost) -> list[int]:
        """Attention price on one stage: of the coming iteration, and its growth an iteration."""
        decodes, chunks = self.decodes, self.chunks
        num = decodes.num_seqs if self.granted else 0
        price = growth = number = 0
        for cost in stage.attention:
            if num:
                tokens, growing = decodes.kv_tokens, num
                if cost.window:
                    total = decodes.windows[number]
                    tokens, growing = total.tokens, total.growing
                    number += 1
                slope = cost.decode_per_token[num]
                price += cost.decode_base[num] + slope * tokens
                if cost.decode_spread:
                    price += cost.decode_spread[num] * decodes.spread_tokens()
                growth += slope * growing
            if chunks.members:
                price += chunks.ticks(cost)
        if stage.cold and chunks.members and self._size_class() not in self.rank.warm:
            price += stage.cold
        return [price, growth]

    def _size_class(self) -> int:
        return min(MOST_SIZE_CLASS, (self.num_decoding + self.chunks.tokens) // SIZE_CLASS_TOKENS)

    def ended(self, num_iterations: int, start_ns: int, end_ns: int) -> None:
        """Iterations have ended, their times are in the log; booked now only if that matters."""
        if self.behind == 0:
            self.since_ns = start_ns
        self.behind += num_iterations
        self.claim -= num_iterations
        self.in_flight = False
        if self.claim <= 0 or self.chunks.members:
            self._book(end_ns)

    def catch_up(self) -> None:
        """Book what has ended; what is in flight keeps its pages."""
        self._book(self.log.end_ns[-1])
        if self.in_flight and self.decodes.num_seqs and self.decode():
            raise InvariantViolation(f"lane {self.key}: no pages for the iteration in flight")

    def _book(self, end_ns: int) -> None:
        num_iterations, self.behind = self.behind, 0
        self._log_segment(num_iterations, self.since_ns)
        chunks = self.chunks
        if chunks.members:
            self.rank.warm.add(self._size_class())
        if self.granted:
            self.granted = False
            self._advance(num_iterations, end_ns)
        elif self.num_decode:
            self._pause()
        if chunks.members:
            for seq, num_tokens in chunks.members:
                seq.computed_tokens += num_tokens
                if seq.computed_tokens == seq.prefill_tokens:
                    self._end_prompt(seq, end_ns)
            chunks.clear()

    def _advance(self, num_iterations: int, end_ns: int) -> None:
        decodes = self.decodes
        if num_iterations > 1:
            self.allocator.take(decodes.pages_within(num_iterations) - self.taken)
        if self.paused:
            self.paused = False
            for seq in self._decoding():
                if seq.span_start < 0:
                    seq.span_start = len(self.log.end_ns) - num_iterations
        finished = decodes.advance(num_iterations)
        if finished:
            for seq in finished:
                seq.generated_tokens = seq.output_tokens
                self._finish(seq, decodes.drop(seq), end_ns)

    def _pause(self) -> None:
        """The decodes lack pages that a batch in flight holds: their token spans end here."""
        self.paused = True
        for seq in self._decoding():
            self.rank.recorder.paused(seq, self.key, len(self.log.end_ns) - 2)

    def _decoding(self) -> list[Sequence]:
        mine = (seq for seq in self.rank.running if seq.lane == self.key)
        return [seq for seq in mine if seq.generated_tokens and seq not in self.prefilling]

    def _log_segment(self, num_iterations: int, start_ns: int) -> None:
        decodes, chunks, log = self.decodes, self.chunks, self.log
        num_decode = decodes.num_seqs if self.granted else 0
        log.start_ns.append(start_ns)
        log.segments.extend(
            (
                num_iterations,
                num_decode,
                decodes.kv_tokens if num_decode else 0,
                len(chunks.members),
                chunks.tokens,
                chunks.pairs,
                num_decode + chunks.ending,
                self.used_pages,
                self.num_waiting,
            )
        )

    def _end_prompt(self, seq: Sequence, end_ns: int) -> None:
        self.prefilling.remove(seq)
        seq.generated_tokens += 1
        seq.span_start = len(self.log.end_ns) - 1
        if seq.generated_tokens == 1:
            self.rank.recorder.first_token_ns[seq.id] = end_ns
        if seq.generated_tokens == seq.output_tokens:
            self._finish(seq, seq.blocks, end_ns)
        else:
            self._start_decoding(seq)

    def _start_decoding(self, seq: Sequence) -> None:
        self.decodes.add(seq)

    def _finish(self, seq: Sequence, pages: int, end_ns: int) -> None:
        rank = self.rank
        del rank.running[seq]
        rank.blocked = False
        rank.outstanding_tokens -= seq.prompt_tokens
        rank.allocator.computed(seq, seq.prompt_tokens + seq.output_tokens - 1)
        rank.allocator.release(seq, pages)
        rank.recorder.finished(seq, self.key, len(self.log.end_ns) - 1, end_ns)
        if rank.on_finish is not None:
            rank.on_finish(seq, end_ns)

    def check_drained(self) -> None:
        """Conservation at the end of a run: an empty lane leaves every page free."""
        allocator = self.allocator
        if not self.rank.running and allocator.free_pages != allocator.num_pages:
            raise InvariantViolation(
                f"rank {self.rank.index}: {allocator.free_pages} free pages of "
                f"{allocator.num_pages} with nothing running"
            )
