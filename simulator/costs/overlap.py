"""Nano-batches (NanoFlow, OSDI'25, arXiv 2408.12757): unlike kernels of an iteration overlapped.

An iteration is cut into nano-batches whose operations are independent, so that the GEMMs of one run
beside what is memory-bound (decode attention, norms) and the collectives of another. Kernels that
run together slow each other down: a share R of the GPU, measured by what a GEMM keeps of its rate
in it, gives other kernels a rate P(R) of theirs (the paper's table 3).

A state of the GPU is who runs in which share, so the least time of C, M and N seconds of compute,
memory and network, each alone, is a linear program over the time spent in each state. By duality it
is a maximum of weighted sums,

    T = max over y of  y_C C + y_M M + y_N N,   y the vertices of {y >= 0, y . rates(state) <= 1}

Dependencies within a layer are taken to leave enough to overlap, so this is what the best schedule
of such kernels reaches, not a schedule. Parts are equal; the authors' search finds unequal ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations

import numpy as np

from simulator.costs.compiled import TICKS_PER_S, AttentionCost, StageCost
from simulator.work import Tokens

# (R, P) of decode attention beside a GEMM on an A100, as the paper's text gives them: with 0.4 of
# the GPU it reaches 0.8 of its rate, with 0.8 of it 0.85. That collectives do as well is an
# assumption, as is that other GPUs do.
INTERFERENCE = ((0.0, 0.0), (0.4, 0.8), (0.8, 0.85), (1.0, 1.0))
OVERLAPS = ("all", "network", "none")  # what runs beside GEMMs: attention too, collectives, nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Weights of compute, memory and network seconds in one lower bound of the time together."""

    compute: float
    memory: float
    network: float


def states(overlap: str) -> list[tuple[float, float, float]]:
    """Rates of compute, memory and network in each state, as shares of their rates alone."""
    rates = dict(INTERFERENCE)
    memory = [share for share in rates if overlap == "all"] or [0.0]
    network = [share for share in rates if overlap != "none"] or [0.0]
    found = [(1 - m - n, rates[m], rates[n]) for m in memory for n in network if m + n <= 1]
    return sorted({*found, (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)})


@cache
def pieces(overlap: str = "all") -> tuple[Piece, ...]:
    """The bounds whose maximum is the time together: vertices that no other exceeds throughout."""
    limits = [*(np.array(state) for state in states(overlap)), *-np.eye(3)]
    right = np.array([1.0] * (len(limits) - 3) + [0.0] * 3)
    table = np.array(limits)
    found: set[tuple[float, float, float]] = set()
    for three in combinations(range(len(limits)), 3):
        chosen = list(three)
        if abs(np.linalg.det(table[chosen])) < 1e-9:
            continue
        vertex = np.linalg.solve(table[chosen], right[chosen])
        if (table @ vertex <= right + 1e-9).all():
            c, m, n = (abs(round(float(weight), 12)) for weight in vertex)
            found.add((c, m, n))
    best = [
        one
        for one in sorted(found, reverse=True)
        if not any(two != one and all(np.array(two) >= np.array(one)) for two in found)
    ]
    return tuple(Piece(compute=c, memory=m, network=n) for c, m, n in best)


def together_s(compute_s: float, memory_s: float, network_s: float, overlap: str = "all") -> float:
    """Seconds of work that takes these times alone, overlapped."""
    return max(
        piece.compute * compute_s + piece.memory * memory_s + piece.network * network_s
        for piece in pieces(overlap)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class StageWork:
    """Seconds of a stage by tokens of an iteration, apart; attention excepted."""

    compute_s: Tokens
    memory_s: Tokens  # norms and the like
    network_s: Tokens
    outside_s: Tokens  # embedding and last norm, which are not split
    launched_s: Tokens  # launches of one nano-batch's kernels; 0 inside a CUDA graph


def nano_stage(work: StageWork, cost: StageCost, num: int, overlap: str) -> StageCost:
    """A stage with its iterations in `num` nano-batches.

    Each op runs once a nano-batch, on an equal part of the tokens: its weights are read and its
    fixed time is paid as often, and small GEMMs are less efficient, as the prices have it.
    """
    parts = [_in_parts(each, num) for each in (work.compute_s, work.memory_s, work.network_s)]
    found = []
    for piece in pieces(overlap):
        weights = (piece.compute, piece.memory, piece.network)
        inside = sum((w * part for w, part in zip(weights, parts, strict=True)), work.outside_s)
        found.append(_plain(inside, tuple(_weighted(one, piece, num) for one in cost.attention)))
    launched = _in_parts(work.launched_s, num)
    if launched.any():
        nothing = Piece(compute=0.0, memory=0.0, network=0.0)
        found.append(_plain(launched, tuple(_weighted(one, nothing, 1) for one in cost.attention)))
    return StageCost(
        linear=[0] * len(cost.linear),
        expert=[],
        expert_stride=1,
        attention=(),
        send=cost.send,
        cold=cost.cold,
        pieces=tuple(found),
    )


def _in_parts(seconds: Tokens, num: int) -> Tokens:
    """A table by size, of sizes cut into `num` parts as equal as can be; [0] costs nothing."""
    each = seconds.copy()
    each[0] = 0.0
    sizes = np.arange(len(seconds))
    small, more = np.divmod(sizes, num)
    larger = np.minimum(small + 1, len(seconds) - 1)
    cut: Tokens = more * each[larger] + (num - more) * each[small]
    return cut


def _plain(linear_s: Tokens, attention: tuple[AttentionCost, ...]) -> StageCost:
    ticks: list[int] = np.rint(linear_s * TICKS_PER_S).astype(np.int64).tolist()
    ticks[0] = 0
    return StageCost(linear=ticks, expert=[], expert_stride=1, attention=attention, send=[])


def _weighted(cost: AttentionCost, piece: Piece, num: int) -> AttentionCost:
    """Attention in nano-batches: decodes weigh as memory, prompts as compute."""
    base = _in_parts(np.array(cost.decode_base, dtype=np.float64), num)
    spread = np.array(cost.decode_spread, dtype=np.float64)
    return AttentionCost(
        window=cost.window,
        decode_base=np.rint(piece.memory * base).astype(np.int64).tolist(),
        decode_per_token=[round(piece.memory * ticks) for ticks in cost.decode_per_token],
        decode_spread=np.rint(piece.memory * spread).astype(np.int64).tolist(),
        prefill_base=round(piece.compute * num * cost.prefill_base),
        prefill_per_token=round(piece.compute * cost.prefill_per_token),
        prefill_per_pair=round(piece.compute * cost.prefill_per_pair),
        prefill_per_context_token=round(piece.compute * cost.prefill_per_context_token),
    )
