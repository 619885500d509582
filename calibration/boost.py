"""Least-squares boosting of oblivious trees over quantile bins.

Every node of a level splits on the same feature and threshold: 2^depth leaves cost depth questions,
which regularises small samples and makes a tree one table look-up (CatBoost, arXiv 1706.09516).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.costs.boosted import Trees
from simulator.costs.form_base import Array

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Boosting:
    """How many trees, how deep, how fast."""

    trees: int = 800
    depth: int = 6
    rate: float = 0.08
    ridge: float = 2.0  # rows' worth of zero in every leaf
    bins: int = 64  # of a feature, at most
    sample: float = 0.7  # share of the rows each tree sees
    seed: int = 0


def boost(features: Array, target: Array, how: Boosting) -> Trees:
    """Trees whose sum is near `target`, given [rows, features]."""
    rng = np.random.default_rng([how.seed, len(target)])
    edges = [_edges(column, how.bins) for column in features.T]
    width = max(len(edge) for edge in edges) + 1
    binned = np.stack([np.searchsorted(e, c) for e, c in zip(edges, features.T, strict=True)], 1)
    splits = np.array([[b < len(edge) for b in range(width)] for edge in edges])
    predicted = np.zeros(len(target))
    chosen, thresholds, leaves = [], [], []
    for _ in range(how.trees):
        seen = rng.random(len(target)) < how.sample
        rest = target - predicted
        questions = _grow(binned[seen], rest[seen], splits, how)
        index = _leaf_index(binned, questions)
        size = 1 << how.depth
        total = np.bincount(index[seen], rest[seen], size)
        leaf = how.rate * total / (np.bincount(index[seen], minlength=size) + how.ridge)
        predicted += leaf[index]
        chosen.append([feature for feature, _ in questions])
        thresholds.append([edges[feature][b] for feature, b in questions])
        leaves.append(leaf)
    return Trees(
        feature=np.array(chosen, dtype=np.int64),
        threshold=np.array(thresholds, dtype=np.float64),
        leaf=np.array(leaves),
    )


def _edges(column: Array, bins: int) -> Array:
    """Thresholds between values: all of few, quantiles of many; 32-bit, as they are stored."""
    values = np.unique(column)
    if len(values) > bins:
        values = np.unique(np.quantile(column, np.linspace(0.0, 1.0, bins + 1)))
    middle = (values[1:] + values[:-1]) / 2.0
    return np.unique(middle.astype(np.float32)).astype(np.float64)


def _grow(
    binned: Ints, rest: Array, splits: NDArray[np.bool_], how: Boosting
) -> list[tuple[int, int]]:
    """(feature, bin) of each level: the split of all nodes that explains most squares."""
    rows, num_features = binned.shape
    width = splits.shape[1]
    cells = binned + np.arange(num_features) * width
    weights = np.repeat(rest, num_features)
    node = np.zeros(rows, dtype=np.int64)
    questions = []
    for level in range(how.depth):
        shape = (1 << level, num_features, width)
        index = (node[:, None] * (num_features * width) + cells).ravel()
        sums = np.bincount(index, weights, int(np.prod(shape))).reshape(shape).cumsum(2)
        counts = np.bincount(index, minlength=int(np.prod(shape))).reshape(shape).cumsum(2)
        right, right_count = sums[:, :, -1:] - sums, counts[:, :, -1:] - counts
        gain = sums**2 / (counts + how.ridge) + right**2 / (right_count + how.ridge)
        best = np.where(splits, gain.sum(0), -1.0)
        feature, threshold = divmod(int(np.argmax(best)), width)
        questions.append((feature, threshold))
        node = node * 2 + (binned[:, feature] > threshold)
    return questions


def _leaf_index(binned: Ints, questions: list[tuple[int, int]]) -> Ints:
    index = np.zeros(len(binned), dtype=np.int64)
    for feature, threshold in questions:
        index = index * 2 + (binned[:, feature] > threshold)
    return index
