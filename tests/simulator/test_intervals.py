"""Intervals of differences: they agree with scipy, and cover known differences as often as said."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from scipy.signal import lfilter

from simulator.comparison.intervals import (
    MEAN,
    P99,
    SUM,
    Floats,
    Interval,
    block_interval,
    block_length,
    longest_block,
    t_interval,
)

LEVEL = 0.95


def known(interval: Interval | None) -> Interval:
    assert interval is not None
    return interval


def autoregressive(rng: np.random.Generator, num: int, phi: float) -> Floats:
    """A stationary AR(1) of variance 1."""
    noise = rng.normal(size=num + 300)
    return np.asarray(lfilter([math.sqrt(1 - phi**2)], [1, -phi], noise)[300:])


def test_t_intervals_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    base, other = rng.normal(3, 1, 6), rng.normal(4, 2, 6)
    paired = stats.ttest_rel(other, base).confidence_interval(LEVEL)
    welch = stats.ttest_ind(other, base, equal_var=False).confidence_interval(LEVEL)
    found = known(t_interval(base, other, LEVEL, paired=True))
    assert (found.low, found.high) == pytest.approx((paired.low, paired.high), rel=1e-12)
    assert found.unpaired_width == pytest.approx(welch.high - welch.low, rel=1e-12)
    apart = known(t_interval(base, other[:4], LEVEL, paired=False))
    welch = stats.ttest_ind(other[:4], base, equal_var=False).confidence_interval(LEVEL)
    assert (apart.low, apart.high) == pytest.approx((welch.low, welch.high), rel=1e-12)
    assert math.isnan(apart.times_narrower)


@pytest.mark.parametrize("num_seeds", [2, 5])
def test_t_intervals_cover_a_known_difference_at_the_nominal_rate(num_seeds: int) -> None:
    rng, studies, difference = np.random.default_rng(1), 2000, 0.3
    hits = {True: 0, False: 0}
    narrower = []
    for _ in range(studies):
        luck = rng.normal(10, 1, num_seeds)  # what both arms share under a seed
        base = luck + rng.normal(0, 0.2, num_seeds)
        other = luck + difference + rng.normal(0, 0.3, num_seeds)
        strangers = rng.normal(10, 1.02, num_seeds) + difference
        paired = known(t_interval(base, other, LEVEL, paired=True))
        apart = known(t_interval(base, strangers, LEVEL, paired=False))
        hits[True] += paired.low <= difference <= paired.high
        hits[False] += apart.low <= difference <= apart.high
        narrower.append(paired.times_narrower)
    assert abs(hits[True] / studies - LEVEL) < 3 * math.sqrt(LEVEL * (1 - LEVEL) / studies)
    # Welch's approximation covers a little more of few values, most of two.
    assert LEVEL - 0.012 < hits[False] / studies < (LEVEL + 0.025 if num_seeds > 2 else 1.0)
    assert np.median(narrower) > (3 if num_seeds > 2 else 1)


def test_relative_intervals_cover_a_known_ratio_and_are_spared_the_luck_of_the_baseline() -> None:
    rng, studies, hits, narrower = np.random.default_rng(7), 2000, 0, []
    for _ in range(studies):
        luck = rng.lognormal(0, 0.5, 5)  # a heavy seed slows both arms by the same factor
        base = luck * rng.normal(1, 0.02, 5)
        other = 1.5 * luck * rng.normal(1, 0.02, 5)
        found = known(t_interval(base, other, LEVEL, paired=True, relative=True))
        plain = known(t_interval(base, other, LEVEL, paired=True))
        hits += found.low <= 0.5 <= found.high
        narrower.append((plain.high - plain.low) / base.mean() / (found.high - found.low))
    assert 0.92 < hits / studies < LEVEL + 0.012
    assert np.median(narrower) > 4


def test_a_relative_interval_is_the_linearised_ratio() -> None:
    rng = np.random.default_rng(8)
    base, other = rng.exponential(2, 3000), rng.exponential(3, 3000)
    ratio = other.mean() / base.mean()
    error = (other - ratio * base).std(ddof=1) / math.sqrt(3000) / base.mean()
    found = known(block_interval(base, other, MEAN, LEVEL, paired=True, relative=True))
    assert found.change == pytest.approx(ratio - 1)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.15)
    apart = known(t_interval(base, other[:2000], LEVEL, paired=False, relative=True))
    ratio = other[:2000].mean() / base.mean()
    parts = other[:2000].var(ddof=1) / 2000 + ratio**2 * base.var(ddof=1) / 3000
    reach = 1.96 * math.sqrt(parts) / base.mean()
    assert apart.high == pytest.approx(ratio - 1 + reach, rel=0.01)


def test_equal_values_differ_by_exactly_nothing() -> None:
    values = np.array([0.1, 0.7, 0.3])
    found = known(t_interval(values, values, LEVEL, paired=True))
    assert (found.change, found.low, found.high, found.excludes_zero) == (0, 0, 0, False)
    column = np.random.default_rng(0).exponential(size=200)
    for statistic in (MEAN, P99, SUM):
        found = known(block_interval(column, column, statistic, LEVEL, paired=True))
        assert (found.change, found.low, found.high) == (0, 0, 0)
    shifted = known(t_interval(values, values + 0.5, LEVEL, paired=True))
    assert shifted.low == pytest.approx(0.5)
    assert shifted.excludes_zero


def test_too_few_values_have_no_interval() -> None:
    one, few = np.array([1.0]), np.array([1.0, 2.0, 3.0])
    assert t_interval(one, one, LEVEL, paired=True) is None
    assert block_interval(few, few, MEAN, LEVEL, paired=True) is None
    nothing = np.full(100, np.nan)
    assert block_interval(nothing, nothing, P99, LEVEL, paired=True) is None


def test_of_independent_requests_blocks_are_a_t_interval() -> None:
    rng = np.random.default_rng(2)
    base = rng.exponential(size=2000)
    other = base + rng.normal(0.1, 0.3, 2000)
    found = known(block_interval(base, other, MEAN, LEVEL, paired=True))
    oracle = stats.ttest_rel(other, base).confidence_interval(LEVEL)
    assert found.block_requests < 8
    assert found.change == pytest.approx(float((other - base).mean()))
    assert found.high - found.low == pytest.approx(oracle.high - oracle.low, rel=0.1)
    again = block_interval(base, other, MEAN, LEVEL, paired=True)
    assert again == found


def test_of_requests_that_queue_together_blocks_cover_where_a_t_interval_does_not() -> None:
    rng, studies, difference = np.random.default_rng(3), 100, 0.5
    blocks = plain = 0
    for _ in range(studies):
        base = autoregressive(rng, 400, 0.8)
        other = base + difference + 0.5 * autoregressive(rng, 400, 0.8)
        found = known(block_interval(base, other, MEAN, LEVEL, paired=True))
        naive = known(t_interval(base, other, LEVEL, paired=True))
        blocks += found.low <= difference <= found.high
        plain += naive.low <= difference <= naive.high
    assert blocks / studies >= 0.85  # short of 95 %: 400 requests are about 20 blocks
    assert plain / studies < 0.65


def test_unpaired_blocks_cover_a_known_difference_of_tails() -> None:
    rng, studies = np.random.default_rng(4), 25
    difference = math.log(100)  # between the 99th percentiles of exponentials of mean 2 and 1
    hits = 0
    for _ in range(studies):
        base, other = rng.exponential(1, 1000), rng.exponential(2, 900)
        found = known(block_interval(base, other, P99, LEVEL, paired=False))
        hits += found.low <= difference <= found.high
        assert math.isnan(found.unpaired_width)
    assert 0.88 <= hits / studies


@pytest.mark.parametrize("phi", [0.5, 0.8])
def test_the_length_of_blocks_is_that_of_theory(phi: float) -> None:
    # Of an AR(1) the formula is closed: G = 2 phi / (1 - phi)^2, g = (1 + phi) / (1 - phi).
    num = 4000
    ideal = (1.5 * (2 * phi / (1 - phi**2)) ** 2 * num) ** (1 / 3)
    rng = np.random.default_rng(5)
    found = [block_length(autoregressive(rng, num, phi)) for _ in range(40)]
    assert np.mean(found) == pytest.approx(ideal, rel=0.15)
    assert block_length(np.ones(100)) == 1


def test_blocks_are_as_long_as_the_column_with_the_longest_memory_needs() -> None:
    rng = np.random.default_rng(9)
    load = autoregressive(rng, 1000, 0.9)
    noisy = load + 20 * rng.normal(size=1000)  # as E2E, which the lengths of answers drown
    assert block_length(noisy) < 10
    columns = [(noisy, noisy + load), (load, 2 * load)]
    assert longest_block(columns, paired=True) == block_length(load) > 20
    found = known(block_interval(noisy, 1.1 * noisy + load, MEAN, LEVEL, paired=True, length=50))
    assert found.block_requests == 50
    assert longest_block([(np.full(9, np.nan), np.full(9, np.nan))], paired=False) == 1


def test_statistics_leave_out_requests_without_a_value() -> None:
    rng = np.random.default_rng(6)
    base, other = rng.exponential(size=500), rng.exponential(size=500)
    base[::7] = np.nan
    other[::5] = np.nan
    mean = known(block_interval(base, other, MEAN, LEVEL, paired=False))
    assert mean.change == pytest.approx(np.nanmean(other) - np.nanmean(base))
    tail = known(block_interval(base, other, P99, LEVEL, paired=True))
    expected = np.nanpercentile(other, 99) - np.nanpercentile(base, 99)
    assert tail.change == pytest.approx(expected)
