"""Nimble's streams: kernels of a graph on as few CUDA streams as keep all their concurrency.

Two kernels may run at once unless a path leads from one to the other. The minimum equivalent graph
(transitive reduction) has an edge u to v exactly where v must wait for u and for nobody between. A
maximum matching of its nodes as predecessors with its nodes as successors (one of each at most)
joins kernels into chains: a chain is a stream, an edge inside one costs nothing, every other edge
of the reduction is one synchronisation. No assignment that keeps the concurrency has fewer, which
the paper proves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

Edges = Sequence[tuple[int, int]]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """Which stream each kernel runs on, and which pairs synchronise across streams."""

    stream: tuple[int, ...]  # by kernel
    synchronisations: tuple[tuple[int, int], ...]

    @property
    def num_streams(self) -> int:
        return max(self.stream, default=-1) + 1


def reachable(num: int, edges: Edges) -> Bools:
    """[num, num]: a path of at least one edge leads from row to column."""
    after: list[list[int]] = [[] for _ in range(num)]
    for u, v in edges:
        after[u].append(v)
    found = np.zeros((num, num), dtype=np.bool_)
    for u in TopologicalSorter(dict(enumerate(after))).static_order():  # successors first
        for v in after[u]:
            found[u, v] = True
            found[u] |= found[v]
    return found


def equivalent(num: int, edges: Edges) -> list[tuple[int, int]]:
    """The fewest edges with the same paths: those that no longer path replaces."""
    paths = reachable(num, edges)
    kept = []
    for u, v in sorted(set(edges)):
        between = paths[u] & paths[:, v]
        if not between.any():
            kept.append((u, v))
    return kept


def assign(num: int, edges: Edges) -> Streams:
    """Streams with the most concurrency and, given that, the fewest synchronisations."""
    reduced = equivalent(num, edges)
    partner = _matched(num, reduced)
    followers = set(partner.values())
    stream = [-1] * num
    heads = [u for u in range(num) if u not in followers]
    for number, head in enumerate(heads):
        kernel: int | None = head
        while kernel is not None:
            stream[kernel] = number
            kernel = partner.get(kernel)
    rest = tuple((u, v) for u, v in reduced if partner.get(u) != v)
    return Streams(stream=tuple(stream), synchronisations=rest)


def _matched(num: int, edges: Edges) -> dict[int, int]:
    """A maximum matching of predecessors to successors."""
    if not edges:
        return {}
    rows, columns = zip(*edges, strict=True)
    matrix = csr_array((np.ones(len(edges), np.int8), (rows, columns)), shape=(num, num))
    found = maximum_bipartite_matching(matrix, perm_type="column")
    return {u: int(v) for u, v in enumerate(found) if v >= 0}


def width(num: int, edges: Edges) -> int:
    """Most kernels of which none waits for another (Dilworth: as many as chains cover them)."""
    paths = reachable(num, edges)
    rows, columns = linear_sum_assignment(paths, maximize=True)
    return num - int(paths[rows, columns].sum())


def replay_s(seconds: Sequence[float], edges: Edges, streams: Streams) -> float:
    """Time of a recorded run: each kernel after those before it on its stream and its waits.

    Kernels that run at once do not slow each other down, so this is a bound for small ones.
    """
    num = len(seconds)
    order: dict[int, list[int]] = {kernel: [] for kernel in range(num)}
    for u, v in [*streams.synchronisations, *_successions(num, edges, streams)]:
        order[v].append(u)
    ends = [0.0] * num
    for kernel in TopologicalSorter(order).static_order():
        start = max((ends[u] for u in order[kernel]), default=0.0)
        ends[kernel] = start + seconds[kernel]
    return max(ends, default=0.0)


def _successions(num: int, edges: Edges, streams: Streams) -> list[tuple[int, int]]:
    """Each kernel and the next on its stream, in the order of their paths."""
    counts = reachable(num, edges).sum(axis=0)
    latest: dict[int, int] = {}
    found = []
    for kernel in sorted(range(num), key=lambda k: (int(counts[k]), k)):
        stream = streams.stream[kernel]
        if stream in latest:
            found.append((latest[stream], kernel))
        latest[stream] = kernel
    return found


@dataclass(slots=True)
class Graph:
    """Kernels in the making, each known by its number."""

    edges: list[tuple[int, int]] = field(default_factory=list)
    num: int = 0

    def add(self, *before: int) -> int:
        """One more kernel, after those."""
        kernel = self.num
        self.num += 1
        self.edges += [(u, kernel) for u in before]
        return kernel

    def chain(self, length: int, before: int) -> int:
        """So many kernels one after another; the last of them."""
        for _ in range(length):
            before = self.add(before)
        return before


SEPARABLE = 8  # kernels: twice activation, depthwise, pointwise, normalisation
ADJUST = 3  # of an input: activation, 1x1 convolution, normalisation


def nasnet_a_mobile() -> Graph:
    """Inference of NASNet-A (4 @ 1056), kernel by kernel, of the published cells (1707.07012)."""
    graph = Graph()
    first = graph.chain(2, graph.add())  # convolution, normalisation
    before, current = first, _reduction(graph, first, first)
    before, current = current, _reduction(graph, before, current)
    for stack in range(3):
        if stack:
            before, current = current, _reduction(graph, before, current)
        for _ in range(4):
            before, current = current, _normal(graph, before, current)
    graph.chain(3, current)  # activation, pooling, classifier
    return graph


def _normal(graph: Graph, before: int, current: int) -> int:
    p, h = graph.chain(ADJUST, before), graph.chain(ADJUST, current)
    blocks = [
        graph.add(graph.chain(SEPARABLE, h), h),
        graph.add(graph.chain(SEPARABLE, p), graph.chain(SEPARABLE, h)),
        graph.add(graph.add(h), p),
        graph.add(graph.add(p), graph.add(p)),
        graph.add(graph.chain(SEPARABLE, p), graph.chain(SEPARABLE, p)),
    ]
    return graph.add(p, *blocks)  # concatenation


def _reduction(graph: Graph, before: int, current: int) -> int:
    p, h = graph.chain(ADJUST, before), graph.chain(ADJUST, current)
    one = graph.add(graph.chain(SEPARABLE, h), graph.chain(SEPARABLE, p))
    two = graph.add(graph.add(h), graph.chain(SEPARABLE, p))
    three = graph.add(graph.add(h), graph.chain(SEPARABLE, p))
    four = graph.add(graph.add(h), graph.chain(SEPARABLE, one))
    five = graph.add(graph.add(one), two)
    return graph.add(two, three, four, five)


def fewest_by_search(num: int, edges: Edges) -> int:
    """The fewest synchronisations of any assignment that keeps the concurrency, by trying all.

    Kernels are numbered in an order of their paths. Only for very small graphs.
    """
    paths = reachable(num, edges)
    pairs = [(int(u), int(v)) for u, v in np.argwhere(paths)]
    orders = [_in_order(streams) for streams in _partitions(num) if _is_parallel(streams, paths)]
    for count in range(len(pairs) + 1):
        for waits in combinations(pairs, count):
            for order in orders:
                if (reachable(num, [*waits, *order]) >= paths).all():
                    return count
    return len(pairs)


def _partitions(num: int) -> Iterator[list[list[int]]]:
    """Every way to put kernels on streams."""
    if num == 0:
        yield []
        return
    for rest in _partitions(num - 1):
        for number in range(len(rest)):
            yield [*rest[:number], [*rest[number], num - 1], *rest[number + 1 :]]
        yield [*rest, [num - 1]]


def _is_parallel(streams: list[list[int]], paths: Bools) -> bool:
    """Whether only kernels that wait for one another share a stream."""
    return all(paths[u, v] for stream in streams for u, v in combinations(stream, 2))


def _in_order(streams: list[list[int]]) -> list[tuple[int, int]]:
    return [pair for stream in streams for pair in pairwise(stream)]
