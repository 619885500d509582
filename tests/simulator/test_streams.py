"""Nimble's streams against brute force on small graphs, and against bounds on larger ones."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from simulator.papers.nimble import is_optimal, small_graph
from simulator.papers.streams import (
    Graph,
    Streams,
    assign,
    equivalent,
    fewest_by_search,
    nasnet_a_mobile,
    reachable,
    replay_s,
    width,
)

Edges = list[tuple[int, int]]


def random_graph(seed: int, num: int) -> Edges:
    rng = np.random.default_rng([seed, num])
    share = rng.uniform(0.02, 0.3)
    names = rng.permutation(num)  # numbers say nothing about the order
    return [
        (int(names[u]), int(names[v]))
        for u, v in combinations(range(num), 2)
        if rng.random() < share
    ]


def critical_path(seconds: list[float], edges: Edges) -> float:
    ends = [0.0] * len(seconds)
    for _ in seconds:
        for kernel, time in enumerate(seconds):
            ends[kernel] = time + max((ends[u] for u, v in edges if v == kernel), default=0.0)
    return max(ends)


def test_no_assignment_synchronises_less_on_small_graphs() -> None:
    rng = np.random.default_rng(5)
    needed = []
    for _ in range(120):
        num, edges = small_graph(rng)
        assert is_optimal(num, edges, assign(num, edges)), edges
        needed.append(fewest_by_search(num, edges))
    assert len(set(needed)) > 3


def test_a_worse_assignment_is_noticed() -> None:
    diamond = [(0, 1), (0, 2), (1, 3), (2, 3)]
    assert fewest_by_search(4, diamond) == 2
    assert is_optimal(4, diamond, assign(4, diamond))
    apart = Streams(stream=(0, 1, 2, 3), synchronisations=tuple(diamond))
    together = Streams(stream=(0, 0, 0, 0), synchronisations=())
    assert not is_optimal(4, diamond, apart)
    assert not is_optimal(4, diamond, together)


def test_the_reduction_keeps_the_paths_and_drops_what_can_be_dropped() -> None:
    for seed in range(40):
        edges = random_graph(seed, 14)
        kept = equivalent(14, edges)
        paths = reachable(14, edges)
        assert np.array_equal(reachable(14, kept), paths)
        for edge in kept:
            fewer = [other for other in kept if other != edge]
            assert not np.array_equal(reachable(14, fewer), paths)


def test_replay_on_streams_takes_no_longer_than_the_critical_path() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        edges, seconds = random_graph(seed, 25), rng.exponential(1.0, 25).tolist()
        streams = assign(25, edges)
        assert replay_s(seconds, edges, streams) == pytest.approx(critical_path(seconds, edges))
        one = Streams(stream=(0,) * 25, synchronisations=())
        assert replay_s(seconds, edges, one) == pytest.approx(sum(seconds))


def test_width_is_the_largest_set_of_independent_kernels() -> None:
    for seed in range(30):
        edges = random_graph(seed, 9)
        paths = reachable(9, edges)
        largest = max(
            len(some)
            for size in range(1, 10)
            for some in combinations(range(9), size)
            if not any(paths[u, v] or paths[v, u] for u, v in combinations(some, 2))
        )
        assert width(9, edges) == largest
        assert assign(9, edges).num_streams >= largest


def test_small_shapes_by_hand() -> None:
    assert assign(3, [(0, 1), (1, 2), (0, 2)]) == Streams(stream=(0, 0, 0), synchronisations=())
    assert assign(3, []) == Streams(stream=(0, 1, 2), synchronisations=())
    fork = assign(3, [(0, 1), (0, 2)])
    assert (fork.num_streams, len(fork.synchronisations)) == (2, 1)


def test_nasnet_is_wide_and_connected() -> None:
    graph = nasnet_a_mobile()
    paths = reachable(graph.num, graph.edges)
    assert paths[0, graph.num - 1]
    assert isinstance(graph, Graph)
    reaching = paths[:, graph.num - 1].sum() + 1
    assert reaching == graph.num, "every kernel leads to the classifier"
    assert (width(graph.num, graph.edges), len(equivalent(graph.num, graph.edges))) == (13, 1013)
