"""Speed of the simulator: `python -m pytest -m bench -s` prints one row a regime.

Figures are CPU seconds, best of five, with the ratio to SimPy's bare timeout rate in the same run.
Iteration counts are asserted too, so that a speed-up cannot come from doing less.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time

import numpy as np
import pytest

from simulator.catalog import load_model, parse_cluster
from simulator.request import RequestTable
from simulator.search import SearchSpec, run_search
from tests.bench.regimes import (
    bare_timeouts_per_s,
    experiment,
    measure,
    moderate_chat,
    peers_workload,
    regimes,
    synthetic,
)

pytestmark = pytest.mark.bench

ITERATIONS_PER_S = 100_000
OVERLOAD_REQUESTS_PER_S = 50_000
CHAT_REQUESTS_PER_S = 30_000


@pytest.fixture(scope="module")
def bare() -> float:
    rate = bare_timeouts_per_s()
    print(f"\nSimPy bare timeouts: {rate:,.0f}/s; Python {platform.python_version()}")
    return rate


def show(speed, bare: float) -> None:
    print(
        f"\n{speed.name:16s} {speed.iterations:>9,} it  mean run "
        f"{speed.iterations / speed.runs:6.1f}  best {speed.best_s:.3f} s  median "
        f"{speed.median_s:.3f} s  {speed.iterations_per_s:>11,.0f} it/s  "
        f"{speed.requests_per_s:>9,.0f} req/s  {speed.preemptions:,} preemptions  "
        f"{speed.iterations_per_s / bare:.2f}x bare timeouts"
    )


@pytest.mark.parametrize("name", ["low load", "heavy chat", "long decode", "block-starved",
                                  "8 replicas"])  # fmt: skip
def test_iterations_per_second(name, bare):
    speed = measure(name, regimes()[name])
    show(speed, bare)
    assert speed.iterations_per_s >= ITERATIONS_PER_S
    assert (speed.preemptions > 0) == (name == "block-starved")


def test_overload_requests_per_second(bare):
    speed = measure("overload", regimes()["overload"])
    show(speed, bare)
    assert speed.requests_per_s >= OVERLOAD_REQUESTS_PER_S


def test_moderate_chat_requests_per_second(bare):
    speed = measure("moderate chat", moderate_chat())
    show(speed, bare)
    assert speed.requests_per_s >= CHAT_REQUESTS_PER_S


def test_cost_of_a_request_hardly_depends_on_its_output_length(bare):
    short = measure("output 128", experiment(synthetic(10_000, 4, 512, 128)))
    long = measure("output 1280", experiment(synthetic(10_000, 4, 512, 1280)))
    show(short, bare)
    show(long, bare)
    assert long.best_s / short.best_s <= 1.5


@pytest.mark.parametrize(("num_requests", "limit_s"), [(10_000, 0.5), (100_000, 4.0)])
def test_the_workload_other_simulators_publish(num_requests, limit_s, bare):
    speed = measure(f"peers {num_requests:,}", peers_workload(num_requests), repeats=3)
    show(speed, bare)
    assert speed.best_s <= limit_s


def peak_mb(num_requests: int) -> float:
    """Peak memory of a fresh process that simulates the peers' workload and summarises it."""
    code = (
        "import resource\n"
        "from simulator.engine import prepare, run\n"
        "from simulator.metrics import summarise\n"
        "from tests.bench.regimes import peers_workload\n"
        f"subject = peers_workload({num_requests})\n"
        "summarise(subject, run(prepare(subject)))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": "."},
    )  # fmt: skip
    return float(run.stdout)


@pytest.mark.parametrize(("num_requests", "limit_mb"), [(100_000, 300), (1_000_000, 2000)])
def test_peak_memory(num_requests, limit_mb):
    megabytes = peak_mb(num_requests)
    print(f"\npeak memory of {num_requests:,} requests: {megabytes:.0f} MB")
    assert megabytes < limit_mb


def creation_like(num_requests: int = 512) -> RequestTable:
    """Like APEX+'s creation trace: 0.5 requests/s, about 308 tokens in, 1144 out."""
    rng = np.random.default_rng(0)
    gaps = rng.exponential(2e9, num_requests)
    return RequestTable(
        arrival_ns=gaps.cumsum().astype(np.int64),
        prompt_tokens=rng.normal(308, 70, num_requests).clip(50, 700).astype(np.int64),
        output_tokens=rng.normal(1144, 400, num_requests).clip(100, 2500).astype(np.int64),
        name="creation-like",
    )


@pytest.mark.parametrize("prune", [None, False])
def test_the_search_apex_publishes(prune):
    spec = SearchSpec(
        model=load_model("llama-3-70b"),
        cluster=parse_cluster("8xH100-SXM"),
        workload=creation_like(),
        prune=prune,
        jobs=1,
    )
    start = time.process_time()
    counts = run_search(spec).counts()
    cpu_s = time.process_time() - start
    print(f"\nAPEX+'s search, prune={prune}: {counts} in {cpu_s:.2f} s CPU")
    assert counts["considered"] > 26
    assert cpu_s <= (5 if prune is None else 10)
