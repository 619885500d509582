"""Admission by deadline and by predicted memory: optimality, guarantees, and what they cost."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.config import load
from simulator.engine import prepare, run
from simulator.errors import ConfigError
from simulator.recorder import Result
from simulator.request import RequestTable
from simulator.schedulers import Edf, KvAware, VllmV1
from simulator.spec import Slo
from tests.simulator.toys import toy_cost, toy_setup, toy_table
from tests.simulator.watch import flat_cost

MS = 1_000_000
QUICKSTART = Path(__file__).parents[2] / "experiments" / "quickstart.yaml"


# --- earliest deadline first ------------------------------------------------------------------


def jobs(sent: list[int], classes: list[int]) -> RequestTable:
    """Requests that take one iteration of 1 ms each, sent at whole ms."""
    order = np.argsort(sent, kind="stable")
    return RequestTable(
        arrival_ns=np.array(sent)[order] * MS,
        prompt_tokens=np.ones(len(sent), dtype=np.int64),
        output_tokens=np.ones(len(sent), dtype=np.int64),
        priority=np.array(classes)[order],
    )


def on_one_machine(table: RequestTable, scheduler: Any) -> Result:
    """One request at a time, 1 ms each."""
    return run(toy_setup(table, cost=flat_cost(MS, max_num_seqs=1), scheduler=scheduler))


def in_time(result: Result, limits_s: tuple[float, ...]) -> int:
    limits = np.array(limits_s)[result.table.priority]
    return int(((result.first_token_ns - result.sent_ns) / 1e9 <= limits + 1e-12).sum())


def most_in_time(table: RequestTable, limits_s: tuple[float, ...]) -> int:
    """The best of all orders: each job in turn as soon as the machine and the job are there."""
    sent = (table.arrival_ns // MS).tolist()
    assert table.priority is not None
    due = [at + round(limits_s[c] * 1e3) for at, c in zip(sent, table.priority, strict=True)]
    best = 0
    for order in permutations(range(len(sent))):
        now = met = 0
        for job in order:
            now = max(now, sent[job]) + 1
            met += now <= due[job]
        best = max(best, met)
    return best


def test_edf_meets_every_deadline_where_some_order_does() -> None:
    """Jackson 1955, Horn 1974: with unit jobs and whole release times EDF is optimal."""
    feasible = fcfs_fails = 0
    for seed in range(300):
        rng = np.random.default_rng(seed)
        num = int(rng.integers(2, 7))
        limits = tuple(sorted(rng.choice(np.arange(1, 8), 3, replace=False) / 1e3))
        table = jobs(rng.integers(0, 5, num).tolist(), rng.integers(0, 3, num).tolist())
        if most_in_time(table, limits) < num:
            continue
        feasible += 1
        assert in_time(on_one_machine(table, Edf(class_ttft_s=limits)), limits) == num, seed
        fcfs_fails += in_time(on_one_machine(table, VllmV1()), limits) < num
    assert feasible > 60
    assert fcfs_fails > 10, "deadlines that any order meets show nothing"


def test_hopeless_requests_do_not_make_the_others_late() -> None:
    """Six jobs at once, due after 2 ms, and one a ms later due after 3: four cannot be in time.

    Plain EDF computes them first, as their deadlines are earlier, and the last is late as well.
    """
    table, limits = jobs([0] * 6 + [3, 4, 5], [0] * 6 + [1] * 3), (2e-3, 3e-3)
    late_last = on_one_machine(table, Edf(class_ttft_s=limits))
    plain = on_one_machine(table, Edf(class_ttft_s=limits, late_last=False))
    assert (in_time(late_last, limits), in_time(plain, limits)) == (5, 2)
    assert late_last.first_token_ns.max() == plain.first_token_ns.max() == 9 * MS


def test_one_deadline_for_all_is_first_come_first_served_where_nobody_is_late() -> None:
    table = toy_table(3, 80, rate=400)
    for late_last, ttft_s, equal in ((False, 0.1, True), (True, 1e3, True), (True, 0.1, False)):
        edf = run(toy_setup(table, scheduler=Edf(ttft_s=ttft_s, late_last=late_last)))
        fcfs = run(toy_setup(table))
        assert np.array_equal(edf.first_token_ns, fcfs.first_token_ns) is equal


def test_deadline_counts_from_sending_in_a_closed_loop_too() -> None:
    """Request 2 is sent after request 0 ends, long after 1, but must be served within 1 ms."""
    table = RequestTable(
        arrival_ns=np.zeros(4, dtype=np.int64),
        prompt_tokens=np.ones(4, dtype=np.int64),
        output_tokens=np.array([1, 3, 1, 3]),
        priority=np.array([0, 1, 0, 1]),
        parent=np.array([-1, -1, 0, -1]),
        delay_ns=np.array([0, 0, MS, 0]),
    )
    result = on_one_machine(table, Edf(class_ttft_s=(4e-3, 20e-3)))
    assert result.first_token_ns.tolist()[:2] == [MS, 2 * MS]
    assert result.first_token_ns[2] < result.first_token_ns[3]


def test_edf_takes_its_deadline_from_the_experiment() -> None:
    experiment = replace(load(QUICKSTART), scheduler=Edf())
    assert prepare(experiment).scheduler == Edf(ttft_s=experiment.slo.ttft_s)
    with pytest.raises(ConfigError, match=r"slo\.ttft or scheduler\.ttft_s"):
        prepare(replace(experiment, slo=Slo()))
    with pytest.raises(ConfigError, match="orders requests itself"):
        Edf(policy="priority")


# --- admission by predicted memory --------------------------------------------------------------


def crowded(seed: int, scheduler: Any, **changes: Any) -> Result:
    """Answers of up to 120 tokens that outgrow a pool of 40 blocks."""
    table = toy_table(seed, 60, rate=40, most_prompt=120)
    cost = toy_cost(max_num_tokens=64, num_stages=changes.get("num_lanes", 1))
    return run(toy_setup(table, num_pages=40, cost=cost, scheduler=scheduler, **changes))


def test_nobody_is_preempted_where_predictions_are_upper_bounds() -> None:
    preemptions = 0
    for seed in range(40):
        preemptions += int(crowded(seed, VllmV1()).preemptions.sum())
        bounded = KvAware(output_quantile=0.0, max_tokens=120)
        assert not crowded(seed, bounded).preemptions.any(), seed
    assert preemptions > 400


def test_quantiles_of_outputs_seen_preempt_less_than_vllm_and_admit_more_than_the_bound() -> None:
    policies = (VllmV1(), KvAware(output_quantile=0.9), KvAware(output_quantile=0.0))
    results = [[crowded(seed, policy) for seed in range(12)] for policy in policies]
    vllm, quantile, bound = (sum(int(r.preemptions.sum()) for r in some) for some in results)
    assert vllm > 10 * quantile
    assert quantile > bound == 0
    ends = [np.mean([r.end_ns for r in some]) for some in results]
    assert ends[1] < 0.9 * ends[2], "a bound as long as the pool serves one request at a time"


def test_a_request_is_admitted_exactly_when_the_peak_fits() -> None:
    """Prompts of 16, outputs of 33, blocks of 16: 48 tokens of KV, 3 blocks, at the end of each.

    The second comes while the first decodes: the first has ended (3 blocks) before the second
    (counted whole, 3) has begun to decode, so both need 6 blocks. With 5, the second waits.
    """
    table = RequestTable(
        arrival_ns=np.array([0, 5 * MS]),
        prompt_tokens=np.array([16, 16]),
        output_tokens=np.array([33, 33]),
    )
    exact = KvAware(output_quantile=0.0, max_tokens=33)
    for pages, waits in ((6, False), (5, True)):
        setup = toy_setup(table, num_pages=pages, cost=flat_cost(MS), scheduler=exact)
        result = run(setup)
        assert (result.scheduled_ns[1] == result.finish_ns[0]) is np.bool_(waits)
        assert not result.preemptions.any()


def test_peak_forgets_who_will_have_ended() -> None:
    """Eight requests at once hold 5 blocks each at the end; who comes late fits beside the ebb."""
    num, block = 8, 16
    table = RequestTable(
        arrival_ns=np.array([0] * num + [60 * MS]),
        prompt_tokens=np.full(num + 1, block),
        output_tokens=np.array([*range(9, 9 + 8 * num, 8), 17]),
    )
    exact = KvAware(output_quantile=0.0, max_tokens=8 * num + 1)
    result = run(toy_setup(table, num_pages=44, cost=flat_cost(MS), scheduler=exact))
    assert not result.preemptions.any()
    assert result.scheduled_ns[-1] == 60 * MS
    assert result.scheduled_ns[:num].max() == 0


def test_memory_and_deadlines_can_be_combined() -> None:
    for lanes in (1, 2):
        both = KvAware(order="edf", ttft_s=0.5, output_quantile=0.9)
        result = crowded(1, both, num_lanes=lanes)
        fcfs = crowded(1, replace(both, order="fcfs"), num_lanes=lanes)
        assert result.completed.all()
        late = [(r.first_token_ns - r.sent_ns > 0.5e9).sum() for r in (result, fcfs)]
        assert late[0] < late[1]


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ({"order": "sjf"}, "scheduler.order"),
        ({"output_quantile": 1.5}, "scheduler.output_quantile"),
        ({"max_tokens": -1}, "scheduler.max_tokens"),
        ({"ttft_s": -1.0}, "scheduler.ttft_s"),
        ({"class_ttft_s": (0.0,)}, "scheduler.class_ttft_s"),
    ],
)
def test_keys_are_checked(keys: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        KvAware(**keys)
