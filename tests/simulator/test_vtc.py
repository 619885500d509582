"""VTC: the paper's bound on random workloads, lift, weights, predictions, and its rivals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simulator.allocators import Reserved
from simulator.engine import run
from simulator.errors import ConfigError
from simulator.papers.vtc import exact_service, largest_gap
from simulator.recorder import REJECTED, Result
from simulator.request import RequestTable
from simulator.schedulers import Rpm, Scheduler, VllmV1, Vtc
from simulator.setup import Setup
from tests.simulator.toys import toy_cost, toy_setup
from tests.simulator.watch import token_ns

NUM_WORKLOADS = 500
BLOCK = 16


def multi_client(seed: int) -> RequestTable:
    """Two to five clients: Poisson or bursty, some of them away for a while, unlike lengths."""
    rng = np.random.default_rng([seed, 4])
    times, client, prompt, output = [], [], [], []
    for number in range(int(rng.integers(2, 6))):
        num = int(rng.integers(5, 30))
        gaps = rng.exponential(1 / rng.choice([5.0, 20.0, 80.0]), num)
        if rng.random() < 0.4:
            gaps[num // 2] += rng.choice([1.0, 4.0])  # it has nothing to send for a while
        times.append(gaps.cumsum() * (rng.random() > 0.2))  # or everything at once
        client.append(np.full(num, number))
        longest = rng.integers(2, 200, 2)
        prompt.append(rng.integers(1, longest[0] + 1, num))
        output.append(rng.integers(1, longest[1] + 1, num))
    at = np.concatenate(times)
    order = np.argsort(at, kind="stable")
    return RequestTable(
        arrival_ns=(at[order] * 1e9).astype(np.int64),
        prompt_tokens=np.concatenate(prompt)[order],
        output_tokens=np.concatenate(output)[order],
        client=np.concatenate(client)[order],
    )


def busy(seed: int, scheduler: Scheduler) -> Setup:
    """Little memory, and no preemption, which the paper's proof leaves out."""
    rng = np.random.default_rng([seed, 5])
    return toy_setup(
        multi_client(seed),
        num_pages=int(rng.integers(26, 80)),
        cost=toy_cost(max_num_seqs=int(rng.choice([4, 64])), max_num_tokens=512),
        scheduler=scheduler,
        allocator=Reserved(reserve="oracle", fit="anywhere"),
    )


def bound(setup: Setup, policy: Vtc) -> float:
    """2 max(wp L, wq M) of the paper's theorem: L the longest prompt, M the tokens of the pool."""
    pool = setup.kinds[0].num_pages * BLOCK
    longest = int(setup.table.prompt_tokens.max())
    return 2 * max(policy.input_weight * longest, policy.output_weight * pool)


def test_two_waiting_clients_never_get_further_apart_than_the_bound() -> None:
    """VT-1: theorem 4.4 of the paper, at every iteration of every workload."""
    shares, shares_fcfs = [], []
    for seed in range(NUM_WORKLOADS):
        policy = Vtc(input_weight=1.0 + seed % 3, output_weight=2.0)
        setup = busy(seed, policy)
        result = run(setup)
        assert result.completed.sum() + (result.status == REJECTED).sum() == len(result.table)
        assert not result.preemptions.any()
        shares.append(
            largest_gap(result, policy.input_weight, policy.output_weight) / bound(setup, policy)
        )
        assert shares[-1] <= 1, seed
        if seed < 40:
            fcfs = run(replace(setup, scheduler=VllmV1()))
            shares_fcfs.append(
                largest_gap(fcfs, policy.input_weight, policy.output_weight) / bound(setup, policy)
            )
    assert sum(share > 0.2 for share in shares) > 50, "the workloads hardly contend"
    assert max(shares_fcfs) > 1, "first come, first served keeps the bound as well"


def two_clients(seconds: float, rates: tuple[float, float], away: float = 0.0) -> RequestTable:
    """Even streams of 64 + 64 tokens; the second client starts after `away` seconds."""
    times = [np.arange(0, seconds, 1 / rates[0]), np.arange(away, seconds, 1 / rates[1])]
    at = np.concatenate(times)
    order = np.argsort(at, kind="stable")
    lengths = np.full(len(at), 64)
    client = np.repeat([0, 1], [len(times[0]), len(times[1])])
    return RequestTable(
        arrival_ns=(at[order] * 1e9).astype(np.int64),
        prompt_tokens=lengths,
        output_tokens=lengths,
        client=client[order],
    )


def tokens_of(result: Result, before_s: float, after_s: float = 0.0) -> list[int]:
    """Output tokens of each client in a time."""
    assert result.table.client is not None
    given = [0, 0]
    for client, times in zip(result.table.client.tolist(), token_ns(result), strict=True):
        given[client] += int(((times >= after_s * 1e9) & (times < before_s * 1e9)).sum())
    return given


def test_overload_is_shared_equally_whatever_each_client_sends() -> None:
    table = two_clients(20.0, (20.0, 60.0))
    given = {}
    for name, scheduler in (("vtc", Vtc()), ("fcfs", VllmV1())):
        given[name] = tokens_of(run(toy_setup(table, num_pages=40, scheduler=scheduler)), 20.0)
    assert given["vtc"][0] == pytest.approx(given["vtc"][1], rel=0.03)
    assert given["fcfs"][1] / given["fcfs"][0] == pytest.approx(3, rel=0.1)
    assert sum(given["vtc"]) == pytest.approx(sum(given["fcfs"]), rel=0.03)


def test_weights_divide_the_service() -> None:
    table = two_clients(20.0, (60.0, 60.0))
    setup = toy_setup(table, num_pages=40, scheduler=Vtc(client_weights=(1.0, 3.0)))
    given = tokens_of(run(setup), 20.0)
    assert given[1] / given[0] == pytest.approx(3, rel=0.05)


@pytest.mark.parametrize(("lift", "share"), [(True, 0.5), (False, 0.0)])
def test_a_client_that_comes_late_claims_nothing_for_its_absence(lift: bool, share: float) -> None:
    """Without the lift its old, small counter keeps the other client out entirely (VT-4)."""
    table = two_clients(30.0, (60.0, 60.0), away=15.0)
    result = run(toy_setup(table, num_pages=40, scheduler=Vtc(lift=lift)))
    given = tokens_of(result, 25.0, after_s=16.5)
    assert given[0] / sum(given) == pytest.approx(share, abs=0.05)


def test_charging_ahead_what_is_known_narrows_the_gap() -> None:
    """As in the paper's overload: distance between the clients' service in windows of time."""
    table = two_clients(30.0, (20.0, 60.0))
    gaps = {}
    for predict, error in (("none", 0.0), ("history", 0.0), ("oracle", 0.5), ("oracle", 0.0)):
        policy = Vtc(predict=predict, predict_error=error)
        allocator = Reserved(reserve="oracle", fit="anywhere")
        setup = toy_setup(table, num_pages=80, scheduler=policy, allocator=allocator)
        moments = np.arange(5.0, 30.0, 0.05) * 1e9
        given = exact_service(run(setup), 1.0, 2.0, moments)
        ahead = given[0] - given[1]
        gaps[predict, error] = float(np.abs(ahead[100:] - ahead[:-100]).mean())
    assert gaps["oracle", 0.5] < 0.7 * gaps["none", 0.0]
    assert gaps["oracle", 0.0] < 0.2 * gaps["none", 0.0]
    assert gaps["history", 0.0] == gaps["oracle", 0.0]  # all its requests are alike


def test_a_limit_of_requests_a_minute_counts_what_it_accepted() -> None:
    seconds = np.array([0, 10, 20, 30, 59, 60, 70, 71, 200])
    table = RequestTable(
        arrival_ns=seconds * 1_000_000_000,
        prompt_tokens=np.ones(9, dtype=np.int64),
        output_tokens=np.ones(9, dtype=np.int64),
        client=np.array([0, 0, 1, 0, 0, 0, 0, 0, 0]),
    )
    taken = Rpm(requests_per_minute=2).takes(table)
    assert [1, 1, 1, 0, 0, 1, 1, 0, 1] == taken.tolist()
    closed = replace(table, max_concurrency=2)
    with pytest.raises(ConfigError, match="closed loop"):
        Rpm().takes(closed)


def test_requests_over_the_limit_are_rejected_and_the_rest_served() -> None:
    table = two_clients(5.0, (2.0, 40.0))
    result = run(toy_setup(table, scheduler=Rpm(requests_per_minute=12)))
    assert table.client is not None
    assert [10, 12] == np.bincount(table.client[result.completed]).tolist()
