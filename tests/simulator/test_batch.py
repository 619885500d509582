"""The decode calendar against a model that keeps every sequence by itself, token by token."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.batch import FOREVER, DecodeSet, PageLayout
from simulator.request import Sequence

LAYOUTS = (
    PageLayout(16),
    PageLayout(4),
    PageLayout(1),
    PageLayout(4, 2, ((10, 3),)),
    PageLayout(4, 0, ((8, 1),)),
    PageLayout(8, 1, ((5, 2), (40, 1))),
)
WINDOWS: tuple[tuple[int, ...], ...] = ((), (1,), (10,), (7, 40))


# --- page layouts -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("num_tokens", "pages"), [(0, 0), (1, 1), (15, 1), (16, 1), (17, 2), (160, 10), (161, 11)]
)
def test_full_attention_holds_a_page_for_each_begun_block(num_tokens: int, pages: int) -> None:
    assert PageLayout(16).pages(num_tokens) == pages
    assert PageLayout(16, 3).pages(num_tokens) == 3 * pages


@pytest.mark.parametrize(
    ("num_tokens", "pages"),
    [(0, 0), (16, 2), (17, 4), (48, 6), (49, 8), (64, 8), (65, 8), (999, 8)],
)
def test_a_window_holds_its_blocks_and_one_more_at_most(num_tokens: int, pages: int) -> None:
    """A window of 40 tokens: ceil(40 / 16) + 1 = 4 blocks of 2 pages."""
    assert PageLayout(16, 0, ((40, 2),)).pages(num_tokens) == pages


def test_groups_of_layers_add_up() -> None:
    layout = PageLayout(16, 1, ((40, 2), (16, 3)))
    assert layout.pages(100) == 7 + 2 * 4 + 3 * 2


# --- the calendar -------------------------------------------------------------------------------


@dataclass
class Naive:
    """One decoding sequence: the context its coming iteration reads, and the tokens it lacks."""

    seq: Sequence
    context: int
    lacks: int


@dataclass
class Model:
    """All of them, in the order they were added."""

    layout: PageLayout
    windows: tuple[int, ...]
    members: list[Naive] = field(default_factory=list)

    def pages_within(self, num_iterations: int) -> int:
        pages = self.layout.pages
        return sum(
            pages(m.context - 1 + num_iterations) - pages(m.context - 1) for m in self.members
        )

    def iterations_within(self, pages: int, most: int) -> int:
        fitting = [n for n in range(1, most + 1) if self.pages_within(n) <= pages]
        return max(fitting, default=0)

    def to_finish(self) -> int:
        return min(m.lacks for m in self.members)

    def advance(self, num_iterations: int) -> list[Sequence]:
        for member in self.members:
            member.context += num_iterations
            member.lacks -= num_iterations
        return [m.seq for m in self.members if m.lacks == 0]

    def forget(self, seq: Sequence) -> Naive:
        (gone,) = (m for m in self.members if m.seq is seq)
        self.members.remove(gone)
        return gone


class Twins:
    """A `DecodeSet` and the model, given the same sequences."""

    def __init__(self, layout: PageLayout, windows: tuple[int, ...]) -> None:
        self.decodes = DecodeSet(layout, windows)
        self.model = Model(layout, windows)
        self.num_added = 0
        self.num_finished = 0

    def add(self, prompt_tokens: int, output_tokens: int, generated_tokens: int) -> None:
        """`generated_tokens` > 1: it was preempted after some, and has recomputed them."""
        seq = Sequence(self.num_added, prompt_tokens, output_tokens + generated_tokens)
        self.num_added += 1
        seq.generated_tokens = generated_tokens
        seq.prefill_tokens = prompt_tokens + generated_tokens - 1
        self.decodes.add(seq)
        self.model.members.append(Naive(seq, seq.prefill_tokens + 1, output_tokens))

    def steady(self) -> int:
        """Iterations for which nobody finishes and nothing saturates."""
        return min(self.decodes.iterations_to_finish(), self.decodes.iterations_to_change())

    def advance(self, num_iterations: int) -> None:
        finished = self.decodes.advance(num_iterations) or []
        assert finished == self.model.advance(num_iterations)
        for seq in list(finished):
            self.num_finished += 1
            gone = self.model.forget(seq)
            assert self.decodes.drop(seq) == self.model.layout.pages(gone.context - 1)

    def remove(self, which: int) -> None:
        seq = self.model.members[which % len(self.model.members)].seq
        gone = self.model.forget(seq)
        assert self.decodes.remove(seq) == self.model.layout.pages(gone.context - 1)

    def check(self, pages: int) -> None:
        decodes, members = self.decodes, self.model.members
        assert decodes.num_seqs == len(members)
        assert decodes.kv_tokens == sum(m.context for m in members)
        assert decodes.new_pages() == self.model.pages_within(1)
        for total, window in zip(decodes.windows, self.model.windows, strict=True):
            assert total.tokens == sum(min(m.context, window) for m in members)
            assert total.growing == sum(m.context < window for m in members)
        for member in members:
            assert decodes.context(member.seq) == member.context
        if members and self.decodes.iteration % 3:  # else who has gone piles up unseen
            longest = max(m.context for m in members)
            assert decodes.spread_tokens() == sum(longest - m.context for m in members)
        if members:
            assert decodes.iterations_to_finish() == self.model.to_finish()
            self.check_ahead(pages)

    def check_ahead(self, pages: int) -> None:
        """What holds for as long as the batch is steady."""
        decodes, steady = self.decodes, self.steady()
        assert steady >= 1
        for num in {1, 2, 5, steady // 2, steady}:
            if 1 <= num <= steady:
                assert decodes.pages_within(num) == self.model.pages_within(num)
                expected = self.model.iterations_within(pages, num)
                assert decodes.iterations_within(pages, num) == expected


# add (prompt, output, generated), advance by a share of the steady run, or remove one
MOVES = st.one_of(
    st.tuples(st.just("add"), st.integers(1, 60), st.integers(1, 40), st.integers(1, 8)),
    st.tuples(st.just("advance"), st.integers(1, 4), st.just(0), st.just(0)),
    st.tuples(st.just("remove"), st.integers(0, 30), st.just(0), st.just(0)),
)


@settings(derandomize=True, deadline=None, max_examples=300, database=None)
@given(
    st.sampled_from(LAYOUTS),
    st.sampled_from(WINDOWS),
    st.lists(MOVES, min_size=5, max_size=60),
    st.integers(0, 30),
)
def test_decode_set_equals_a_model_that_keeps_every_sequence(
    layout: PageLayout,
    windows: tuple[int, ...],
    moves: list[tuple[str, int, int, int]],
    pages: int,
) -> None:
    twins = Twins(layout, windows)
    for kind, a, b, c in moves:
        if kind == "add":
            twins.add(a, b, c)
        elif kind == "advance" and twins.model.members:
            twins.advance(max(1, twins.steady() // a))
        elif kind == "remove" and twins.model.members:
            twins.remove(a)
        twins.check(pages)
    while twins.model.members:
        twins.advance(twins.steady())
        twins.check(pages)
    assert (twins.decodes.num_seqs, twins.decodes.kv_tokens, twins.decodes.new_pages()) == (0, 0, 0)


def test_sequences_finish_in_the_order_of_their_last_tokens_then_of_admission() -> None:
    decodes = DecodeSet(PageLayout(16))
    seqs = [Sequence(i, 10, output) for i, output in enumerate((6, 3, 6, 4))]
    for seq in seqs:
        seq.generated_tokens = 1
        decodes.add(seq)
    order = []
    while decodes.num_seqs:
        for seq in list(decodes.advance(decodes.iterations_to_finish()) or []):
            order.append((decodes.iteration, seq.id))
            decodes.drop(seq)
    assert order == [(2, 1), (3, 3), (5, 0), (5, 2)]


def test_a_removed_sequence_does_not_finish() -> None:
    decodes = DecodeSet(PageLayout(16))
    for i, output in enumerate((3, 5)):
        seq = Sequence(i, 10, output)
        seq.generated_tokens = 1
        decodes.add(seq)
        if i == 0:
            first = seq
    assert decodes.iterations_to_finish() == 2
    decodes.remove(first)
    assert decodes.iterations_to_finish() == 4
    assert decodes.advance(2) in (None, [])
    assert [seq.id for seq in decodes.advance(2) or []] == [1]


def test_a_batch_without_windows_never_changes() -> None:
    decodes = DecodeSet(PageLayout(16))
    decodes.add(Sequence(0, 10, 100))
    assert decodes.iterations_to_change() == FOREVER - decodes.iteration


def test_a_context_stops_growing_at_its_window() -> None:
    """Context 9 in a window of 12: three iterations later it reads 12, and 12 from then on."""
    decodes = DecodeSet(PageLayout(16), (12,))
    decodes.add(Sequence(0, 8, 100))
    (total,) = decodes.windows
    assert (total.tokens, total.growing, decodes.iterations_to_change()) == (9, 1, 3)
    decodes.advance(3)
    assert (total.tokens, total.growing) == (12, 0)
    decodes.advance(50)
    assert (total.tokens, decodes.kv_tokens) == (12, 62)
