"""Jenga's pages: sizes of the worked example, the ladder, eviction, and conservation at random."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.allocators.lcm import CACHED, EMPTY, USED, LcmPool, Small
from simulator.errors import ConfigError

EXAMPLE = {"cross": 256, "self": 384}  # 128 bytes a layer and token: 2 cross and 3 self layers


def taken(pool: LcmPool, kind: str, request: int) -> Small:
    page = pool.take(kind, request)
    assert page is not None
    return page


def test_large_pages_are_the_least_common_multiple_of_the_example() -> None:
    pool = LcmPool(10_000, EXAMPLE)
    assert (768, 13, {"cross": 3, "self": 2}) == (pool.large_bytes, pool.num_large, pool.per_large)


def test_ladder_prefers_own_pages_then_new_ones_then_idle_ones_then_anybodys() -> None:
    pool = LcmPool(3 * 768, EXAMPLE)
    first = taken(pool, "cross", 1)
    assert taken(pool, "cross", 1)[0] is first[0]  # its own
    second = taken(pool, "cross", 2)
    assert second[0] is not first[0]  # a new one, though the first has room
    third = taken(pool, "self", 3)
    pool.give(third, keep=True)  # idle: it only caches
    fourth = taken(pool, "self", 4)
    assert fourth[0].number == third[0].number
    assert fourth[0] is not third[0]
    anybodys = taken(pool, "cross", 5)
    assert anybodys[0] in (first[0], second[0])


def test_least_recently_used_cached_small_page_is_the_last_resort() -> None:
    pool = LcmPool(768, EXAMPLE)
    pages = [taken(pool, "cross", 1) for _ in range(3)]
    pool.give(pages[0], keep=True)
    pool.give(pages[1], keep=True)
    pool.touch(pages[0])  # read again, so the other goes first
    assert pages[1] == pool.take("cross", 2)
    assert pool.take("self", 2) is None
    assert [CACHED, USED, USED] == pages[0][0].states


def test_a_page_given_back_twice_is_refused() -> None:
    pool = LcmPool(768, EXAMPLE)
    page = taken(pool, "cross", 1)
    pool.give(page)
    assert pool.num_free_large == 1
    with pytest.raises(ConfigError, match="given back twice"):
        pool.give(page)


@settings(max_examples=80, deadline=None)
@given(
    aware=st.booleans(),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=120),
)
def test_no_small_page_has_two_users_and_all_large_ones_come_back(
    aware: bool, sizes: list[int], steps: list[tuple[int, int]]
) -> None:
    small = {str(number): size for number, size in enumerate(sizes)}
    pool = LcmPool(2000, small, request_aware=aware)
    live: list[Small] = []
    for action, choice in steps:
        kind = str(choice % len(sizes))
        if action < 2:
            page = pool.take(kind, choice)
            if page is None:
                assert pool.num_free_large == 0
                continue
            assert page[0].kind == kind
            assert all(page[0] is not other[0] or page[1] != other[1] for other in live)
            live.append(page)
        elif live:
            pool.give(live.pop(choice % len(live)), keep=action == 3)
    for large, index in live:
        assert large.states[index] == USED
    for page in live:
        pool.give(page)
    cached = [large for carved in pool._carved.values() for large in carved]
    assert all(CACHED in large.states and USED not in large.states for large in cached)
    assert pool.num_free_large + len(cached) == pool.num_large
    assert all(
        (EMPTY in large.states) == any(large in owned for owned in pool._open[large.kind].values())
        for large in cached
    )
