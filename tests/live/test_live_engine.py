"""The live engine gives each token when the simulator says so, and forgets what is over."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from simulator.catalog import load_model, parse_cluster
from simulator.config import load
from simulator.engine import simulate
from simulator.errors import ConfigError
from simulator.experiment import Experiment
from simulator.itl import token_log, token_times
from simulator.live.engine import LiveEngine, Ticket
from simulator.request import RequestTable
from simulator.routers import ROUTERS
from simulator.schedulers import SCHEDULERS, VllmV1
from simulator.spec import ParallelPlan

QUICKSTART = "experiments/quickstart.yaml"


def table(seed: int, num: int, rate: float, longest: int = 2000) -> RequestTable:
    """Poisson arrivals of prompts up to `longest` tokens and answers up to 60."""
    rng = np.random.default_rng(seed)
    return RequestTable(
        arrival_ns=np.cumsum(rng.exponential(1e9 / rate, num)).astype(np.int64),
        prompt_tokens=rng.integers(1, longest, num),
        output_tokens=rng.integers(1, 60, num),
        priority=rng.integers(0, 3, num),
    )


def experiment(workload: RequestTable, **changes: object) -> Experiment:
    return replace(load(QUICKSTART), workload=workload, **changes)  # type: ignore[arg-type]


def feed(engine: LiveEngine, workload: RequestTable) -> tuple[list[Ticket], list[list[int]]]:
    """Every request at its time, and the times at which each was told of tokens."""
    told: list[list[int]] = []
    tickets: list[Ticket] = []
    assert workload.priority is not None
    for i in range(len(workload)):
        times: list[int] = []
        told.append(times)

        def change(i: int = i, times: list[int] = times) -> None:
            new = tickets[i].given - len(times)
            times.extend([tickets[i].latest_ns] * new)

        columns = (workload.arrival_ns, workload.prompt_tokens, workload.output_tokens)
        sent, prompt, output = (int(column[i]) for column in columns)
        tickets.append(engine.submit(sent, prompt, output, int(workload.priority[i]), change))
    while engine.num_in_flight:
        engine.advance(int(engine.next_ns))
    return tickets, told


PLANS = {
    "one": (ParallelPlan(), "1xH100-SXM"),
    "replicas": (ParallelPlan(dp=2), "2xH100-SXM"),
    "pipeline": (ParallelPlan(pp=2), "2xH100-SXM"),
    "ranks": (ParallelPlan(attention_dp=2, ep=2), "2xH100-SXM"),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("router", ["round_robin", "least_loaded"])
@pytest.mark.parametrize("by_priority", [False, True])
def test_tokens_come_when_an_offline_run_of_the_same_arrivals_says(
    plan: str, router: str, by_priority: bool
) -> None:
    what, cluster = PLANS[plan]
    workload = table(seed=1, num=120, rate=60)
    setup = experiment(
        workload,
        plan=what,
        cluster=parse_cluster(cluster),
        model=load_model("qwen3-30b-a3b" if plan == "ranks" else "llama-3.1-8b"),
        router=ROUTERS[router](),
        scheduler=VllmV1(policy="priority" if by_priority else "fcfs"),
    )
    settings = replace(setup.settings, num_blocks=400)  # some are preempted
    setup = replace(setup, settings=settings)
    offline = simulate(setup)
    assert offline.completed.all()
    tickets, told = feed(LiveEngine(setup, places=len(workload)), workload)
    assert offline.first_token_ns.tolist() == [ticket.first_ns for ticket in tickets]
    assert offline.finish_ns.tolist() == [ticket.finish_ns for ticket in tickets]
    assert offline.scheduled_ns.tolist() == [ticket.scheduled_ns for ticket in tickets]
    assert offline.preemptions.tolist() == [ticket.preemptions for ticket in tickets]
    times = token_times(token_log(offline), len(workload))
    assert [ns.tolist() for ns in times] == told


def test_a_dropped_request_leaves_its_pages_and_its_place() -> None:
    workload = table(seed=3, num=60, rate=200)
    setup = experiment(workload)
    ended: list[Ticket] = []
    engine = LiveEngine(setup, places=60, on_finish=ended.append)
    tickets = [engine.submit(10_000_000 * i, 1500, 200) for i in range(60)]
    engine.advance(590_000_000)
    usage = engine.kv_usage
    assert 0 < usage
    for ticket in tickets[1:]:  # running, prefilling, waiting, on their way
        engine.drop(ticket)
    engine.advance(engine.now_ns + 200_000_000)
    assert (1, 1) == (engine.num_in_flight, engine.ranks[0].num_running)
    assert engine.kv_usage < usage / 10
    assert all(ticket.given < 200 for ticket in tickets[1:])
    while engine.num_in_flight:
        engine.advance(int(engine.next_ns))
    assert (200, 0.0) == (tickets[0].given, engine.kv_usage)
    assert 60 == len(ended)
    assert (1, 59) == (engine.totals.finished, engine.totals.dropped)


def test_a_request_whose_time_is_past_is_sent_as_late_as_it_has_to_be() -> None:
    setup = experiment(table(seed=3, num=1, rate=1))
    engine = LiveEngine(setup, places=3)
    engine.submit(0, 700, 50)
    engine.advance(200_000_000)
    late = engine.submit(1000, 700, 5)
    assert late.sent_ns <= engine.now_ns < late.sent_ns + engine.lead_ns + 2 * 700 * 1000
    ahead = engine.submit(engine.now_ns - engine.lead_ns // 2, 700, 5)
    assert engine.now_ns - engine.lead_ns // 2 == ahead.sent_ns
    while engine.num_in_flight:
        engine.advance(int(engine.next_ns))
    table_ns = RequestTable(
        arrival_ns=np.array([0, late.sent_ns, ahead.sent_ns]),
        prompt_tokens=np.full(3, 700),
        output_tokens=np.array([50, 5, 5]),
    )
    offline = simulate(replace(setup, workload=table_ns))
    assert [late.first_ns, ahead.first_ns] == offline.first_token_ns[1:].tolist()


def test_a_request_alone_after_dropped_ones_is_as_fast_as_alone() -> None:
    setup = experiment(table(seed=3, num=1, rate=1))
    alone = LiveEngine(setup, places=8)
    first = alone.submit(0, 700, 50)
    alone.advance(10**10)
    crowded = LiveEngine(setup, places=8)
    for i in range(7):
        crowded.drop(crowded.submit(i, 900, 500))
    crowded.advance(10**10)
    assert 0 == crowded.num_in_flight
    later = crowded.submit(2 * 10**10, 700, 50)
    crowded.advance(4 * 10**10)
    assert first.first_ns - first.sent_ns == later.first_ns - later.sent_ns
    assert first.finish_ns - first.sent_ns == later.finish_ns - later.sent_ns


def test_memory_does_not_grow_with_requests() -> None:
    engine = LiveEngine(experiment(table(seed=4, num=1, rate=1)), places=64)

    def serve(num: int) -> None:
        for _ in range(num):
            engine.submit(engine.now_ns + 5_000_000, 100, 12)
            while engine.num_in_flight > 60:
                engine.advance(int(engine.next_ns))

    tracemalloc.start()
    serve(2_000)
    before, _ = tracemalloc.get_traced_memory()
    serve(10_000)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 200_000  # 20 bytes a request; a kept ticket is 200
    assert 12_000 == engine.totals.finished + engine.num_in_flight


def test_what_cannot_be_served_is_refused_in_one_line() -> None:
    setup = experiment(table(seed=5, num=1, rate=1))
    engine = LiveEngine(setup, places=1)
    with pytest.raises(ConfigError, match=r"at most \d+ tokens \(got 9000000 of prompt, 1 of out"):
        engine.submit(0, 9_000_000, 1)
    with pytest.raises(ConfigError, match="at least one"):
        engine.submit(0, 0, 1)
    engine.submit(0, 1, 1)
    with pytest.raises(ConfigError, match="at most 1 requests in flight"):
        engine.submit(0, 1, 1)
    for kind, reason in (("vtc", "must know its requests"), ("static", "longest context")):
        with pytest.raises(ConfigError, match=reason):
            LiveEngine(replace(setup, scheduler=SCHEDULERS[kind]()), places=1)
