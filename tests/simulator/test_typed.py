"""Pages by kind of layer: windows, hits that every kind has, waste, and the policies' own sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.allocators import (
    AllocatorPolicy,
    Hybrid,
    Jenga,
    MaxPage,
    Paged,
    Pool,
    StaticPartition,
    Uniform,
)
from simulator.allocators.lcm import Large, LcmPool
from simulator.allocators.prefix import PrefixIndex
from simulator.allocators.typed import Kind, TypedAllocator
from simulator.batch import PageLayout
from simulator.engine import run
from simulator.errors import ConfigError
from simulator.memory import KvType
from simulator.request import RequestTable, Sequence
from simulator.routers.llumnix import Llumnix
from simulator.setup import Setup
from tests.simulator.outcomes import BOOKED
from tests.simulator.toys import toy_cost, toy_setup, toy_table
from tests.simulator.watch import Planned, Watched, check_kinds, difference

BLOCK, WINDOW = 4, 10


def table(prompts: list[int], ids: list[list[int]]) -> RequestTable:
    return RequestTable(
        arrival_ns=np.zeros(len(prompts), dtype=np.int64),
        prompt_tokens=np.array(prompts),
        output_tokens=np.ones(len(prompts), dtype=np.int64),
        hash_ids=np.array([i for mine in ids for i in mine], dtype=np.int64),
        hash_offsets=np.cumsum([0, *map(len, ids)]),
        hash_block_tokens=BLOCK,
    )


def pool(requests: RequestTable, num_bytes: float = 4000.0, most: int = 64) -> Pool:
    """Two full layers and three with a window, a byte a token of each."""
    return Pool(
        num_pages=int(num_bytes // BLOCK),
        layout=PageLayout(BLOCK, 2, ((WINDOW, 3),)),
        table=requests,
        max_model_len=1000,
        types=(KvType(0, 2.0), KvType(WINDOW, 3.0)),
        num_bytes=num_bytes,
        max_num_tokens=most,
    )


def jenga(requests: RequestTable, **keys: object) -> TypedAllocator:
    made = Jenga(**keys).build(pool(requests))  # type: ignore[arg-type]
    assert isinstance(made, TypedAllocator)
    return made


def held(allocator: TypedAllocator, seq: Sequence) -> list[tuple[int, int]]:
    """First block and number of blocks, by kind."""
    mine = allocator.held[seq]
    return [(first, len(p)) for first, p in zip(mine.first, mine.pages, strict=True)]


def test_large_pages_hold_three_full_blocks_or_two_of_the_window() -> None:
    allocator = jenga(toy_table(0, 1))
    (space,) = allocator.pools
    assert {"full": 3, f"window {WINDOW}": 2} == space.per_large
    assert space.large_bytes == 24  # of 8 and 12


def test_a_window_holds_its_tokens_and_the_chunk_in_flight() -> None:
    """After 40 tokens the next query is at 40 and needs tokens from 31, in block 7."""
    allocator, seq = jenga(toy_table(0, 1)), Sequence(0, 64, 9)
    allocator.claim(seq, 0)
    assert allocator.grow([(seq, 40)]) == 0
    assert held(allocator, seq) == [(0, 10), (0, 10)]
    assert allocator.slide(seq, 40)
    assert held(allocator, seq) == [(0, 10), (7, 3)]
    assert allocator.grow([(seq, 60)]) == 0  # 20 more at once
    assert held(allocator, seq) == [(0, 15), (7, 8)]
    assert not allocator.slide(seq, 40)
    allocator.release(seq, 0)
    assert allocator.free_pages == allocator.num_pages


def test_a_prompt_in_one_piece_may_store_only_its_last_window() -> None:
    allocator, seq = jenga(toy_table(0, 1), store_chunks=False), Sequence(0, 40, 9)
    allocator.claim(seq, 0)
    allocator.begin(seq, 40)
    assert allocator.grow([(seq, 40)]) == 0
    assert held(allocator, seq) == [(0, 10), (7, 3)]


def test_growth_is_all_or_nothing_and_says_what_lacks() -> None:
    requests = toy_table(0, 1)
    allocator = Jenga().build(pool(requests, num_bytes=24 * 5))
    assert isinstance(allocator, TypedAllocator)
    one, two = Sequence(0, 12, 9), Sequence(1, 24, 9)
    for seq in (one, two):
        allocator.claim(seq, 0)
    assert allocator.grow([(one, 12)]) == 0  # 3 full blocks in 1 large page, 3 of the window in 2
    # Of 6 and 6 blocks one has a place beside those of the first: 2 and 3 large pages, 2 are left.
    assert allocator.grow([(two, 24)]) == 3
    assert held(allocator, two) == [(0, 0), (0, 0)]


# --- hits ---------------------------------------------------------------------------------------


def valid(kinds: list[tuple[int, set[int]]], blocks: int) -> int:
    """By the definition: the longest prefix of whole blocks of which every kind has its part."""

    def has(window: int, cached: set[int], length: int) -> bool:
        first = max(0, length * BLOCK - window + 1) // BLOCK if window else 0
        return all(block in cached for block in range(first, length))

    return max(n for n in range(blocks + 1) if all(has(w, cached, n) for w, cached in kinds))


@settings(max_examples=300, deadline=None)
@given(
    windows=st.lists(st.sampled_from((0, 1, 2, 4, 5, 9, 13, 100)), min_size=1, max_size=4),
    prompt=st.integers(1, 70),
    data=st.data(),
)
def test_a_hit_is_the_longest_prefix_that_every_kind_has(
    windows: list[int], prompt: int, data: st.DataObject
) -> None:
    blocks = -(-prompt // BLOCK)
    requests = table([prompt], [list(range(100, 100 + blocks))])
    space = LcmPool(10_000, {str(i): 1 for i in range(len(windows))})
    kinds = [Kind(str(i), window, space) for i, window in enumerate(windows)]
    allocator = TypedAllocator(kinds, BLOCK, PrefixIndex(requests, BLOCK))
    cached = []
    for number, kind in enumerate(kinds):
        mostly = data.draw(st.booleans())
        odd = data.draw(st.sets(st.integers(0, blocks - 1), max_size=blocks))
        here = set(range(blocks)) - odd if mostly else odd
        for block in sorted(here):
            page = space.take(kind.name, 1)
            assert page is not None
            space.name(page, (number, 100 + block, block))
        cached.append((kind.window, here))
    seq = Sequence(0, prompt, 1)
    usable = min(prompt // BLOCK, (prompt - 1) // BLOCK)
    tokens = allocator.match(seq)[0]
    assert tokens == valid(cached, usable) * BLOCK
    allocator.claim(seq, 0, tokens)
    for (window, _), (first, num) in zip(cached, held(allocator, seq), strict=True):
        assert first + num == tokens // BLOCK
        assert first == (max(0, tokens - window + 1) // BLOCK if window else 0)
    check_kinds_of_pinned(allocator, seq)


def check_kinds_of_pinned(allocator: TypedAllocator, seq: Sequence) -> None:
    """Pinned pages have one holder more than the one that cached them."""
    for pages in allocator.held[seq].pages:
        assert all(page.refs == 2 for page in pages)
    allocator.unclaim(seq)
    assert all(page.refs == 1 for p in allocator.pools for page in p.cached.values())


def test_what_follows_a_prompt_pushes_its_window_out_unless_kept_longer() -> None:
    """Two prompts share 32 tokens; the first decodes 9 tokens more, and memory is needed."""
    shared = list(range(8))
    for extra, hit in ((0, 0), (12, 32)):
        requests = table([33, 33], [[*shared, 50], [*shared, 60]])
        allocator = Jenga(window_extra=extra).build(pool(requests, num_bytes=24 * 14))
        assert isinstance(allocator, TypedAllocator)
        first = Sequence(0, 33, 20)
        allocator.claim(first, 0)
        assert allocator.grow([(first, 33)]) == 0
        allocator.computed(first, 33)
        for context in range(34, 43):
            allocator.slide(first, context - 1)
            assert allocator.grow([(first, context)]) == 0
        hog = Sequence(9, 8, 1)  # takes whatever is idle
        allocator._index = None
        allocator.claim(hog, 0)
        tokens = 4
        while not allocator.grow([(hog, tokens)]):
            tokens += 4
        allocator._index = PrefixIndex(requests, BLOCK)
        assert allocator.match(Sequence(1, 33, 1))[0] == hit


def test_aligned_eviction_takes_the_end_of_every_kind_and_one_queue_a_kind_at_a_time() -> None:
    """A prompt shorter than the window, then as much memory as half of it."""
    hits = {}
    for eviction in ("aligned", "queue"):
        requests = table([9, 9], [[1, 2, 3], [1, 2, 4]])
        made = Hybrid(eviction=eviction).build(
            replace(pool(requests), num_pages=10, layout=PageLayout(BLOCK, 1, ((WINDOW, 1),)))
        )
        assert isinstance(made, TypedAllocator)
        seq = Sequence(0, 9, 1)
        made.claim(seq, 0)
        assert made.grow([(seq, 9)]) == 0
        made.computed(seq, 9)
        made.release(seq, 0)
        made.claim(Sequence(0, 9, 1), 0)  # else a hit must leave room for the whole prompt
        for _ in range(8):  # 6 free, then 2 of the 4 that are cached
            assert made.pools[0].take("full 0", 7) is not None
        hits[eviction] = made.match(Sequence(1, 9, 1))[0]
    assert hits == {"aligned": 4, "queue": 0}


# --- policies -----------------------------------------------------------------------------------


def test_policies_lay_out_the_same_memory_differently() -> None:
    """20 tokens of 2 full and 3 window layers: 5 blocks each before anything slides."""
    sizes = {}
    for policy in (Jenga(), MaxPage(), StaticPartition(), Hybrid()):
        allocator = policy.build(pool(toy_table(0, 1)))
        assert isinstance(allocator, TypedAllocator)
        seq = Sequence(0, 20, 1)
        allocator.claim(seq, 0)
        assert allocator.grow([(seq, 20)]) == 0
        per_page = min(p.large_bytes for p in allocator.pools)
        if isinstance(policy, Hybrid):
            per_page = BLOCK  # its pages are counted, each of a block of one layer here
        sizes[type(policy).__name__] = (allocator.num_pages - allocator.free_pages) * per_page
    # LCM: 2 and 3 large pages of 24; padded: 10 pages of 12; a share each: 5 x 8 + 5 x 12, counted
    # in pages of 8; groups: 5 x 5 pages of a layer.
    assert sizes == {"Jenga": 120, "MaxPage": 120, "StaticPartition": 96, "Hybrid": 100}


def test_a_static_partition_gives_a_window_half_its_weight() -> None:
    allocator = StaticPartition().build(pool(toy_table(0, 1), num_bytes=3500.0))
    assert isinstance(allocator, TypedAllocator)
    assert [250, 125] == [p.num_large for p in allocator.pools]  # 2 : 1.5 of 3,500 bytes


def test_uniform_pages_hold_all_layers() -> None:
    assert Uniform().build(pool(toy_table(0, 1))).num_pages == 4000 // 20


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Jenga(eviction="lru"), r"allocator\.eviction: expected aligned or queue"),
        (lambda: Hybrid(window_extra=-1), r"allocator\.window_extra: expected an int >= 0"),
        (lambda: StaticPartition(window_weight=0.0), r"window_weight: expected a number > 0"),
    ],
)
def test_settings_that_have_no_meaning_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]


def test_a_router_that_moves_requests_is_refused() -> None:
    setup = served(router=Llumnix())
    with pytest.raises(ConfigError, match="router Llumnix and allocator Jenga clash"):
        run(setup)


# --- served -------------------------------------------------------------------------------------


def served(**changes: Any) -> Setup:
    usual: dict[str, Any] = {
        "num_pages": 90,
        "window_pages": ((50, 2),),
        "cost": toy_cost(windows=(0, 50)),
        "allocator": Jenga(),
    }
    return toy_setup(toy_table(3, 60, most_prompt=280), **(usual | changes))


def test_more_decode_together_where_windows_are_freed() -> None:
    """Of the same memory, LCM pages let more requests in than pages of all layers."""
    ends = {
        type(policy).__name__: run(served(allocator=policy)).end_ns
        for policy in (Jenga(), Uniform(), MaxPage())
    }
    assert ends["Jenga"] < ends["MaxPage"] < ends["Uniform"]


@pytest.mark.parametrize("aware", [True, False])
def test_requests_share_large_pages_only_where_the_pool_is_not_aware_of_them(aware: bool) -> None:
    most = 0

    def note(plan: Planned, lane: Any) -> None:
        nonlocal most
        holders: dict[Large, set[Sequence]] = {}
        for seq, mine in lane.allocator.held.items():
            for page in (page for pages in mine.pages for page in pages):
                holders.setdefault(page.large, set()).add(seq)
        most = max((most, *map(len, holders.values())))

    setup = served(
        num_pages=3000,
        window_pages=((50, 5),),
        allocator=Jenga(request_aware=aware),
        coalesce=False,
    )
    run(replace(setup, scheduler=Watched(setup.scheduler, note)))
    assert most == 1 if aware else most > 1


def test_one_request_alone_that_lies_scattered_is_moved_together() -> None:
    """Its pages were taken beside another's, who has left; a new large page must come of it."""
    allocator = Jenga().build(pool(toy_table(0, 2), num_bytes=24 * 4))
    assert isinstance(allocator, TypedAllocator)
    first, second = Sequence(0, 8, 9), Sequence(1, 8, 9)
    for seq in (first, second):
        allocator.claim(seq, 0)
    steps = ((first, 4), (second, 4), (first, 8), (second, 8))
    assert [allocator.grow([step]) for step in steps] == [0, 0, 0, 0]
    assert allocator.free_pages == 0
    allocator.release(first, 0)
    before = allocator.free_pages
    allocator.compact(second)
    assert allocator.counters == {"compactions": 1}
    assert held(allocator, second) == [(0, 2), (0, 2)]
    assert allocator.free_pages >= before == 2
    assert check_kinds(allocator) == 2


@pytest.mark.parametrize("policy", [Jenga(), MaxPage(), StaticPartition(), Hybrid(), Uniform()])
def test_where_all_layers_are_alike_pages_by_kind_are_plain_pages(policy: AllocatorPolicy) -> None:
    for seed, lanes in ((1, 1), (2, 2)):
        requests = toy_table(seed, 80, rate=60, most_output=60)
        setup = toy_setup(requests, num_pages=60, num_lanes=lanes, allocator=Paged())
        plain, typed = run(setup), run(replace(setup, allocator=policy))
        assert plain.preemptions.sum() > 0
        assert difference(plain, typed, but=BOOKED) == ""
