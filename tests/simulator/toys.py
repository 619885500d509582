"""Toy prices, pools and workloads: simulations whose every number can be worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from simulator.batch import PageLayout
from simulator.costs.compiled import AttentionCost, CompiledCost, StageCost, to_ticks
from simulator.memory import KvType
from simulator.request import RequestTable
from simulator.routers import RoundRobin
from simulator.schedulers import VllmV1
from simulator.setup import ReplicaKind, Setup


def toy_cost(
    *,
    base_s: float = 4e-3,
    token_s: float = 2e-5,
    kv_token_s: float = 2e-8,
    pair_s: float = 1e-9,
    spread_s: float = 0.0,
    max_num_tokens: int = 512,
    max_num_seqs: int = 64,
    num_stages: int = 1,
    windows: tuple[int, ...] = (0,),
    num_ranks: int = 1,
) -> CompiledCost:
    """Affine prices: an iteration costs base + tokens + context, on each stage alike."""
    linear = [0] + [to_ticks(base_s + token_s * n) for n in range(1, max_num_tokens + 1)]
    attention = tuple(
        AttentionCost(
            window=window,
            decode_base=[to_ticks(1e-6 * n) for n in range(max_num_seqs + 1)],
            decode_per_token=[0] + [to_ticks(kv_token_s)] * max_num_seqs,
            decode_spread=[0] + [to_ticks(spread_s)] * max_num_seqs if spread_s else [],
            prefill_base=to_ticks(1e-5),
            prefill_per_token=to_ticks(1e-7),
            prefill_per_pair=to_ticks(pair_s),
            prefill_per_context_token=to_ticks(1e-9),
        )
        for window in windows
    )
    total = max_num_tokens * num_ranks
    stages = tuple(
        StageCost(
            linear=linear,
            expert=[to_ticks(1e-5 * n) for n in range(total + 1)] if num_ranks > 1 else [],
            expert_stride=1,
            attention=attention,
            send=[to_ticks(1e-5)] * (max_num_tokens + 1) if stage < num_stages - 1 else [],
        )
        for stage in range(num_stages)
    )
    return CompiledCost(
        stages=stages,
        logits=[to_ticks(1e-5 * n) for n in range(max_num_seqs + 1)],
        host=[to_ticks(1e-4 + 1e-6 * n) for n in range(max_num_seqs + 1)],
        windows=windows,
        max_num_tokens=max_num_tokens,
        max_num_seqs=max_num_seqs,
    )


def toy_setup(
    table: RequestTable,
    *,
    num_replicas: int = 1,
    num_ranks: int = 1,
    num_lanes: int = 1,
    num_pages: int = 2000,
    block_tokens: int = 16,
    window_pages: tuple[tuple[int, int], ...] = (),
    cost: CompiledCost | None = None,
    **changes: Any,
) -> Setup:
    """A set-up around `table`; other keywords are fields of `Setup`."""
    cost = cost or toy_cost(num_stages=num_lanes, num_ranks=num_ranks)
    kind = ReplicaKind(
        num_replicas=num_replicas,
        num_ranks=num_ranks,
        num_lanes=num_lanes,
        cost=cost,
        num_pages=num_pages,
        layout=PageLayout(block_tokens, 1, window_pages),
        kv_types=(KvType(0, 1.0), *(KvType(w, float(n)) for w, n in window_pages)),
        kv_bytes=float(num_pages * block_tokens),
        max_kv_tokens=num_pages * block_tokens // (1 + sum(w for _, w in window_pages)),
    )
    fields = {"scheduler": VllmV1(), "router": RoundRobin()} | changes
    return Setup(kinds=(kind,), table=table, **fields)


def toy_table(
    seed: int,
    num_requests: int = 60,
    *,
    rate: float = 20.0,
    most_prompt: int = 300,
    most_output: int = 120,
    tick_ns: int = 1,
    **columns: Any,
) -> RequestTable:
    """Poisson arrivals (rounded to `tick_ns`) with uniform lengths."""
    rng = np.random.default_rng(seed)
    gaps = rng.exponential(1e9 / rate, num_requests)
    arrival = (gaps.cumsum() // tick_ns * tick_ns).astype(np.int64)
    return RequestTable(
        arrival_ns=arrival - arrival[0],
        prompt_tokens=rng.integers(1, most_prompt + 1, num_requests),
        output_tokens=rng.integers(1, most_output + 1, num_requests),
        **columns,
    )
