"""Context switches by priority: who runs, what is copied, and which pages may be given out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.allocators import PrefixCaching
from simulator.clashes import refuse_clash
from simulator.costs.compiled import StageCost
from simulator.engine import run
from simulator.errors import ConfigError, InfeasiblePlan
from simulator.host_copies import HostCopies
from simulator.recorder import COMPLETED, REJECTED, Result
from simulator.request import RequestTable, Sequence
from simulator.routers.llumnix import Llumnix
from simulator.schedulers import FastSwitch, VllmV0
from simulator.schedulers.fastswitch import KEEPS
from simulator.setup import Setup
from simulator.switching import Flight, SwitchLane, conversations
from tests.simulator.draws import draw_table, pick
from tests.simulator.outcomes import BOOKED
from tests.simulator.toys import toy_setup, toy_table
from tests.simulator.watch import Audited, difference, flat_cost, run_audited

MS = 1_000_000
ITERATION = flat_cost(MS)
# A page is 2 copies of 1 ms and 2 MB at 1 GB/s: 4 ms one way.
SLOW = {"swap_copy_latency_s": 1e-3}


def switching(table: RequestTable, page_bytes: float = 2e6, **changes: Any) -> Setup:
    """A set-up whose host link moves 1 GB/s."""
    setup = toy_setup(table, **({"cost": ITERATION} | changes))
    kinds = tuple(replace(k, page_bytes=page_bytes, host_bytes_per_s=1e9) for k in setup.kinds)
    return replace(setup, kinds=kinds)


def columns(*rows: tuple[int, int, int], **more: Any) -> RequestTable:
    """Requests of (arrival in ms, prompt, output)."""
    arrival, prompt, output = (np.array(column) for column in zip(*rows, strict=True))
    return RequestTable(arrival_ns=arrival * MS, prompt_tokens=prompt, output_tokens=output, **more)


def first_before_second() -> int:
    """A seed under which conversation 1 goes before conversation 0 from the beginning."""
    scheduler = FastSwitch()
    return next(
        seed
        for seed in range(100)
        if replace(scheduler, priority_seed=seed).priority(1, 0)
        < replace(scheduler, priority_seed=seed).priority(0, 0)
    )


# --- closed forms -----------------------------------------------------------------------------


def test_lower_priority_leaves_and_comes_back_and_everybody_waits() -> None:
    """Request 0 has 9 pages of 12 when request 1 asks for 4: 36 ms out, later 36 ms in."""
    table = columns((0, 140, 40), (3, 60, 3))
    scheduler = FastSwitch(priority_seed=first_before_second(), watermark=0.0, **SLOW)
    result = run(switching(table, num_pages=12, scheduler=scheduler))
    assert result.preemptions.tolist() == [1, 0]
    # It leaves at 3 ms; the prompt's iteration begins when it has gone.
    assert result.first_token_ns[1] == (3 + 36 + 1) * MS
    assert result.finish_ns[1] == (40 + 2) * MS
    # 3 tokens before it left, 37 after, of which the first waits for 36 ms.
    assert result.finish_ns[0] == (42 + 36 + 37) * MS
    assert result.counters["swap_out_bytes"] == result.counters["swap_in_bytes"] == 18_000_000
    assert result.counters["swap_wait_ns"] == 72 * MS


def test_asynchronous_copies_let_others_decode() -> None:
    """Request 1 decodes through both copies of request 0, which would have held it up 72 ms."""
    table = columns((0, 140, 40), (0, 16, 60), (3, 120, 3))
    seed = next(
        seed
        for seed in range(1000)
        if FastSwitch(priority_seed=seed).priority(1, 0)
        < FastSwitch(priority_seed=seed).priority(2, 0)
        < FastSwitch(priority_seed=seed).priority(0, 0)
    )
    base = FastSwitch(priority_seed=seed, watermark=0.0, priority_frequency=1e-6, **SLOW)
    waits = run(switching(table, num_pages=17, scheduler=base))
    flies = run(switching(table, num_pages=17, scheduler=replace(base, asynchronous=True)))
    assert waits.finish_ns[1] - flies.finish_ns[1] == 72 * MS
    assert flies.counters["swap_wait_ns"] == 0
    assert flies.counters["swaps_async"] == 2


def test_second_switch_copies_only_what_is_new() -> None:
    copies = HostCopies(20, reuse=True)
    assert 10 == copies.put(7, 10, full_pages=9)
    copies.take(7)
    assert 9 == copies.valid(7)
    assert 3 == copies.put(7, 12, full_pages=12)
    assert 12 == copies.used_pages() == 20 - copies.free_pages


def test_kept_copies_give_way_and_are_contaminated_from_their_end() -> None:
    copies = HostCopies(20, reuse=True)
    copies.put(7, 12, 12)
    copies.take(7)
    assert 10 == copies.put(8, 10, 10)
    assert (10, 2) == (copies.valid(7), copies.contaminated)
    assert -1 == copies.put(9, 15, 15)  # the 10 that are somebody's only ones stay
    assert 10 == copies.used_pages()


def test_next_turn_brings_in_what_its_conversation_left_on_the_host() -> None:
    """Without the copy the second turn computes its 200 tokens; with it, what the copy lacks."""
    table = columns((0, 140, 40), (3, 80, 3), (3, 200, 5), parent=np.array([-1, -1, 0]))
    scheduler = FastSwitch(priority_seed=first_before_second(), watermark=0.0)
    plain = run(switching(table, num_pages=13, scheduler=scheduler))
    kept = run(switching(table, num_pages=13, scheduler=replace(scheduler, reuse=True)))
    assert 0 == plain.cached_tokens[2]
    pages_left = (140 + 2) // 16  # full ones when it was sent out
    assert pages_left * 16 == kept.cached_tokens[2]
    assert kept.counters["swap_in_bytes"] == (9 + pages_left) * 2_000_000


def test_without_host_memory_it_recomputes() -> None:
    table = columns((0, 140, 40), (3, 60, 3))
    scheduler = FastSwitch(priority_seed=first_before_second(), watermark=0.0, swap_pages=5)
    result = run(switching(table, num_pages=12, scheduler=scheduler))
    assert result.preemptions.tolist() == [1, 0]
    assert (1, 0) == (result.counters["swaps_recomputed"], result.counters["swap_out_bytes"])


def test_by_arrival_nobody_displaces_an_older_request() -> None:
    """Then what it does is vLLM's swapping, but for who is let in while somebody is out."""
    table = columns((0, 100, 40), (1, 100, 40))
    setup = switching(table, num_pages=200, scheduler=FastSwitch(priorities="arrival"))
    v0 = replace(setup, scheduler=VllmV0(preemption="swap"))
    assert difference(run(setup), run(v0)) == ""


def test_markov_keeps_priorities_as_often_as_it_says() -> None:
    random, markov = (FastSwitch(priorities=kind) for kind in ("random", "markov"))
    pairs = [(i, epoch) for i in range(200) for epoch in range(20)]
    kept = [markov.priority(i, e) == markov.priority(i, e + 1) for i, e in pairs]
    assert np.mean(kept) == pytest.approx(KEEPS, abs=0.02)
    assert not any(random.priority(i, e) == random.priority(i, e + 1) for i, e in pairs)
    drawn = [random.priority(i, e) for i, e in pairs]
    assert np.mean(drawn) == pytest.approx(0.5, abs=0.02)


# --- laws, over drawn set-ups -----------------------------------------------------------------


class CheckedLane(SwitchLane):
    """Checks that pages are released when their copy has ended, or its iteration waits for it."""

    __slots__ = ("ends", "starts")

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.ends: list[int] = []  # of copies whose pages the coming iteration may use

    def _left(self, flight: Flight) -> None:
        self.ends.append(flight.end_ns)
        super()._left(flight)

    def _run(self, seq: Sequence, pages: int) -> None:
        assert seq not in [flight.seq for flight in (*self._in, *self._out)]
        assert seq not in self.rank.running
        super()._run(seq, pages)

    def attention_form(self, stage: StageCost) -> list[int]:
        """What the iteration computes begins when all those copies have ended."""
        begins_ns = max(self.rank.now_ns, self._wait_ns)
        assert all(end_ns <= begins_ns for end_ns in self.ends)
        self.ends.clear()
        self.check_books()
        return super().attention_form(stage)

    def check_books(self) -> None:
        """Pages of the GPU are free, of who runs, or in flight; those of the host are one's own."""
        layout, allocator = self.rank.layout, self.allocator
        held = sum(flight.pages for flight in (*self._in, *self._out))
        for seq in self.rank.running:
            if seq in self.prefilling:
                held += seq.blocks
            else:
                held += layout.pages(self.decodes.context(seq) - 1)
        held += self.taken if self.granted else 0
        assert held == allocator.num_pages - allocator.free_pages
        copies = self.copies
        assert 0 <= copies.free_pages == copies.num_pages - copies.used_pages()
        leaving = {self.conversation(flight.seq) for flight in self._out}
        needed = leaving | {self.conversation(seq) for seq in self._away}
        assert needed == set(copies._needed)


def draw_switching(rng: np.random.Generator, scheduler: FastSwitch) -> Setup:
    table = draw_table(rng, False, False)
    ranks = pick(rng, (1, 1, 2))
    sizes = {"max_num_tokens": 512, "max_num_seqs": pick(rng, (2, 4, 16))}
    setup = switching(
        table,
        page_bytes=pick(rng, (1e4, 1e6, 1e7)),
        num_ranks=ranks,
        num_pages=pick(rng, (28, 32, 60)),
        cost=flat_cost(pick(rng, (MS, 5 * MS)), num_ranks=ranks, **sizes),
        scheduler=scheduler,
    )
    return replace(setup, plans_ahead=bool(rng.random() < 0.3))


def completes(result: Result) -> bool:
    return bool(np.isin(result.status, (COMPLETED, REJECTED)).all())


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(0, 10**6),
    st.sampled_from(("random", "markov", "arrival")),
    st.sampled_from((0.02, 0.2, 1.0)),
    st.booleans(),
    st.booleans(),
    st.sampled_from((0, 7, 40)),
    st.sampled_from((0.0, 1e-3)),
)
def test_no_page_is_lost_given_out_in_flight_or_waited_for_in_vain(
    number: int,
    priorities: str,
    frequency: float,
    asynchronous: bool,
    reuse: bool,
    swap_pages: int,
    latency_s: float,
) -> None:
    scheduler = FastSwitch(
        priorities=priorities,
        priority_frequency=frequency,
        priority_seed=number,
        asynchronous=asynchronous,
        reuse=reuse,
        swap_pages=swap_pages,
        swap_copy_latency_s=latency_s,
    )
    setup = draw_switching(np.random.default_rng(number), scheduler)
    audits: list[Audited] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simulator.switching.SwitchLane", CheckedLane)
        stepped = run_audited(replace(setup, coalesce=False), audits)
    assert completes(stepped)
    assert [(a.taken, a.free_pages) for a in audits] == [(0, a.num_pages) for a in audits]
    result = run(setup)
    assert difference(result, stepped, but=BOOKED) == ""
    assert result.counters == stepped.counters


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"router": Llumnix()}, "Llumnix and scheduler FastSwitch clash"),
        ({"allocator": PrefixCaching()}, "allocator paged"),
    ],
)
def test_what_it_cannot_switch_is_refused(changes: dict[str, Any], text: str) -> None:
    setup = toy_setup(toy_table(0, 3), scheduler=FastSwitch(), **changes)
    with pytest.raises(ConfigError, match=text):
        refuse_clash(setup)


def test_pipelines_are_infeasible() -> None:
    with pytest.raises(InfeasiblePlan, match=r"plan\.pp = 1"):
        refuse_clash(toy_setup(toy_table(0, 3), scheduler=FastSwitch(), num_lanes=2))


def test_a_turn_goes_on_only_where_its_prompt_holds_what_was_said() -> None:
    parent = np.array([-1, 0, 1, 1])
    table = columns((0, 10, 5), (0, 20, 5), (0, 25, 1), (0, 24, 1), parent=parent)
    assert [0, 0, 0, 3] == conversations(table)
    assert [] == conversations(toy_table(0, 3))
