"""KV that the GPU's prefix cache has lost comes back from host memory."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator import engine
from simulator.allocators import HostMemory, Paged
from simulator.allocators.host_tier import HostTier
from simulator.allocators.offloading import Loaded, OffloadingAllocator
from simulator.clashes import refuse_clash
from simulator.config import read_document, resolve_experiment
from simulator.engine import run, simulate
from simulator.errors import ConfigError
from simulator.experiment import Experiment
from simulator.recorder import Result
from simulator.request import RequestTable, Sequence
from simulator.routers import JoinShortestQueue
from simulator.schedulers import Orca, VllmV1
from simulator.setup import Setup
from simulator.spec import ParallelPlan
from tests.simulator.draws import draw_table, pick
from tests.simulator.outcomes import BOOKED
from tests.simulator.toys import toy_cost, toy_setup, toy_table
from tests.simulator.watch import Audited, difference, flat_cost, run_audited

BLOCK = 16
MEMORY = HostMemory(num_blocks=1000, block_bytes=1e6, bytes_per_s=1e9, latency_s=0.5e-3)


def conversation() -> RequestTable:
    """A turn of 160 tokens, a stranger that fills the pool, and the next turn of the first."""
    ids = [*range(12), *range(100, 120), *range(16)]
    return RequestTable(
        arrival_ns=np.array([0, 1, 2]) * 1_000_000_000,
        prompt_tokens=np.array([160, 320, 240]),
        output_tokens=np.array([33, 1, 1]),
        hash_ids=np.array(ids),
        hash_offsets=np.array([0, 12, 32, 48]),
        hash_block_tokens=BLOCK,
    )


def offloading(table: RequestTable, memory: HostMemory | None = MEMORY, **changes: Any) -> Setup:
    setup = toy_setup(table, **changes)
    kinds = tuple(replace(kind, host=memory) for kind in setup.kinds)
    return replace(setup, kinds=kinds)


def ttft_ns(result: Result, request: int) -> int:
    return int(result.first_token_ns[request] - result.sent_ns[request])


def test_evicted_turn_waits_for_its_load_and_computes_the_rest() -> None:
    """12 blocks are loaded in 0.5 + 12 ms; 48 of the 240 tokens are left for one iteration."""
    cost = toy_cost()
    result = run(offloading(conversation(), num_pages=20, cost=cost))
    whole = run(offloading(conversation(), None, num_pages=2000, cost=cost))  # nothing is evicted
    assert 192 == result.cached_tokens[2] == whole.cached_tokens[2]
    assert ttft_ns(result, 2) == 12_500_000 + ttft_ns(whole, 2)
    lost = run(offloading(conversation(), None, num_pages=20, cost=cost))
    assert 0 == lost.cached_tokens[2]
    assert result.counters == {
        "offload_hit_tokens": 192,
        "offload_loaded_bytes": 12_000_000,
        "offload_stored_bytes": (12 + 20 + 3) * 1_000_000,  # each block once
    }


def test_infinitely_fast_host_equals_an_infinite_gpu_cache() -> None:
    fast = replace(MEMORY, bytes_per_s=math.inf, latency_s=0.0)
    result = run(offloading(conversation(), fast, num_pages=20))
    for name in ("first_token_ns", "finish_ns", "cached_tokens"):
        whole = getattr(run(toy_setup(conversation())), name)
        assert getattr(result, name).tolist() == whole.tolist()
    assert 192 == result.counters["offload_hit_tokens"]


def test_load_delays_its_request_alone() -> None:
    """A stranger that comes just behind is admitted at once, and decodes while the load runs."""
    table = conversation()
    behind = RequestTable(
        arrival_ns=np.append(table.arrival_ns, table.arrival_ns[2] + 1),
        prompt_tokens=np.append(table.prompt_tokens, 16),
        output_tokens=np.append(table.output_tokens, 40),
        hash_ids=np.append(table.hash_ids, 900),  # type: ignore[arg-type]
        hash_offsets=np.array([0, 12, 32, 48, 49]),
        hash_block_tokens=BLOCK,
    )
    result = run(offloading(behind, num_pages=20, cost=flat_cost(1_000_000)))
    assert ttft_ns(result, 3) == 1_000_000
    ends = result.lanes[0].end_ns
    gaps = np.diff(ends[ends > table.arrival_ns[2]])
    assert gaps.max() == 1_000_000
    # Loaded 12.5 ms after it came; its turn is the next iteration, which began within 1 ms.
    assert 13_500_000 <= ttft_ns(result, 2) < 14_500_000


def test_no_host_memory_is_what_ran_before() -> None:
    setup = toy_setup(conversation(), num_pages=20)
    assert difference(run(setup), run(offloading(conversation(), None, num_pages=20))) == ""


# --- drawn ------------------------------------------------------------------------------------


def draw(number: int) -> Setup:
    rng = np.random.default_rng([number, 71])
    policy = VllmV1(
        policy=pick(rng, ("fcfs", "priority")),
        chunked_prefill=bool(rng.random() < 0.8),
        reserve_full_prompt=bool(rng.random() < 0.6),
    )
    table = draw_table(rng, True, policy.by_priority)
    memory = HostMemory(
        num_blocks=pick(rng, (3, 12, 60, 400)),
        block_bytes=pick(rng, (1e4, 1e6, 5e6)),
        bytes_per_s=pick(rng, (1e9, 1e10, math.inf)),
        latency_s=pick(rng, (0.0, 1e-4, 1e-3)),
    )
    lanes, ranks = pick(rng, (1, 1, 1, 2)), pick(rng, (1, 1, 2))
    sizes = {"max_num_tokens": pick(rng, (64, 128, 512)), "max_num_seqs": pick(rng, (2, 4, 16))}
    return offloading(
        table,
        memory,
        num_replicas=pick(rng, (1, 2)),
        num_ranks=ranks,
        num_lanes=lanes,
        num_pages=pick(rng, (24, 28, 40)),
        cost=toy_cost(num_stages=lanes, num_ranks=ranks, **sizes)
        if rng.random() < 0.6
        else flat_cost(0, stage_ns=(1_000_000,) * lanes, num_ranks=ranks, **sizes),
        scheduler=policy,
        plans_ahead=bool(rng.random() < 0.4),
        router=pick(rng, (toy_setup(table).router, JoinShortestQueue())),
    )


class Checked(OffloadingAllocator):
    """Checks that the tier holds no more than its size, and that only what it has is loaded."""

    __slots__ = ()

    def check(self) -> None:
        tier = self.tier
        assert tier.used_blocks == sum(entry.blocks for entry in tier._stored.values())
        assert 0 <= tier.used_blocks <= tier.num_blocks
        assert all(entry.readers >= 0 for entry in tier._stored.values())

    def _register(self, holding: Any, blocks: int) -> None:
        super()._register(holding, blocks)
        self.check()

    def load(self, seq: Sequence, num_tokens: int, num_pages: int) -> int:
        end_ns = super().load(seq, num_tokens, num_pages)
        holding = seq.allocation
        assert isinstance(holding, Loaded)
        assert num_tokens < seq.prefill_tokens
        assert holding.reading
        for extent_id in holding.reading:  # each of them has wholly arrived
            assert self.tier.lookup(extent_id, self.now_ns()) > 0
            assert self.tier._stored[extent_id].readers > 0
        return end_ns

    def loaded(self, seq: Sequence) -> None:
        super().loaded(seq)
        self.check()


DRAWS = range(60)


def test_drawn_runs_are_the_same_stepped_and_conserve_pages_and_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("simulator.allocators.policies.OffloadingAllocator", Checked)
    hits = preemptions = 0
    for number in DRAWS:
        setup = draw(number)
        audits: list[Audited] = []
        stepped = run_audited(replace(setup, coalesce=False), audits)
        result = run(setup)
        assert difference(result, stepped, but=BOOKED) == "", number
        assert result.counters == stepped.counters, number
        done = result.status == 0
        assert (done | (result.status == 1)).all(), number
        assert [(a.taken, a.free_pages) for a in audits] == [(0, a.num_pages) for a in audits]
        hits += result.counters["offload_hit_tokens"]
        preemptions += int(result.preemptions.sum())
    assert hits > 5_000
    assert preemptions > 50


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4), st.booleans()), max_size=40))
def test_tier_never_outgrows_itself_and_finds_only_what_was_stored(
    steps: list[tuple[int, int, bool]],
) -> None:
    tier, stored = HostTier(6), set()
    for now_ns, (extent_id, blocks, slow) in enumerate(steps):
        missing = tier.lacks(extent_id, blocks)
        if missing and tier.make_room(extent_id, missing, now_ns):
            tier.store(extent_id, missing, now_ns + 3 * slow)
            stored.add(extent_id)
            assert slow == (tier.lookup(extent_id, now_ns) == 0)  # found when its copy has ended
        assert 0 <= tier.used_blocks <= 6
        for other in range(10):
            assert other in stored or tier.lookup(other, now_ns) == 0


def test_tier_keeps_what_is_being_read_and_evicts_the_oldest() -> None:
    tier = HostTier(3)
    for extent_id in (1, 2, 3):
        tier.store(extent_id, 1, 0)
    tier.pin([1], 1)
    assert tier.make_room(4, 1, 1)
    assert [1, 0, 1] == [tier.lookup(extent_id, 1) for extent_id in (1, 2, 3)]
    assert not tier.make_room(4, 3, 1)
    tier.pin([1], -1)
    assert tier.make_room(4, 3, 1)


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"scheduler": Orca()}, "scheduler vllm_v1 (got Orca)"),
        ({"allocator": Paged()}, "allocator prefix_caching"),
        ({"table": toy_table(0, 3)}, "hash_ids"),
        ({"prefix_caching": False}, "engine.prefix_caching: true"),
    ],
)
def test_what_has_no_prefix_cache_is_refused(changes: dict[str, Any], text: str) -> None:
    setup = replace(offloading(conversation()), **changes)
    with pytest.raises(ConfigError, match=r"engine.kv_offload: expected") as error:
        refuse_clash(setup)
    assert text in str(error.value)


def test_models_with_attention_windows_are_refused() -> None:
    setup = offloading(conversation(), window_pages=((64, 1),))
    with pytest.raises(ConfigError, match="attention windows"):
        engine.run(setup)


# --- as an experiment -------------------------------------------------------------------------


def experiment(size: str) -> Experiment:
    document = read_document(Path("experiments/prefix_cache.yaml"))
    document = document.override("engine.num_blocks", 1200, "")
    document = document.override("workload.num_sessions", 40, "")
    return resolve_experiment(document.override("engine.kv_offload", size, ""))


def test_size_is_of_all_gpus_of_an_attention_rank() -> None:
    """A block of Llama-3.1-8B is 2 MiB over all its GPUs, however it is split."""
    kinds = [engine.prepare(experiment("8 GB")).kinds[0]]
    split = replace(experiment("8 GB"), plan=ParallelPlan(tp=2))
    kinds.append(engine.prepare(split).kinds[0])
    hosts = [kind.host for kind in kinds if kind.host is not None]
    assert [8_000_000_000 // 2**21] * 2 == [host.num_blocks for host in hosts]
    assert [2.0**21, 2.0**20] == [host.block_bytes for host in hosts]


def test_zero_bytes_are_off_and_more_bytes_hit_more() -> None:
    document = read_document(Path("experiments/prefix_cache.yaml"))
    document = document.override("engine.num_blocks", 1200, "")
    never = resolve_experiment(document.override("workload.num_sessions", 40, ""))
    results = [
        simulate(each)
        for each in (never, experiment("0 GB"), experiment("4 GB"), experiment("20 GB"))
    ]
    assert difference(results[0], results[1]) == ""
    assert {} == results[0].counters == results[1].counters
    cached = [int(result.cached_tokens.sum()) for result in results]
    assert cached[1] < cached[2] < cached[3]


def test_room_for_less_than_a_block_is_refused() -> None:
    with pytest.raises(ConfigError, match="room for one KV block, 2097152 bytes"):
        engine.prepare(experiment("1 MB"))
