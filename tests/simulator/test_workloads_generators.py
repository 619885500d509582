"""Synthetic workloads: their statistics, their exact promises, and what a rate may not change."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import ConfigError
from simulator.request import RequestTable
from simulator.workloads import PrefixRepetition, Sessions, Synthetic


def hashes(table: RequestTable) -> list[list[int]]:
    assert table.hash_ids is not None
    assert table.hash_offsets is not None
    return [
        table.hash_ids[start:stop].tolist()
        for start, stop in zip(table.hash_offsets[:-1], table.hash_offsets[1:], strict=True)
    ]


@given(
    count=st.integers(1, 500),
    rate=st.floats(1e-3, 1e4),
    burstiness=st.sampled_from([0.05, 0.5, 1.0, 4.0, math.inf]),
    seed=st.integers(0, 2**32),
)
def test_last_arrival_is_exactly_at_requests_over_rate(count, rate, burstiness, seed):
    table = Synthetic(num_prompts=count, request_rate=rate, burstiness=burstiness).requests(seed)
    assert table.arrival_ns[-1] == round(count / rate * 1e9)
    assert len(table) == count


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
def test_gaps_have_the_cv_of_the_burstiness(burstiness):
    table = Synthetic(num_prompts=40_000, request_rate=10, burstiness=burstiness).requests(1)
    gaps = np.diff(table.arrival_ns)
    assert abs(gaps.std() / gaps.mean() * math.sqrt(burstiness) - 1) < 0.04


def test_infinite_burstiness_is_a_metronome():
    table = Synthetic(num_prompts=5, request_rate=4, burstiness=math.inf).requests(0)
    assert (table.arrival_ns == np.arange(1, 6) * 250_000_000).all()


@pytest.mark.parametrize("rate", [math.inf, "inf"])
def test_infinite_rate_sends_everything_at_zero(rate):
    assert not Synthetic(num_prompts=9, request_rate=rate).requests(0).arrival_ns.any()


def test_rate_may_carry_its_unit():
    bare, text = (Synthetic(num_prompts=9, request_rate=rate).requests(0) for rate in (12, "12 /s"))
    assert (bare.arrival_ns == text.arrival_ns).all()


@given(
    length=st.integers(1, 5000),
    output=st.integers(1, 5000),
    ratio=st.floats(0, 0.99),
    prefix=st.integers(1, 100),
)
def test_lengths_stay_within_vllm_0_33_bounds(length, output, ratio, prefix):
    table = Synthetic(
        num_prompts=50,
        input_len=length,
        output_len=output,
        range_ratio=ratio,
        random_prefix_len=prefix,
    ).requests(0)
    own = table.prompt_tokens - prefix
    assert math.floor(length * (1 - ratio)) <= own.min()
    assert own.max() <= math.ceil(length * (1 + ratio))
    assert max(1, math.floor(output * (1 - ratio))) <= table.output_tokens.min()
    assert table.output_tokens.max() <= math.ceil(output * (1 + ratio))


def test_lengths_reach_both_bounds_uniformly():
    table = Synthetic(
        num_prompts=20_000, input_len=10, output_len=10, range_ratio={"input": 0.5}
    ).requests(0)
    counts = np.bincount(table.prompt_tokens, minlength=17)
    assert counts[5:16].sum() == 20_000
    assert abs(counts[5:16] / 20_000 * 11 - 1).max() < 0.1
    assert (table.output_tokens == 10).all()


def test_lengths_may_follow_a_distribution():
    table = Synthetic(
        num_prompts=1000, input_len={"kind": "uniform", "low": 820, "high": 1024}, output_len=7
    ).requests(0)
    assert table.prompt_tokens.min() >= 820
    assert abs(table.prompt_tokens.mean() - 922) < 6


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("linear", lambda p: 2 + 6 * p), ("exponential", lambda p: 2 * 4**p)],
)
def test_ramp_up_moves_the_rate_from_start_to_end(strategy, expected):
    table = Synthetic(
        num_prompts=101,
        request_rate=1,
        burstiness=math.inf,
        ramp_up_strategy=strategy,
        ramp_up_start_rps=2.0,
        ramp_up_end_rps=8.0,
    ).requests(0)
    rates = 1e9 / np.diff(table.arrival_ns, prepend=0)
    np.testing.assert_allclose(rates, expected(np.arange(101) / 100), rtol=1e-6)


def test_shared_prefix_is_whole_blocks_and_the_rest_is_private():
    table = Synthetic(num_prompts=3, input_len=20, random_prefix_len=40).requests(0)
    first, second, third = hashes(table)
    assert [len(first), first[:2]] == [4, [0, 1]]  # 60 tokens; block 2 mixes prefix and own
    assert second[:2] == third[:2] == [0, 1]
    assert len({*first[2:], *second[2:], *third[2:]}) == 6
    assert table.hash_block_tokens == 16


def test_max_concurrency_makes_a_closed_loop():
    table = Synthetic(num_prompts=3, max_concurrency=2).requests(0)
    assert table.max_concurrency == 2
    assert not table.is_open_loop


def test_prefix_repetition_uses_every_prefix_equally_in_random_order():
    table = PrefixRepetition(num_prompts=1003, num_prefixes=10, prefix_len=250).requests(4)
    assert len(table) == 1000
    assert table.notes == ("3 of num_prompts dropped: whole prefixes only",)
    assert (table.prompt_tokens == 506).all()
    groups = np.array([ids[0] // 15 for ids in hashes(table)])
    assert np.bincount(groups).tolist() == [100] * 10
    assert (np.diff(groups) < 0).any()
    own = [value for ids in hashes(table) for value in ids[15:]]
    assert len(set(own)) == len(own) == 1000 * 17
    assert min(own) >= 150


SESSIONS = Sessions(
    num_sessions=60,
    arrivals={"process": "poisson", "rate": "2 /s"},
    turns={"kind": "uniform", "low": 1, "high": 5},
    first_prompt={"kind": "uniform", "low": 1, "high": 100},
    turn_input={"kind": "uniform", "low": 1, "high": 40},
    output={"kind": "exponential", "mean": 30},
    shared_prefix_len=50,
    think_time="5 s",
)


def test_sessions_grow_their_context_turn_by_turn():
    table = SESSIONS.requests(0)
    assert table.parent is not None
    assert table.session is not None
    later = np.flatnonzero(table.parent >= 0)
    parent = table.parent[later]
    assert (table.session[later] == table.session[parent]).all()
    assert (table.arrival_ns[later] == table.arrival_ns[parent]).all()
    added = table.prompt_tokens[later] - (table.prompt_tokens + table.output_tokens)[parent]
    assert added.min() >= 1
    assert added.max() <= 40
    assert len(later) + 60 == len(table)
    first = table.prompt_tokens[table.parent < 0] - 50
    assert first.min() >= 1
    assert first.max() <= 100


def test_sessions_reuse_exactly_the_full_blocks_of_the_turn_before():
    table = SESSIONS.requests(0)
    assert table.parent is not None
    context = table.prompt_tokens + table.output_tokens
    ids = hashes(table)
    for request, parent in enumerate(table.parent.tolist()):
        assert len(ids[request]) == math.ceil(context[request] / 16)
        assert len(set(ids[request])) == len(ids[request])
        other = parent if parent >= 0 else 0  # first turns share the system prompt alone
        same = int(context[parent]) // 16 if parent >= 0 else 50 // 16
        if request != other:
            assert ids[request][:same] == ids[other][:same]
            assert not set(ids[request][same:]) & set(ids[other][same:])


def test_think_time_is_between_turns_only():
    table = Sessions(
        num_sessions=5000, arrivals={"process": "burst"}, turns=3, think_time="2 s"
    ).requests(0)
    assert table.delay_ns is not None
    think = table.delay_ns.reshape(5000, 3)
    assert not think[:, 0].any()
    assert abs(think[:, 1:].mean() / 2e9 - 1) < 0.05
    assert abs(think[:, 1:].std() / 2e9 - 1) < 0.05
    constant = Sessions(
        num_sessions=2, arrivals={"process": "burst"}, turns=2, think_time="2 s", think_time_cv=0
    ).requests(0)
    assert constant.delay_ns is not None
    assert constant.delay_ns.tolist() == [0, 2 * 10**9, 0, 2 * 10**9]


@pytest.mark.parametrize(
    "make",
    [
        lambda rate: Synthetic(
            num_prompts=300, range_ratio=0.5, request_rate=rate, burstiness=0.3, output_len=9
        ),
        lambda rate: PrefixRepetition(num_prompts=300, request_rate=rate),
        lambda rate: Sessions(
            num_sessions=100,
            turns={"kind": "zipf", "theta": 1.1, "low": 1, "high": 9},
            arrivals={"process": "weibull", "rate": f"{rate} /s", "cv": 3},
        ),
    ],
    ids=["synthetic", "prefix_repetition", "sessions"],
)
def test_a_rate_stretches_the_same_gaps_and_leaves_the_rest(make):
    slow, fast = make(2.0).requests(7), make(8.0).requests(7)
    np.testing.assert_allclose(slow.arrival_ns, 4 * fast.arrival_ns, atol=4)
    assert (slow.prompt_tokens == fast.prompt_tokens).all()
    assert (slow.output_tokens == fast.output_tokens).all()
    again, other = make(2.0).requests(7), make(2.0).requests(8)
    assert (again.arrival_ns == slow.arrival_ns).all()
    assert len(other) != len(slow) or (other.arrival_ns != slow.arrival_ns).any()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"num_prompts": 0}, "workload.num_prompts must be an int >= 1 (got 0)"),
        ({"num_prompts": True}, "workload.num_prompts must be an int >= 1 (got True)"),
        ({"range_ratio": 1}, "workload.range_ratio must be < 1 (got 1)"),
        ({"range_ratio": {"inptu": 0}}, "unknown workload.range_ratio key 'inptu'; did you mean"),
        ({"request_rate": 0}, "workload.request_rate must be > 0 (got 0)"),
        ({"request_rate": -3}, "workload.request_rate must be > 0 (got -3)"),
        ({"request_rate": math.nan}, "workload.request_rate must be > 0 (got nan)"),
        ({"burstiness": 0}, "workload.burstiness must be a number > 0 (got 0)"),
        ({"ramp_up_start_rps": 1.0}, "workload.ramp_up_start_rps needs ramp_up_strategy (got 1.0)"),
        ({"ramp_up_strategy": "linear"}, "workload.ramp_up_start_rps must be a finite number > 0"),
        ({"ramp_up_strategy": "liner"}, "unknown workload.ramp_up_strategy 'liner'; did you mean"),
        ({"max_concurrency": -1}, "workload.max_concurrency must be an int >= 0 (got -1)"),
    ],
)
def test_synthetic_refuses(options, expected):
    with pytest.raises(ConfigError) as caught:
        Synthetic(**options)
    assert str(caught.value).startswith(expected)


def test_a_prompt_without_tokens_is_refused():
    with pytest.raises(ConfigError, match=r"workload\.input_len must leave every prompt >= 1"):
        Synthetic(num_prompts=5, input_len=0).requests(0)
    with pytest.raises(ConfigError, match="seed must be an int >= 0"):
        Synthetic(num_prompts=5).requests(-1)


def test_a_million_requests_take_well_under_two_seconds():
    begin = time.process_time()
    Synthetic(num_prompts=1_000_000, request_rate=100, range_ratio=0.5).requests(0)
    assert time.process_time() - begin < 2
