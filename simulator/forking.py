"""A lane whose sequences fork at the end of their prompt: vLLM V0's sequence groups.

The sequences of a request share its blocks by reference count and copy a shared one before they
write into it. They are admitted and preempted together; a group's KV goes to the host, whatever
befalls single sequences, and where the host has no room its sequences are recomputed one by one,
sharing nothing from then on (vLLM gives up there).
"""

from __future__ import annotations

from collections.abc import Callable

from simulator.costs.compiled import CompiledCost, StageCost, to_ticks
from simulator.lane import Lane
from simulator.lanes import SwapLane
from simulator.rank import Rank
from simulator.recorder import LaneLog
from simulator.request import Sequence
from simulator.samples import Families
from simulator.sharing import BeamTree, Samples

Group = Samples | BeamTree


class ForkLane(SwapLane):
    """Sequences of one rank that iterate together, some of which share blocks."""

    __slots__ = (
        "_asleep",
        "_copied",
        "_families",
        "_groups",
        "_noted",
        "_saved",
        "_searches",
        "_writers",
        "copy_s",
        "swaps_single",
    )  # fmt: skip

    def __init__(
        self, key: int, rank: Rank, cost: CompiledCost, log: LaneLog, families: Families
    ) -> None:
        super().__init__(key, rank, cost, log)
        self._families = families
        self._groups: dict[Sequence, Group] = {}
        self._asleep: dict[Sequence, tuple[Group, list[Sequence]]] = {}  # by the first of a group
        self._writers: dict[Group, None] = {}  # whose coming token goes into a shared block
        self._searches: dict[BeamTree, None] = {}  # that decode
        self._copied = 0  # pages, for the coming iteration
        self._saved = 0  # pages that sharing saves now
        self._noted = 0  # that when the plan was made
        self.copy_s: Callable[[int], float] = lambda num_pages: 0.0
        self.swaps_single = False  # else a sequence alone is recomputed

    # --- what a scheduler sees and does -------------------------------------------------------

    def admit(
        self,
        seq: Sequence,
        cached_tokens: int,
        num_tokens: int,
        reserve: bool,
        spare_pages: int = 0,
    ) -> bool:
        more = self._families.num_more(seq)
        if self.num_running + 1 + more > self.max_num_seqs:
            self.rank.blocked = True
            return False
        if not super().admit(seq, cached_tokens, num_tokens, reserve, spare_pages):
            return False
        self.rank.incoming += more
        return True

    def decode(self) -> int:
        if not self._writers:
            return super().decode()
        copies = self._pages(sum(group.copies for group in self._writers))
        lacking = self.decodes.new_pages() + copies - self.allocator.free_pages
        if lacking > 0:
            return lacking
        self.allocator.take(copies)
        self._copied += copies
        for group in self._writers:
            self._change(group, group.write)
        self._writers.clear()
        return super().decode()

    def _pages(self, num_blocks: int) -> int:
        return num_blocks * self.rank.layout.full

    def _change(self, group: Group, act: Callable[[], object]) -> None:
        before = group.saved
        act()
        self._saved += self._pages(group.saved - before)

    def _left(self, seq: Sequence, pages: int) -> int:
        """`seq` leaves its group with so many pages; returns those that nobody else refers to."""
        group, full = self._groups[seq], self.rank.layout.full
        before = group.saved
        freed = group.leave(seq, pages // full) * full
        self._saved += self._pages(group.saved - before)
        if not group.members:
            self._writers.pop(group, None)
            self._searches.pop(group, None)  # type: ignore[arg-type]
        return freed

    # --- preemption ---------------------------------------------------------------------------

    def evict(self, seq: Sequence) -> None:
        group = self._groups.get(seq)
        if group is None:
            chunks, ending = self.chunks, self.chunks.ending
            more = self._families.num_more(seq) if seq in self.prefilling else 0
            self.rank.incoming -= more
            (SwapLane if self.swaps_single else Lane).evict(self, seq)
            if chunks.ending < ending:
                chunks.ending -= more
            return
        members, free = list(group.members), self.allocator.free_pages
        for member in reversed(members):
            Lane.evict(self, member)
            del self._groups[member]
        pages = self.allocator.free_pages - free
        if pages > self._room:
            self.rank.outstanding_tokens += (len(members) - 1) * seq.prompt_tokens
            return
        for _ in members:
            self.waiting.popleft()
        self._asleep[members[0]] = group, members
        self._put_away(members[0], pages)

    def _withdraw(self, seq: Sequence) -> int:
        pages = super()._withdraw(seq)
        return self._left(seq, pages) if seq in self._groups else pages

    def swap_in(self, spare_pages: int) -> None:
        copies = sum(group.copies for group in self._writers)
        super().swap_in(spare_pages + self._pages(copies))

    def _needs(self, seq: Sequence, pages: int) -> tuple[int, int]:
        if seq not in self._asleep:
            return super()._needs(seq, pages)
        group, members = self._asleep[seq]
        count = self.rank.layout.pages
        grow = [count(m.prefill_tokens) - count(m.prefill_tokens - 1) for m in members]
        copies = group.copies_of(len(members))
        return len(members), pages + sum(grow) + self._pages(copies)

    def _resume(self, seq: Sequence, pages: int) -> None:
        if seq not in self._asleep:
            super()._resume(seq, pages)
            return
        group, members = self._asleep.pop(seq)
        self.allocator.take(pages)
        for member in members:
            self._rejoin(member, pages)
            self._groups[member] = group
        self._change(group, lambda: group.members.extend(members))
        self._decodes(group)

    # --- what the replica does ----------------------------------------------------------------

    def _compute(self, seq: Sequence, num_tokens: int, num_pages: int) -> None:
        chunks, ending = self.chunks, self.chunks.ending
        super()._compute(seq, num_tokens, num_pages)
        if chunks.ending > ending:  # a prompt that ends samples a token for each sequence
            chunks.ending += self._families.num_more(seq)

    def planned(self, claim: int, arrivals_wait: bool) -> None:
        super().planned(claim, arrivals_wait)
        self._noted = self._saved

    def look(self) -> None:
        super().look()
        self._noted = self._saved

    def _repeats(self, claim: int) -> int:
        """An iteration that copies has a price of its own; beams choose after every one."""
        return 1 if self._copied or self._searches else super()._repeats(claim)

    def attention_form(self, stage: StageCost) -> list[int]:
        price, growth = super().attention_form(stage)
        return [price + to_ticks(self.copy_s(self._copied)), growth]

    def _book(self, end_ns: int) -> None:
        self._copied = 0
        super()._book(end_ns)

    def _log_segment(self, num_iterations: int, start_ns: int) -> None:
        super()._log_segment(num_iterations, start_ns)
        self.log.saved_pages.append(self._noted)

    def _advance(self, num_iterations: int, end_ns: int) -> None:
        super()._advance(num_iterations, end_ns)
        for search in self._searches:
            before = search.saved
            freed = self._pages(search.step())
            self._saved += self._pages(search.saved - before)
            self.allocator.release(search.members[0], freed)
            if freed:
                self.rank.blocked = False
            self._writers[search] = None

    def _end_prompt(self, seq: Sequence, end_ns: int) -> None:
        more = self._families.num_more(seq)
        if not more:
            super()._end_prompt(seq, end_ns)
            return
        rank, siblings = self.rank, self._families.fork(seq)
        rank.incoming -= more
        for sibling in siblings:
            rank.running[sibling] = None
            self.prefilling.append(sibling)
            rank.recorder.scheduled_ns[sibling.id] = rank.recorder.scheduled_ns[seq.id]
        group = self._group([seq, *siblings])
        self._saved += self._pages(group.saved)
        for member in list(group.members):
            self._groups[member] = group
        for member in (seq, *siblings):
            super()._end_prompt(member, end_ns)
        if group.members:
            self._decodes(group)

    def _group(self, members: list[Sequence]) -> Group:
        block, beams = self.rank.layout.block_tokens, self._families.table.beams
        if beams is None:
            return Samples(members, block)
        first = members[0]
        return BeamTree(members, block, beams.parents(first.id, first.output_tokens, len(members)))

    def _decodes(self, group: Group) -> None:
        if isinstance(group, BeamTree):
            self._searches[group] = None
            self._writers[group] = None
        elif group.unwritten:
            self._writers[group] = None

    def _finish(self, seq: Sequence, pages: int, end_ns: int) -> None:
        if seq in self._groups:
            pages = self._left(seq, pages)
            group = self._groups.pop(seq)
            if group.members:  # the prompt counts once
                self.rank.outstanding_tokens += seq.prompt_tokens
        super()._finish(seq, pages, end_ns)
