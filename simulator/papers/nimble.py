"""Nimble, ahead-of-time scheduling (NeurIPS'20): a recorded run replayed without launches.

Eager, an iteration takes the longer of the GPU's time and the host's launches; replayed, the GPU's
time alone, at the recorded size above it. Its streams are `streams`: a layer of a language model is
a chain, so what they bring is measured on a network of small convolutions, the paper's headline.
"""

from __future__ import annotations

import numpy as np

from simulator.costs.price import price_iteration
from simulator.costs.roofline import compile_cost
from simulator.papers.case import Case, Line, Measure, Picture
from simulator.papers.streams import (
    Streams,
    assign,
    fewest_by_search,
    nasnet_a_mobile,
    reachable,
    replay_s,
    width,
)

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXT = 1024
LAUNCH_S = 20e-6  # of one kernel by an eager framework
KERNEL_S = 3e-6  # of a small convolution at batch 1
LARGE_KERNEL_S = 1e-3  # of a GEMM of a large batch
SMALL_GRAPHS = 60  # random ones that are searched through


def iteration_s(case: Case, batch: int, graphs: bool) -> float:
    """Time of one decode iteration."""
    experiment = case.experiment({"engine.cuda_graphs": graphs})
    cost = case.once(
        f"cost {graphs}",
        lambda: compile_cost(
            experiment.model, experiment.plan, experiment.cluster.groups[0], experiment.settings
        ),
    )
    return sum(price_iteration(cost, [], [(batch, CONTEXT)]))


def _gain(batch: int) -> Measure:
    def gain(case: Case) -> float:
        """Eager over replayed."""
        return iteration_s(case, batch, False) / iteration_s(case, batch, True)

    return gain


def idle_share(case: Case) -> float:
    """Share of an eager iteration at batch 1 in which the GPU waits for launches."""
    return 1 - iteration_s(case, 1, True) / iteration_s(case, 1, False)


def end_to_end(case: Case) -> float:
    """Duration of the whole run, one request at a time, eager over replayed."""
    ends = [case.simulate({"engine.cuda_graphs": graphs}).end_ns for graphs in (False, True)]
    return ends[0] / ends[1]


def eager_s(num_kernels: int, kernel_s: float) -> float:
    """Kernels launched one by one: the GPU's time, or the host's if longer."""
    return max(num_kernels * kernel_s, num_kernels * LAUNCH_S)


def replay_gain(case: Case) -> float:
    """Replayed on one stream."""
    num = nasnet_a_mobile().num
    return eager_s(num, KERNEL_S) / (num * KERNEL_S)


def streams_gain(case: Case) -> float:
    """Replayed on the assigned streams."""
    graph = nasnet_a_mobile()
    streams = assign(graph.num, graph.edges)
    times = [KERNEL_S] * graph.num
    return eager_s(graph.num, KERNEL_S) / replay_s(times, graph.edges, streams)


def large_gain(case: Case) -> float:
    """A chain of long kernels, which leaves nothing to run in parallel."""
    chain = [(i, i + 1) for i in range(99)]
    seconds = [LARGE_KERNEL_S] * 100
    return eager_s(100, LARGE_KERNEL_S) / replay_s(seconds, chain, assign(100, chain))


def concurrency(case: Case) -> float:
    graph = nasnet_a_mobile()
    return float(width(graph.num, graph.edges))


def small_graph(rng: np.random.Generator) -> tuple[int, list[tuple[int, int]]]:
    """A random graph of two to five kernels."""
    num, share = int(rng.integers(2, 6)), rng.uniform(0.2, 0.9)
    return num, [(u, v) for u in range(num) for v in range(u + 1, num) if rng.random() < share]


def beaten(case: Case) -> float:
    """Graphs that some assignment serves with fewer synchronisations, or with less order."""
    rng = np.random.default_rng(0)
    graphs = [small_graph(rng) for _ in range(SMALL_GRAPHS)]
    return float(sum(not is_optimal(num, edges, assign(num, edges)) for num, edges in graphs))


def is_optimal(num: int, edges: list[tuple[int, int]], streams: Streams) -> bool:
    """Only kernels in each other's way share a stream, and nobody synchronises less."""
    paths = reachable(num, edges)
    shared = [
        (u, v) for u in range(num) for v in range(num) if u < v and not (paths[u, v] or paths[v, u])
    ]
    apart = all(streams.stream[u] != streams.stream[v] for u, v in shared)
    return apart and len(streams.synchronisations) == fewest_by_search(num, edges)


MEASURES: dict[str, Measure] = {
    "replay_gain": replay_gain,
    "streams_gain": streams_gain,
    "large_gain": large_gain,
    "concurrency": concurrency,
    "beaten": beaten,
    "gain_1": _gain(1),
    "gain_256": _gain(256),
    "idle_share": idle_share,
    "end_to_end": end_to_end,
}


def picture(case: Case) -> Picture:
    """Decode iterations over the batch."""
    return Picture(
        title="Llama-3.1-8B on an H100, decode at context 1,024",
        x_label="sequences",
        y_label="ms an iteration",
        lines=tuple(
            Line(
                label=label,
                x=tuple(float(batch) for batch in BATCHES),
                y=tuple(1e3 * iteration_s(case, batch, graphs) for batch in BATCHES),
            )
            for label, graphs in (("eager", False), ("replayed", True))
        ),
    )
