"""Reservation: buddy and fitting spaces against slow models of themselves, and who is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.allocators import Buddy, Pool, PrefixCaching, Reserved
from simulator.allocators.reserved import AnywhereSpace, BuddySpace, FitSpace, buddy_order
from simulator.allocators.vattention import MappedAllocator
from simulator.batch import PageLayout
from simulator.engine import run
from simulator.errors import ConfigError
from simulator.fragmentation import PARTS, fragmentation, kv_parts
from simulator.recorder import REJECTED
from simulator.request import Sequence
from simulator.schedulers import Orca, Static
from tests.simulator.toys import toy_cost, toy_setup, toy_table

MAKE = {
    "buddy": BuddySpace,
    "first": FitSpace,
    "best": lambda n: FitSpace(n, best=True),
    "anywhere": AnywhereSpace,
}
steps = st.lists(st.tuples(st.booleans(), st.integers(1, 40)), max_size=60)


@pytest.mark.parametrize("kind", ["buddy", "first", "best"])
@settings(max_examples=60, deadline=None)
@given(pool=st.integers(1, 200), steps=steps)
def test_pieces_never_overlap_and_everything_comes_back(
    kind: str, pool: int, steps: list[tuple[bool, int]]
) -> None:
    space, owner, live = MAKE[kind](pool), np.zeros(pool, dtype=np.int64), []
    for number, (takes, size) in enumerate(steps, start=1):
        size = 1 << buddy_order(size) if kind == "buddy" else size
        if takes and space.has(size):
            place = space.take(size)
            assert not owner[place : place + size].any()
            assert place + size <= pool
            assert kind != "buddy" or place % size == 0
            owner[place : place + size] = number
            live.append((place, size))
        elif takes and kind != "buddy":
            holes = "".join("x" if used else "." for used in owner)
            assert "." * size not in holes
        elif live:
            place, size = live.pop(size % len(live))
            owner[place : place + size] = 0
            space.give(place, size)
    for place, size in live:
        space.give(place, size)
    for bit in reversed(range(pool.bit_length())):  # merged again: all its powers of two at once
        if kind == "buddy" and pool >> bit & 1:
            assert space.has(1 << bit)
            space.take(1 << bit)
    assert kind == "buddy" or space.has(pool)


def test_best_fit_takes_the_smallest_hole_and_first_fit_the_first() -> None:
    places = {}
    for kind in ("first", "best"):
        space = MAKE[kind](100)
        taken = [space.take(size) for size in (30, 10, 5, 10)]
        assert taken == [0, 30, 40, 45]
        space.give(0, 30)
        space.give(40, 5)
        places[kind] = space.take(5)
    assert {"first": 0, "best": 40} == places


@pytest.mark.parametrize(
    ("policy", "pages"),
    [
        (Buddy(reserve="max"), [128, 128, 128]),
        (Buddy(reserve="pow2"), [2, 16, 128]),
        (Buddy(reserve="oracle"), [2, 16, 128]),
        (Reserved(reserve="max"), [128, 128, 128]),
        (Reserved(reserve="pow2"), [2, 15, 127]),
        (Reserved(reserve="oracle"), [2, 13, 122]),
    ],
)
def test_pages_set_aside(policy: Buddy | Reserved, pages: list[int]) -> None:
    """Blocks of 16; prompts 10, 100 and 1,000; outputs 12, 100 and 950; contexts up to 2,048."""
    table = toy_table(0, 3)
    object.__setattr__(table, "prompt_tokens", np.array([10, 100, 1000]))
    object.__setattr__(table, "output_tokens", np.array([12, 100, 950]))
    pool = Pool(num_pages=983, layout=PageLayout(16), table=table, max_model_len=2048)
    assert pages == policy.reserved_pages(pool).tolist()


def test_a_request_no_empty_pool_has_a_place_for_is_rejected() -> None:
    """24 pages hold pieces of 16 and 8: what needs 17 to 24 pages fits the pool and no piece."""
    table = toy_table(1, 40, most_prompt=380, most_output=4)
    setup = toy_setup(table, num_pages=24, allocator=Buddy(reserve="oracle"), scheduler=Orca())
    result = run(setup)
    total = table.prompt_tokens + table.output_tokens
    assert np.array_equal(result.status == REJECTED, total > 16 * 16)
    assert (result.status == REJECTED).sum() > 5


@pytest.mark.parametrize("allocator", [None, Buddy(), Reserved(reserve="oracle")])
def test_parts_of_the_pool_add_up_to_it_at_every_moment(allocator: Buddy | None) -> None:
    table = toy_table(2, 80, rate=60)
    setup = toy_setup(
        table, num_pages=160, max_model_len=512, allocator=allocator, scheduler=Orca()
    )
    result = run(setup)
    moments = np.linspace(0, result.end_ns, 200).astype(np.int64)
    parts = fragmentation(result, moments)
    shares = np.array([getattr(parts, name) for name in PARTS])
    assert np.allclose(shares.sum(axis=0), 1)
    assert (shares > -1e-9).all()
    if allocator is None:
        assert parts.means()["reserved"] == 0
        assert 0 < parts.means()["internal"] < parts.means()["used"]
    else:
        assert parts.means()["reserved"] > 0


@pytest.mark.parametrize("allocator", [None, Buddy(), Reserved(reserve="oracle")])
def test_parts_of_any_run_are_those_of_its_allocator(allocator: Buddy | None) -> None:
    """Enough pages, no shared prefix: here both ways of counting must agree."""
    setup = toy_setup(
        toy_table(2, 80, rate=20), num_pages=2000, max_model_len=512, allocator=allocator
    )
    if allocator is not None:
        setup = replace(setup, scheduler=Orca())
    result = run(setup)
    assert not result.preemptions.any()
    moments = np.linspace(0, result.end_ns, 200).astype(np.int64)
    exact, found = fragmentation(result, moments).means(), kv_parts(result, moments).means()
    assert sum(found.values()) == pytest.approx(1)
    for name in ("used", "reserved", "internal"):
        assert exact[name] == pytest.approx(found[name], abs=2e-3), name
    if allocator is None:
        assert 0 == found["external"]
        assert 0 < found["internal"] < found["used"]


@pytest.mark.parametrize("kind", ["preempting", "cut", "windowed", "shared"])
def test_parts_of_runs_that_the_papers_figure_does_not_cover(kind: str) -> None:
    setup = toy_setup(toy_table(5, 80, rate=160), num_pages=60)
    if kind == "cut":
        setup = replace(setup, horizon_ns=900_000_000)
    elif kind == "windowed":
        costs = toy_cost(windows=(64,))
        setup = toy_setup(setup.table, num_pages=180, window_pages=((64, 2),), cost=costs)
    elif kind == "shared":  # one prompt of 256 tokens, in 16 pages, for everybody
        table = replace(
            setup.table,
            prompt_tokens=np.full(80, 256),
            hash_ids=np.tile(np.arange(16), 80),
            hash_offsets=np.arange(81) * 16,
            hash_block_tokens=16,
        )
        setup = toy_setup(table, num_pages=100, allocator=PrefixCaching())
    result = run(setup)
    moments = np.linspace(0, result.end_ns, 300).astype(np.int64)
    parts = kv_parts(result, moments)
    shares = np.array([getattr(parts, name) for name in PARTS])
    assert np.allclose(shares.sum(axis=0), 1)
    assert (shares >= 0).all()
    assert 0.7 < parts.used.max() <= 1
    if kind == "shared":  # counted request by request they would not fit
        assert result.cached_tokens.any()
        assert fragmentation(result, moments).used.max() > 1
    if kind == "windowed":
        assert 0 == parts.internal.max()


def test_policies_that_make_no_sense_together_are_refused_by_name() -> None:
    setup = toy_setup(toy_table(0, 3), scheduler=Static())
    with pytest.raises(ConfigError, match=r"scheduler Static and allocator Paged clash: .*reserve"):
        run(setup)
    run(replace(setup, allocator=Reserved(reserve="max"), max_model_len=450))


@settings(max_examples=60, deadline=None)
@given(defers=st.booleans(), steps=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 3))))
def test_mapped_pages_cover_what_is_needed_and_never_exceed_the_pool(
    defers: bool, steps: list[tuple[int, int]]
) -> None:
    pool, block = 24, 16
    allocator = MappedAllocator(pool, block, defers)
    held: dict[int, tuple[Sequence, int]] = {}
    for number, growth in steps:
        if number in held and growth == 0:
            seq, pages = held.pop(number)
            allocator.release(seq, pages)
        elif growth and growth <= allocator.free_pages:
            if number not in held:
                held[number] = (Sequence(number, growth * block, 1), 0)
                allocator.claim(held[number][0], 0)
            seq, pages = held[number]
            allocator.take(growth)
            before = allocator._slots[seq].mapped
            assert max(0, pages + growth - before) == allocator.map(seq, pages + growth)
            held[number] = (seq, pages + growth)
        mapped = {seq: slot.mapped for seq, slot in allocator._slots.items()}
        assert all(mapped[seq] >= pages for seq, pages in held.values())
        assert sum(mapped.values()) + sum(allocator._idle) == allocator._num_mapped <= pool
        assert defers or not allocator._idle
    assert allocator.free_pages == pool - sum(pages for _, pages in held.values())


def test_a_slot_that_stays_mapped_costs_the_next_request_nothing() -> None:
    allocator = MappedAllocator(100, 16)
    maps = []
    for number in range(3):
        seq = Sequence(number, 160, 5)
        allocator.claim(seq, 0)
        allocator.take(10)
        maps.append(allocator.map(seq, 10))
        allocator.release(seq, 10)
    assert [10, 0, 0] == maps
    assert {"pages_mapped": 10, "slots_given": 3} == allocator.counters
