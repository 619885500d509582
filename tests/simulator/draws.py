"""Set-ups drawn at random: every policy of the registries under workloads that stress the engine.

A draw is named by its policies and a number, and seeded by nothing else, so a failing one is
reproduced by `draw(name, router, allocator, number)`.
"""

from __future__ import annotations

from collections.abc import Sequence as Options
from dataclasses import dataclass, fields, replace
from itertools import product
from typing import Any
from zlib import crc32

import numpy as np

from simulator.allocators import ALLOCATORS
from simulator.batch import FOREVER
from simulator.costs.compiled import CompiledCost
from simulator.errors import ConfigError
from simulator.request import Ints, RequestTable
from simulator.routers import ROUTERS
from simulator.schedulers import SCHEDULERS
from simulator.setup import Setup
from tests.simulator.toys import toy_cost, toy_setup, toy_table
from tests.simulator.watch import flat_cost

# Values a policy's field of that name is drawn from; other fields keep their defaults.
FIELDS: dict[str, tuple[Any, ...]] = {
    "policy": ("fcfs", "priority"),
    "chunked_prefill": (True, True, True, True, False),
    "long_prefill_token_threshold": (0, 0, 40),
    "reserve_full_prompt": (True, False),
    "waiting_weight": (4.0, 1.0),
    "max_imbalance": (32, 4),
    "reserve": ("max", "pow2", "oracle"),
    "windows": ("freed", "freed", "kept"),
    "background": (True, False),
    "defer_reclamation": (True, False),
    "map_latency_s": (40e-6, 3e-3),
    "request_aware": (True, True, False),
    "eviction": ("aligned", "queue"),
    "window_extra": (0, 0, 20),
    "store_chunks": (True, True, False),
    "window_weight": (0.5, 2.0),
    "prefix_caching": (True, True, False),
    "fit": ("first", "best", "anywhere"),
    "max_batch_size": (0, 3, 8),
    "preemption": ("recompute", "swap"),
    "swap_pages": (0, 6),
    "watermark": (0.01, 0.2),
    "priorities": ("random", "random", "markov", "arrival"),
    "priority_frequency": (0.02, 0.3, 1.0),
    "asynchronous": (True, False),
    "reuse": (True, False),
    "swap_copy_latency_s": (8e-6, 3e-4),
    "swap_group_pages": (1, 20),
    "token_budget": (0, 0, 48),
    "chunked": (True, True, False),
    "hybrid": (True, False),
    "lift": (True, True, False),
    "client_weights": ((), (1.0, 2.5)),
    "admit_every": (1, 1, 10),
    "predict": ("none", "oracle", "history"),
    "predict_error": (0.0, 0.5),
    "requests_per_minute": (1, 5, 20),
    "ttft_s": (0.05, 0.5),
    "class_ttft_s": ((), (1.0, 0.1)),
    "late_last": (True, True, False),
    "order": ("fcfs", "fcfs", "edf"),
    "output_quantile": (0.5, 0.9, 1.0, 0.0),
    "max_tokens": (0, 120),
    "migrate": (True, False),
    "interval_s": (0.2, 0.01),
    "source_below": (3.0, 0.5),
    "victim": ("shortest", "last"),
    "last_stage_blocks": (16, 2, 0),
    "max_stages": (3, 1),
}
TICKS_NS = (1, 1_000_000, 10_000_000)  # arrivals fall on multiples
# Pages by kind of layer; they cache prefixes.
TYPED = ("uniform", "max_page", "static_partition", "vllm_hybrid", "jenga")
OTHERS = tuple(name for name in ALLOCATORS if name not in TYPED)
CLASHES = {
    *(("static", name) for name in ("paged", "prefix_caching", "vattention", *TYPED)),
    *(("kv_aware", name) for name in ("reserved", "buddy")),
    *(("fastswitch", name) for name in ALLOCATORS if name != "paged"),
}
STATELESS = tuple(name for name in ROUTERS if name != "llumnix")  # they go with every policy
USUAL = ("vllm_v1", "round_robin", "paged", "prefix_caching")
COMBINATIONS = (
    # Every router with what an experiment gets unasked, every other policy with each of the rest.
    *product(("vllm_v1",), ROUTERS, ("paged", "prefix_caching")),
    *(
        (scheduler, STATELESS[number % len(STATELESS)], allocator)
        for number, (scheduler, allocator) in enumerate(
            (*product(SCHEDULERS, OTHERS), *product(SCHEDULERS, TYPED))
        )
        if (scheduler not in USUAL or allocator not in USUAL)
        and (scheduler, allocator) not in CLASHES
        # `uniform` is `paged` or `prefix_caching` with another number of pages.
        and (allocator != "uniform" or scheduler in ("vllm_v1", "vllm_v0"))
    ),
)


@dataclass(frozen=True, slots=True)
class Draw:
    """A set-up, and the allocator of the registry it is for."""

    name: str
    setup: Setup
    allocator: str

    @property
    def table(self) -> RequestTable:
        return self.setup.table


def draw(scheduler: str, router: str, allocator: str, number: int) -> Draw:
    """The `number`-th set-up of these policies."""
    name = f"draw({scheduler!r}, {router!r}, {allocator!r}, {number})"
    rng = np.random.default_rng([number, crc32(f"{scheduler}/{router}/{allocator}".encode())])
    shares = allocator == "prefix_caching" or allocator in TYPED
    policy = draw_policy(rng, SCHEDULERS[scheduler])
    own = np.random.default_rng([number, 7])  # so that a new allocator shifts no other draw
    memory = draw_policy(own, ALLOCATORS[allocator])
    while clash(policy, memory):
        policy = draw_policy(own, SCHEDULERS[scheduler])
        memory = draw_policy(own, ALLOCATORS[allocator])
    table = draw_table(rng, shares or rng.random() < 0.2, getattr(policy, "by_priority", False))
    if hasattr(policy, "takes") and not table.is_open_loop:
        table = replace(table, parent=None, delay_ns=None, max_concurrency=0)
    if scheduler in ("vtc", "rpm"):
        table = replace(table, client=rng.integers(0, pick(rng, (1, 3, 8)), len(table)))
    windows = pick(rng, ((0,), (0,), (0,), (0, 50), (64,)))
    window_pages = tuple((w, 2) for w in windows if w) if rng.random() < 0.7 else ()
    lanes, ranks = pick(rng, (1, 1, 1, 2, 3)), pick(rng, (1, 1, 2, 3))
    if scheduler == "fastswitch":
        lanes = 1
    return Draw(
        name,
        toy_setup(
            table,
            num_replicas=pick(rng, (1, 1, 2, 4)),
            num_ranks=ranks,
            num_lanes=lanes,
            num_pages=pick(rng, (28, 32, 40, 120)) * (3 if window_pages else 1),
            window_pages=window_pages,
            cost=_cost(rng, lanes, ranks, windows),
            scheduler=policy,
            router=draw_policy(rng, ROUTERS[router]),
            allocator=memory,
            prefix_caching=shares,
            max_model_len=pick(rng, (0, 0, 0, 350)),
            horizon_ns=pick(rng, (FOREVER, FOREVER, FOREVER, 1_500_000_000)),
            plans_ahead=rng.random() < 0.4,
            lead_ns=_lead(rng, table),
        ),
        allocator,
    )


def clash(scheduler: Any, allocator: Any) -> str:
    """Why the two do not go together; "" where they do."""
    return str(scheduler.clash(allocator)) if hasattr(scheduler, "clash") else ""


def pick(rng: np.random.Generator, options: Options[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def draw_policy(rng: np.random.Generator, kind: type) -> Any:
    """A policy with the fields that `FIELDS` knows drawn."""
    names = [field.name for field in fields(kind)]
    while True:
        try:
            return kind(**{name: pick(rng, FIELDS[name]) for name in names if name in FIELDS})
        except ConfigError:  # fields that contradict each other
            continue


def draw_table(rng: np.random.Generator, hashed: bool, by_priority: bool) -> RequestTable:
    """Open loop, bounded concurrency, or sessions of turns that repeat what was said before."""
    if rng.random() < 0.2:
        return _sessions(rng, hashed, by_priority)
    num = int(rng.integers(5, 45))
    table = toy_table(
        int(rng.integers(1 << 30)),
        num,
        rate=pick(rng, (5.0, 30.0, 150.0)),
        most_output=pick(rng, (1, 20, 120)),
        tick_ns=pick(rng, TICKS_NS),
        priority=_priority(rng, num, by_priority),
        max_concurrency=int(rng.integers(1, 20)) if rng.random() < 0.2 else 0,
    )
    return _with_groups(rng, table) if hashed else table


def _priority(rng: np.random.Generator, num: int, by_priority: bool) -> Any:
    return rng.integers(0, 3, num) if by_priority or rng.random() < 0.1 else None


def _with_groups(rng: np.random.Generator, table: RequestTable) -> RequestTable:
    """Prompts that begin with some whole blocks of one of four texts and go on in their own."""
    size = pick(rng, (8, 16, 16, 32, 64))
    ids: list[int] = []
    offsets = [0]
    for i, tokens in enumerate(table.prompt_tokens.tolist()):
        group, shared = int(rng.integers(4)), int(rng.integers(tokens // size + 1))
        if rng.random() < 0.2:
            shared = tokens // size
        rest = -(-tokens // size) - shared
        ids += [group * 1000 + j for j in range(shared)]
        ids += [1_000_000 + i * 1000 + j for j in range(rest)]
        offsets.append(len(ids))
    return _hashed(table, ids, offsets, size)


def _hashed(table: RequestTable, ids: list[int], offsets: list[int], size: int) -> RequestTable:
    return replace(
        table,
        hash_ids=np.array(ids, dtype=np.int64),
        hash_offsets=np.array(offsets, dtype=np.int64),
        hash_block_tokens=size,
    )


def _sessions(rng: np.random.Generator, hashed: bool, by_priority: bool) -> RequestTable:
    """Turns of several sessions; a turn's prompt is the last one, its answer and a new question."""
    sessions, turns = int(rng.integers(2, 10)), int(rng.integers(2, 5))
    num = sessions * turns
    start = np.sort(rng.integers(0, 400, sessions)) * pick(rng, TICKS_NS)
    new = rng.integers(1, 60, (turns, sessions))
    output = rng.integers(1, 50, (turns, sessions))
    history = np.cumsum(new + output, axis=0) - output  # the prompt: all said before and `new`
    table = RequestTable(
        arrival_ns=np.concatenate([start, np.full(num - sessions, start[-1])]).astype(np.int64),
        prompt_tokens=history.ravel(),
        output_tokens=output.ravel(),
        parent=np.maximum(np.arange(num) - sessions, -1),
        delay_ns=rng.integers(0, 500, num) * 1_000_000 * (rng.random() < 0.7),
        priority=_priority(rng, num, by_priority),
        max_concurrency=int(rng.integers(1, 8)) if rng.random() < 0.3 else 0,
    )
    if not hashed:
        return table
    covers_output = rng.random() < 0.7
    size = pick(rng, (16, 32))
    ids: list[int] = []
    offsets = [0]
    for i in range(num):
        named = int(table.prompt_tokens[i] + covers_output * table.output_tokens[i])
        ids += [(i % sessions) * 1000 + j for j in range(named // size)]
        ids += [1_000_000 + i] * (named % size > 0)  # a part of a block is its own content
        offsets.append(len(ids))
    return _hashed(table, ids, offsets, size)


def _lead(rng: np.random.Generator, table: RequestTable) -> Ints | None:
    """None, or a fixed time and one a prompt token, on the grid of arrivals."""
    if rng.random() < 0.6:
        return None
    fixed, each = pick(rng, (0, 3_000_000)), pick(rng, (0, 7, 1_000_000))
    return fixed + each * table.prompt_tokens


def _cost(
    rng: np.random.Generator, lanes: int, ranks: int, windows: tuple[int, ...]
) -> CompiledCost:
    """Affine prices, or 1 ms flat, where arrivals and iteration ends often coincide."""
    sizes = {"max_num_tokens": pick(rng, (64, 128, 512)), "max_num_seqs": pick(rng, (4, 16, 64))}
    if rng.random() < 0.3:
        stage_ns = (1_000_000,) * lanes
        return flat_cost(0, stage_ns=stage_ns, num_ranks=ranks, windows=windows, **sizes)
    base_s = pick(rng, (4e-3, 1e-3))
    return toy_cost(
        num_stages=lanes,
        num_ranks=ranks,
        windows=windows,
        base_s=base_s,
        spread_s=1e-8 if base_s < 2e-3 else 0.0,
        **sizes,
    )
