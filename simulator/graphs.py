"""CUDA graphs of the serving engine: which sizes are captured, and what a batch is padded to."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simulator.spec import EngineSettings, GpuSpec

GIB = 2**30


def graph_sizes(gpu: GpuSpec, settings: EngineSettings) -> tuple[int, ...]:
    """Token counts vLLM captures: 1, 2, 4, by 8 below 256, by 16 to the largest.

    Largest: min(2 * max_num_seqs, largest_graph); 1024 instead of the default 512 on data-centre
    Blackwell (vLLM 0.33).
    """
    if not settings.cuda_graphs:
        return ()
    big = gpu.family.lower().startswith("blackwell") and gpu.memory_bytes >= 160 * GIB
    most = 1024 if big and settings.largest_graph == 512 else settings.largest_graph
    largest = min(2 * settings.max_num_seqs, most)
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, largest + 1, 16)]
    return tuple(size for size in sizes if size <= largest)


def padded_tokens(sizes: Sequence[int], max_num_tokens: int) -> NDArray[np.int64]:
    """CUDA-graph size of every token count 0..max; itself above the largest graph."""
    tokens = np.arange(max_num_tokens + 1, dtype=np.int64)
    if not sizes:
        return tokens
    bounds = np.array([0, *sizes], dtype=np.int64)
    index = np.minimum(np.searchsorted(bounds, tokens), len(bounds) - 1)
    padded: NDArray[np.int64] = np.maximum(bounds[index], tokens)
    return padded
