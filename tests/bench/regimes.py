"""Named workloads of the speed bench, and how one is timed: CPU seconds of the run alone."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
import simpy

from simulator.catalog import load_model, parse_cluster
from simulator.defaults import default_settings
from simulator.engine import prepare, run
from simulator.experiment import Experiment
from simulator.request import RequestTable
from simulator.spec import ParallelPlan
from simulator.workloads import WORKLOADS


def synthetic(
    num_requests: int, rate: float, prompt: int, output: int, spread: float = 0.5
) -> RequestTable:
    """Poisson arrivals, lengths uniform in [L(1 - spread), L(1 + spread)]."""
    kind = WORKLOADS["synthetic"](
        num_prompts=num_requests,
        request_rate=rate,
        input_len=prompt,
        output_len=output,
        range_ratio=spread,
    )
    return kind.requests(seed=0)


def experiment(table: RequestTable, *, dp: int = 1, **settings: int) -> Experiment:
    """Llama-3.1-8B on H100s, one a replica."""
    cluster = parse_cluster(f"{dp}xH100-SXM")
    return Experiment(
        model=load_model("llama-3.1-8b"),
        cluster=cluster,
        plan=ParallelPlan(dp=dp),
        settings=default_settings(cluster.groups[0].gpu, **settings),
        workload=table,
    )


@dataclass(frozen=True, kw_only=True)
class Speed:
    """One timed regime."""

    name: str
    requests: int
    iterations: int
    runs: int  # segments: iterations or runs of identical ones
    preemptions: int
    best_s: float
    median_s: float

    @property
    def iterations_per_s(self) -> float:
        return self.iterations / self.best_s

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.best_s


def measure(name: str, subject: Experiment, repeats: int = 5) -> Speed:
    """Best and median CPU time of `repeats` runs, pricing included."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        result = run(prepare(subject))
        times.append(time.process_time() - start)
    return Speed(
        name=name,
        requests=len(subject.workload),
        iterations=sum(len(lane.end_ns) for lane in result.lanes),
        runs=sum(len(lane.segment_start_ns) for lane in result.lanes),
        preemptions=int(result.preemptions.sum()),
        best_s=min(times),
        median_s=float(np.median(times)),
    )


def bare_timeouts_per_s(num_timeouts: int = 200_000) -> float:
    """SimPy's own rate: one process that does nothing but wait."""

    def wait(env: simpy.Environment):
        for _ in range(num_timeouts):
            yield env.timeout(1)

    best = float("inf")
    for _ in range(3):
        env = simpy.Environment()
        env.process(wait(env))
        start = time.process_time()
        env.run()
        best = min(best, time.process_time() - start)
    return num_timeouts / best


def regimes() -> dict[str, Experiment]:
    """The six regimes; each is big enough to take some tenths of a second."""
    return {
        "low load": experiment(synthetic(6_000, 2, 512, 256)),
        "heavy chat": experiment(synthetic(20_000, 20, 512, 256)),
        "long decode": experiment(synthetic(2_000, 1, 256, 4096)),
        "block-starved": experiment(synthetic(10_000, 20, 512, 256), num_blocks=2_500),
        "8 replicas": experiment(synthetic(20_000, 24, 512, 256), dp=8),
        "overload": experiment(synthetic(40_000, 200, 512, 128)),
    }


def moderate_chat(output: int = 128) -> Experiment:
    """Chat at about half of one GPU's capacity."""
    return experiment(synthetic(20_000, 8, 512, output))


def peers_workload(num_requests: int) -> Experiment:
    """The workload other simulators publish: Poisson 8/s, 512 in, 512 out."""
    return experiment(synthetic(num_requests, 8, 512, 512, spread=0))


def without_coalescing(subject: Experiment) -> Experiment:
    return replace(subject, coalesce=False)
