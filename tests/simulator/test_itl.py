"""Inter-token gaps from iteration ranges equal those of a token-by-token reconstruction."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.itl import percentile_name, statistics, token_log, token_times
from simulator.recorder import REJECTED, UNFINISHED
from tests.simulator.logs import MS, by_hand, draw, ints

PERCENTILES = (0, 1, 25, 50, 75, 90, 95, 99, 99.9, 100)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_requests=st.integers(1, 12),
    num_lanes=st.integers(1, 3),
    length=st.integers(1, 30),
)
def test_pooled_gaps_equal_token_by_token_reconstruction(
    seed: int, num_requests: int, num_lanes: int, length: int
) -> None:
    drawn = draw(np.random.default_rng(seed), num_requests, num_lanes, length)
    values, counts = token_log(drawn.result).gaps()
    expected = sorted(gap for times in drawn.token_ns for gap in np.diff(times).tolist())
    assert expected == sorted(np.repeat(values, counts).tolist())


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), length=st.integers(1, 30))
def test_statistics_of_pooled_gaps_are_numpys_on_the_expanded_array(seed: int, length: int) -> None:
    drawn = draw(np.random.default_rng(seed), 8, 2, length)
    values, counts = token_log(drawn.result).gaps()
    gaps_s = [gap / 1e9 for times in drawn.token_ns for gap in np.diff(times).tolist()]
    found = statistics(values / 1e9, PERCENTILES, counts)
    if not gaps_s:
        assert all(np.isnan(value) for value in found.values())
        return
    assert found["mean"] == pytest.approx(np.mean(gaps_s))
    assert found["std"] == pytest.approx(np.std(gaps_s), abs=1e-12)
    assert found["median"] == np.percentile(gaps_s, 50)
    for percentile in PERCENTILES:
        assert found[percentile_name(percentile)] == np.percentile(gaps_s, percentile)


@settings(deadline=None)
@given(
    values=st.lists(st.floats(0, 1e3), min_size=1, max_size=40),
    percentile=st.floats(0, 100),
    data=st.data(),
)
def test_weighted_percentile_equals_numpy_bit_for_bit(
    values: list[float], percentile: float, data: st.DataObject
) -> None:
    size = len(values)
    counts = data.draw(st.lists(st.integers(1, 9), min_size=size, max_size=size))
    expanded = np.repeat(values, counts)
    found = statistics(np.array(values), (percentile,), ints(*counts))
    assert np.percentile(expanded, percentile) == found[percentile_name(percentile)]


def test_gap_across_a_preemption_joins_the_spans_of_one_request() -> None:
    log = token_log(by_hand())
    request, gap_ns = log.resumptions()
    values, counts = log.gaps()
    assert list(zip(request.tolist(), gap_ns.tolist(), strict=True)) == [(1, 20 * MS)]
    assert sorted(np.repeat(values, counts).tolist()) == [10 * MS] * 4 + [20 * MS]


def test_weight_of_a_gap_is_the_decodes_of_its_iteration() -> None:
    drawn = draw(np.random.default_rng(3), 20, 2, 50)
    log = token_log(drawn.result)
    decodes = np.concatenate([lane.segments["num_decode"] for lane in drawn.result.lanes])
    sampled = np.concatenate([lane.segments["sampled"] for lane in drawn.result.lanes])
    _, resumed = log.resumptions()
    assert decodes.sum() == log.gaps()[1].sum() - len(resumed)
    assert sampled.tolist() == log.tokens_per_iteration().tolist()


def test_token_times_are_looked_up_for_each_request() -> None:
    drawn = draw(np.random.default_rng(5), 20, 3, 40)
    found = [times.tolist() for times in token_times(token_log(drawn.result), 20)]
    assert drawn.token_ns == found


def test_tokens_of_requests_that_did_not_complete_do_not_count() -> None:
    result = by_hand()
    result.status[1] = UNFINISHED
    log = token_log(result)
    values, counts = log.gaps()
    assert np.repeat(values, counts).tolist() == [10 * MS, 10 * MS]
    assert log.tokens_per_iteration().tolist() == [1, 1, 1, 0, 0, 0]
    assert [x.tolist() for x in token_times(log, 2)] == [[10 * MS, 20 * MS, 30 * MS], []]


def test_no_served_token_gives_no_gap() -> None:
    result = by_hand()
    result.status[:] = REJECTED
    values, counts = token_log(result).gaps()
    assert (len(values), len(counts)) == (0, 0)


@pytest.mark.parametrize(("percentile", "name"), [(99, "p99"), (99.0, "p99"), (99.9, "p99.9")])
def test_percentiles_are_named_as_vllm_bench_serve_0_33_names_them(
    percentile: float, name: str
) -> None:
    assert name == percentile_name(percentile)


def test_hundred_million_gaps_cost_no_more_than_their_iterations() -> None:
    values = np.random.default_rng(1).integers(1, 10**8, 10**5) / 1e9
    counts = np.full(10**5, 1000, dtype=np.int64)
    started = time.process_time()
    statistics(values, PERCENTILES, counts)
    assert time.process_time() - started < 0.5
