"""Jenga's pages: sizes of the worked example, the ladder, eviction, and conservation at random."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.allocators.lcm import NEVER, LcmPool, Page
from simulator.errors import ConfigError

EXAMPLE = {"cross": 256, "self": 384}  # 128 bytes a layer and token: 2 cross and 3 self layers


def taken(pool: LcmPool, kind: str, request: int) -> Page:
    page = pool.take(kind, request)
    assert page is not None
    return page


def cache(pool: LcmPool, page: Page, time: int) -> None:
    """Give a page back whose content may be found again."""
    pool.name(page, (time, page.large.number))
    pool.give(page, (time, 0, 0))


def test_large_pages_are_the_least_common_multiple_of_the_example() -> None:
    pool = LcmPool(10_000, EXAMPLE)
    assert (768, 13, {"cross": 3, "self": 2}) == (pool.large_bytes, pool.num_large, pool.per_large)


def test_ladder_prefers_own_pages_then_new_ones_then_idle_ones_then_anybodys() -> None:
    pool = LcmPool(3 * 768, EXAMPLE)
    first = taken(pool, "cross", 1)
    assert taken(pool, "cross", 1).large is first.large  # its own
    second = taken(pool, "cross", 2)
    assert second.large is not first.large  # a new one, though the first has room
    third = taken(pool, "self", 3)
    cache(pool, third, 1)  # idle: it only caches
    assert (1, 1) == (pool.num_available, pool.num_idle)
    fourth = taken(pool, "self", 4)
    assert fourth.large.number == third.large.number
    assert (None, {}) == (third.key, pool.cached)
    anybodys = taken(pool, "cross", 5)
    assert anybodys.large in (first.large, second.large)


def test_a_pool_that_is_not_aware_of_requests_fills_what_is_open_first() -> None:
    pool = LcmPool(3 * 768, EXAMPLE, request_aware=False)
    assert taken(pool, "cross", 1).large is taken(pool, "cross", 2).large


def test_the_large_page_used_least_recently_is_evicted_first() -> None:
    pool = LcmPool(3 * 768, EXAMPLE)
    larges = []
    for request, time in enumerate((2, 1, 3)):
        page = taken(pool, "self", request)
        larges.append(page.large.number)
        cache(pool, page, time)
    evicted = [taken(pool, "cross", 10 + i).large.number for i in range(3)]
    assert evicted == [larges[1], larges[0], larges[2]]


def test_least_recently_used_cached_small_page_is_the_last_resort() -> None:
    pool = LcmPool(768, EXAMPLE)
    pages = [taken(pool, "cross", 1) for _ in range(3)]
    cache(pool, pages[0], 2)
    cache(pool, pages[1], 1)
    assert pages[1] is pool.take("cross", 2)
    assert pool.take("self", 2) is None
    assert [0, 1, 1] == [page.refs for page in pages]


def test_a_page_that_is_hit_is_not_evicted() -> None:
    pool = LcmPool(768, EXAMPLE)
    page = taken(pool, "self", 1)
    cache(pool, page, 1)
    pool.pin(page)
    pool.pin(page)
    pool.give(page, (2, 0, 0))
    assert pool.take("cross", 2) is None
    pool.give(page, (3, 0, 0))
    assert pool.take("cross", 2) is not None


def test_a_page_given_back_twice_is_refused() -> None:
    pool = LcmPool(768, EXAMPLE)
    page = taken(pool, "cross", 1)
    pool.give(page, NEVER)
    assert pool.num_available == 1
    with pytest.raises(ConfigError, match="is given twice"):
        pool.give(page, NEVER)


@settings(max_examples=80, deadline=None)
@given(
    aware=st.booleans(),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=3),
    steps=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=120),
)
def test_no_small_page_has_two_users_and_all_large_ones_come_back(
    aware: bool, sizes: list[int], steps: list[tuple[int, int]]
) -> None:
    small = {str(number): size for number, size in enumerate(sizes)}
    pool = LcmPool(2000, small, request_aware=aware)
    live: list[Page] = []
    for time, (action, choice) in enumerate(steps):
        kind = str(choice % len(sizes))
        if action < 2:
            roomy = pool.num_available > 0
            page = pool.take(kind, choice)
            if page is None:
                assert (pool.num_available, pool.spare[kind]) == (0, 0)
                continue
            assert page.large.kind == kind
            assert page not in live
            if aware and roomy:  # while room lasts, nobody else is in its large page
                assert page.large.owner == choice
            live.append(page)
        elif live:
            page = live.pop(choice % len(live))
            if action >= 3:
                pool.name(page, (action, choice))
            pool.give(page, (time, 0, -choice))
        elif pool.cached:
            page = next(iter(pool.cached.values()))
            pool.pin(page)
            live.append(page)
    larges = {page.large for page in live}
    assert pool.num_available + len(larges) == pool.num_large
    for name in small:
        spare = [len(x.pages) - x.num_used for x in larges if x.kind == name]
        assert pool.spare[name] == sum(spare)
    for page in live:
        pool.give(page, NEVER)
    assert pool.num_available == pool.num_large
    assert sum(pool.spare.values()) == 0
    assert all(page.key == key and page.refs == 0 for key, page in pool.cached.items())
