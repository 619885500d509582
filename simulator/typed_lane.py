"""A lane whose allocator knows who holds which pages, and of which kind of layers.

Plain lanes count pages. Here every sequence that begins a block, or that a block of its window
leaves, is an event of the decode calendar: its pages are taken and given back by name. A run goes
on past such events only while every one of them could have large pages of its own, and not while
somebody waits whom the pages of a window may let in.
"""

from __future__ import annotations

from simulator.allocators.typed import TypedAllocator
from simulator.costs.compiled import CompiledCost
from simulator.errors import InvariantViolation
from simulator.lane import Lane
from simulator.rank import Rank
from simulator.recorder import LaneLog
from simulator.request import Sequence


class TypedLane(Lane):
    """Sequences of one rank that iterate together, on pages of several kinds."""

    __slots__ = ("_due", "_fresh", "_refused", "_slid", "_steps")

    def __init__(self, key: int, rank: Rank, cost: CompiledCost, log: LaneLog) -> None:
        super().__init__(key, rank, cost, log)
        size = rank.layout.block_tokens
        # Decoding sequences whose pages change when the iteration counter has that residue.
        self._due: list[dict[Sequence, None]] = [{} for _ in range(size)]
        # The context at which a block begins, and those at which one has left a window.
        windows = [kind.window + kind.extra for kind in self._typed.kinds if kind.window]
        self._fresh: list[Sequence] = []  # they hold what their last chunk needed
        self._slid = (
            False  # pages came back since the last claim: a scheduler may not have seen them
        )
        # Who was last refused for a whole prompt, with what was cached and what room there was.
        self._refused: tuple[Sequence, int, int, int, tuple[int, ...]] | None = None
        self._steps = {1 % size, *(window % size for window in windows)}

    @property
    def _typed(self) -> TypedAllocator:
        allocator = self.allocator
        return allocator  # type: ignore[return-value]

    # --- what a scheduler does ----------------------------------------------------------------

    def decode(self) -> int:
        lacks = self._step(0)
        if lacks and self._is_alone():
            self._typed.compact(next(iter(self.rank.running)))
            lacks = self._step(0)
        self.taken = 0
        self.granted = lacks == 0
        return lacks

    def _step(self, ahead: int) -> int:
        """Pages for the decodes of the iteration after `ahead` more, or what lacks of them."""
        decodes, allocator = self.decodes, self._typed
        due = self._due[(decodes.iteration + ahead) % len(self._due)]
        if not due and not self._fresh:
            return 0
        changing = dict.fromkeys((*self._fresh, *due))
        self._fresh.clear()  # what they need besides, they need as all of `due`
        wanted = [(seq, decodes.context(seq) + ahead) for seq in changing]
        for seq, context in wanted:
            self._slide(seq, context - 1)
        return allocator.grow(wanted)

    def _slide(self, seq: Sequence, query: int) -> None:
        if self._typed.slide(seq, query):
            self._slid = True
            self.rank.blocked = False

    def _is_alone(self) -> bool:
        return len(self.rank.running) == 1

    def extend(self, seq: Sequence, num_tokens: int) -> bool:
        allocator = self._typed
        self._slide(seq, seq.computed_tokens)
        wanted = [(seq, seq.computed_tokens + num_tokens)]
        if allocator.grow(wanted):
            if not self._is_alone():
                return False
            allocator.compact(seq)
            if allocator.grow(wanted):
                return False
        self._compute(seq, num_tokens, 0)
        return True

    def cached(self, seq: Sequence) -> int:
        refused = self._refused
        if refused is not None and self._is_refused(seq, refused[2]):
            return refused[1]
        return super().cached(seq)

    def _is_refused(self, seq: Sequence, spare_pages: int) -> bool:
        """It was, and since then nothing has been cached and no memory has come back."""
        if self._refused is None or self._refused[0] is not seq:
            return False
        _, _, spare, num_named, room = self._refused
        allocator = self._typed
        return (
            spare <= spare_pages
            and num_named == allocator.num_named
            and all(now <= then for now, then in zip(allocator.room(), room, strict=True))
        )

    def admit(
        self,
        seq: Sequence,
        cached_tokens: int,
        num_tokens: int,
        reserve: bool,
        spare_pages: int = 0,
    ) -> bool:
        allocator, rank = self._typed, self.rank
        tokens = cached_tokens + num_tokens
        if reserve and self._is_refused(seq, spare_pages):
            rank.blocked = True
            return False
        allocator.claim(seq, 0, cached_tokens)
        allocator.begin(seq, tokens)
        needs = allocator.needs_for_all(seq, max(tokens, seq.prefill_tokens if reserve else 0))
        if allocator.lacks(needs, spare_pages) or allocator.grow([(seq, tokens)]):
            allocator.unclaim(seq)
            rank.blocked = reserve or cached_tokens == 0
            if reserve:
                room = allocator.room()
                self._refused = (seq, cached_tokens, spare_pages, allocator.num_named, room)
            return False
        self._refused = None
        self.waiting.popleft()
        rank.recorder.admitted(seq, cached_tokens, rank.now_ns)
        seq.computed_tokens = seq.cached_tokens = cached_tokens
        seq.lane = self.key
        rank.running[seq] = None
        self.prefilling.append(seq)
        self._compute(seq, num_tokens, 0)
        return True

    # --- what the replica does ----------------------------------------------------------------

    def share_pages(self, num_lanes: int) -> None:
        """Claims of several lanes end before they need pages."""

    def _repeats(self, claim: int) -> int:
        slid, self._slid = self._slid, False
        if slid and self.waiting:
            return 1
        decodes = self.decodes
        most = min(claim, decodes.iterations_to_finish())
        if decodes.windows:
            most = min(most, decodes.iterations_to_change())
        if len(self.rank.lanes) == 1 and not self.waiting:
            return max(1, decodes.iterations_within(self._typed.num_available, most))
        size = len(self._due)
        for ahead in range(1, min(most, size + 1)):
            if self._due[(decodes.iteration + ahead) % size]:
                return ahead
        return most

    def _advance(self, num_iterations: int, end_ns: int) -> None:
        for ahead in range(1, num_iterations):
            if self._step(ahead):
                raise InvariantViolation(f"lane {self.key}: no pages within a run")
        self.taken = self.decodes.pages_within(num_iterations)  # they have been
        super()._advance(num_iterations, end_ns)

    def _start_decoding(self, seq: Sequence) -> None:
        super()._start_decoding(seq)
        self._fresh.append(seq)
        for due in self._dues(seq):
            due[seq] = None

    def _withdraw(self, seq: Sequence) -> int:
        self._leave(seq)
        return super()._withdraw(seq)

    def _finish(self, seq: Sequence, pages: int, end_ns: int) -> None:
        self._leave(seq)
        super()._finish(seq, pages, end_ns)

    def _leave(self, seq: Sequence) -> None:
        if seq in self._fresh:
            self._fresh.remove(seq)
        for due in self._dues(seq):
            due.pop(seq, None)

    def _dues(self, seq: Sequence) -> list[dict[Sequence, None]]:
        """Its context is the counter less a constant, so the residues at which it steps are too."""
        context_at_0 = seq.prefill_tokens + 1 - seq.decode_since
        return [self._due[(step - context_at_0) % len(self._due)] for step in self._steps]
