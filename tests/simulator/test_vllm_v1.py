"""The golden script of vLLM's V1 scheduler (behaviour of 0.33): what each iteration computes.

A plan is written {request: tokens}. Iterations take 1 ms and blocks hold 10 tokens unless said.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.allocators import PrefixCachingAllocator, PrefixIndex
from simulator.engine import run
from simulator.errors import ConfigError
from simulator.request import RequestTable, Sequence
from simulator.schedulers import VllmV1
from tests.simulator.toys import toy_setup
from tests.simulator.watch import Planned, flat_cost, plans_of

MS = 1_000_000


def requests(*rows: tuple[int, ...], **columns: Any) -> RequestTable:
    """One row a request: arrival in ms, prompt tokens, output tokens."""
    arrival, prompt, output = np.array(rows, dtype=np.int64).T
    return RequestTable(
        arrival_ns=arrival * MS, prompt_tokens=prompt, output_tokens=output, **columns
    )


def plans(
    table: RequestTable,
    *,
    budget: int = 100,
    seqs: int = 8,
    pages: int = 1000,
    block_tokens: int = 10,
    **scheduler: Any,
) -> list[Planned]:
    cost = flat_cost(MS, max_num_tokens=budget, max_num_seqs=seqs)
    return plans_of(
        table,
        cost=cost,
        num_pages=pages,
        block_tokens=block_tokens,
        scheduler=VllmV1(**scheduler),
    )


def tokens(table: RequestTable, **limits: Any) -> list[dict[int, int]]:
    return [plan.tokens for plan in plans(table, **limits)]


# --- the token budget ---------------------------------------------------------------------------


def test_vllm_0_33_chunked_prefill_splits_a_prompt_over_what_the_budget_leaves() -> None:
    assert tokens(requests((0, 60, 2), (0, 60, 2), (0, 60, 2))) == [
        {0: 60, 1: 40},
        {0: 1, 1: 20, 2: 60},
        {1: 1, 2: 1},
    ]


def test_vllm_0_33_decodes_take_their_tokens_of_the_budget_before_any_prompt() -> None:
    assert tokens(requests((0, 5, 4), (0, 5, 4), (1, 30, 1)), budget=20) == [
        {0: 5, 1: 5},
        {0: 1, 1: 1, 2: 18},
        {0: 1, 1: 1, 2: 12},
        {0: 1, 1: 1},
    ]


def test_vllm_0_33_a_running_prompt_goes_on_before_a_waiting_one_is_admitted() -> None:
    assert tokens(requests((0, 150, 1), (1, 80, 1))) == [{0: 100}, {0: 50, 1: 50}, {1: 30}]


def test_vllm_0_33_a_prompt_samples_its_first_token_in_the_iteration_that_ends_it() -> None:
    table = requests((0, 150, 3))
    assert tokens(table) == [{0: 100}, {0: 50}, {0: 1}, {0: 1}]
    result = run(toy_setup(table, cost=flat_cost(MS, max_num_tokens=100)))
    assert (result.first_token_ns[0], result.finish_ns[0]) == (2 * MS, 4 * MS)


def test_vllm_0_33_long_prefill_token_threshold_bounds_the_chunk_of_one_prompt() -> None:
    table = requests((0, 90, 1), (0, 90, 1), (0, 20, 1))
    assert tokens(table, long_prefill_token_threshold=40) == [
        {0: 40, 1: 40, 2: 20},
        {0: 40, 1: 40},
        {0: 10, 1: 10},
    ]


def test_vllm_0_33_without_chunked_prefill_a_prompt_waits_until_it_fits_whole() -> None:
    table = requests((0, 60, 3), (0, 60, 1), (0, 10, 1))
    assert tokens(table, chunked_prefill=False) == [{0: 60}, {0: 1, 1: 60, 2: 10}, {0: 1}]


def test_vllm_0_33_without_chunked_prefill_a_prompt_beyond_the_budget_is_refused() -> None:
    table = requests((0, 120, 1), (0, 50, 1))
    assert tokens(table, chunked_prefill=False) == [{1: 50}]


# --- admission ----------------------------------------------------------------------------------


def test_vllm_0_33_max_num_seqs_bounds_the_running_requests() -> None:
    table = requests((0, 5, 2), (0, 5, 3), (0, 5, 1), (0, 5, 1))
    assert tokens(table, seqs=2) == [{0: 5, 1: 5}, {0: 1, 1: 1}, {1: 1, 2: 5}, {3: 5}]


def test_vllm_0_33_fcfs_head_of_line_blocks_a_smaller_request_behind_it() -> None:
    """10 blocks: request 1 needs 6 while 0 holds 5; request 2 would need 1."""
    table = requests((0, 45, 3), (1, 60, 1), (1, 5, 1))
    assert tokens(table, pages=10) == [{0: 45}, {0: 1}, {0: 1}, {1: 60, 2: 5}]


def test_vllm_0_33_reserve_full_prompt_admits_only_where_the_whole_prompt_has_pages() -> None:
    """12 blocks, budget 50: request 1's first chunk of 5 fits beside request 0, its 80 do not."""
    table = requests((0, 45, 2), (0, 80, 1))
    assert tokens(table, budget=50, pages=12) == [{0: 45}, {0: 1}, {1: 50}, {1: 30}]
    assert tokens(table, budget=50, pages=12, reserve_full_prompt=False) == [
        {0: 45, 1: 5},
        {0: 1, 1: 49},
        {1: 26},
    ]


# --- preemption ---------------------------------------------------------------------------------


def test_vllm_0_33_preempts_the_youngest_for_recomputation_and_admits_nobody_then() -> None:
    """6 blocks: both decodes need a fourth block at 31 tokens, so request 1 gives way.

    Request 2 could be admitted in that iteration (3 blocks are free), but not in a step that
    preempted; request 1 resumes at the head of the queue with its prompt and its two tokens.
    """
    table = requests((0, 29, 5), (0, 29, 5), (2, 5, 1))
    planned = plans(table, pages=6)
    assert [plan.tokens for plan in planned] == [
        {0: 29, 1: 29},
        {0: 1, 1: 1},
        {0: 1},
        {0: 1},
        {0: 1},
        {1: 31, 2: 5},
        {1: 1},
        {1: 1},
    ]
    assert [plan.preempted for plan in planned] == [[], [], [1], [], [], [], [], []]


def test_vllm_0_33_a_preempted_request_resumes_before_older_waiting_ones() -> None:
    """Request 2 waits since 1 ms; its 2 blocks are free after the preemption, but 1 is first."""
    planned = plans(requests((0, 29, 4), (0, 29, 4), (1, 15, 1)), pages=6)
    assert [(plan.tokens, plan.preempted) for plan in planned] == [
        ({0: 29, 1: 29}, []),
        ({0: 1, 1: 1}, []),
        ({0: 1}, [1]),
        ({0: 1}, []),
        ({1: 31, 2: 15}, []),
        ({1: 1}, []),
    ]


def test_vllm_0_33_a_decode_preempts_an_unfinished_prompt_that_came_later() -> None:
    """7 blocks without reservation: request 0's fourth block costs request 1 its first chunk.

    It is not admitted again for a smaller chunk: 6 blocks are wanted and 3 are free.
    """
    table = requests((0, 30, 3), (0, 60, 1))
    planned = plans(table, budget=70, pages=7, reserve_full_prompt=False)
    assert [(plan.tokens, plan.preempted) for plan in planned] == [
        ({0: 30, 1: 40}, []),
        ({0: 1}, [1]),
        ({0: 1}, []),
        ({1: 60}, []),
    ]


def test_vllm_0_33_recomputation_covers_prompt_and_generated_tokens_in_chunks() -> None:
    """7 blocks: request 1 lacks its fourth for its third token, and starts over with 31 tokens."""
    planned = plans(requests((0, 29, 5), (0, 29, 5)), budget=20, pages=7)
    assert [(plan.tokens, plan.preempted) for plan in planned] == [
        ({0: 20}, []),
        ({0: 9, 1: 11}, []),
        ({0: 1, 1: 18}, []),
        ({0: 1, 1: 1}, []),
        ({0: 1}, [1]),
        ({0: 1}, []),
        ({1: 20}, []),
        ({1: 11}, []),
        ({1: 1}, []),
        ({1: 1}, []),
    ]


def test_vllm_0_33_a_prompt_that_outgrows_the_pages_preempts_itself_and_waits_a_step() -> None:
    """8 blocks: request 0 holds 4, request 1 needs 6; its first 34 tokens would fit again at once.

    As vLLM without reservation does: it starts over again and again until request 0 ends.
    """
    table = requests((0, 30, 6), (0, 60, 1))
    planned = plans(table, budget=35, pages=8, reserve_full_prompt=False)
    assert [(plan.tokens, plan.preempted) for plan in planned] == [
        ({0: 30, 1: 5}, []),
        ({0: 1, 1: 34}, []),
        ({0: 1}, [1]),
        ({0: 1, 1: 34}, []),
        ({0: 1}, [1]),
        ({0: 1, 1: 34}, []),
        ({1: 26}, []),
    ]


def test_vllm_0_33_preempts_as_many_of_the_youngest_as_the_older_need() -> None:
    """4 requests of one block each in a pool of 4, all due for a second one at 11 tokens."""
    planned = plans(requests(*[(0, 9, 4)] * 4), pages=4)
    assert [(plan.tokens, plan.preempted) for plan in planned[:4]] == [
        ({0: 9, 1: 9, 2: 9, 3: 9}, []),
        ({0: 1, 1: 1, 2: 1, 3: 1}, []),
        ({0: 1, 1: 1}, [3, 2]),
        ({0: 1, 1: 1}, []),
    ]
    assert planned[4].tokens == {2: 11, 3: 11}


# --- priorities ---------------------------------------------------------------------------------


def test_vllm_0_33_priority_policy_admits_smaller_values_first_then_the_earlier() -> None:
    table = requests(*[(0, 5, 1)] * 4, priority=np.array([2, 1, 2, 0]))
    assert tokens(table, seqs=1, policy="priority") == [{3: 5}, {1: 5}, {0: 5}, {2: 5}]


def test_vllm_0_33_priority_policy_preempts_the_largest_value_however_old() -> None:
    """6 blocks: the decodes need a fourth block each; request 0 is older, but less urgent."""
    table = requests((0, 29, 4), (0, 29, 4), priority=np.array([1, 0]))
    planned = plans(table, pages=6, policy="priority")
    assert [(plan.tokens, plan.preempted) for plan in planned] == [
        ({0: 29, 1: 29}, []),
        ({0: 1, 1: 1}, []),
        ({1: 1}, [0]),
        ({1: 1}, []),
        ({0: 31}, []),
        ({0: 1}, []),
    ]


def test_vllm_0_33_priority_policy_preempts_the_youngest_of_equal_priority() -> None:
    table = requests(*[(0, 29, 4)] * 3, priority=np.array([1, 1, 0]))
    planned = plans(table, pages=9, policy="priority")
    assert [plan.preempted for plan in planned][:4] == [[], [], [1], []]


def test_vllm_0_33_nobody_is_admitted_in_a_step_that_preempts() -> None:
    """Request 2 is more urgent than the victim and needs one of the 2 blocks left."""
    table = requests((0, 29, 4), (0, 29, 4), (1, 5, 1), priority=np.array([0, 2, 1]))
    planned = plans(table, pages=6, policy="priority")
    assert [(plan.tokens, plan.preempted) for plan in planned][:4] == [
        ({0: 29, 1: 29}, []),
        ({0: 1, 1: 1}, []),
        ({0: 1}, [1]),
        ({0: 1, 2: 5}, []),
    ]


def test_vllm_0_33_a_prompt_preempts_a_decode_that_was_given_a_page_for_this_step() -> None:
    """6 blocks: in step 3 request 0 is given its second, and the prompt needs both and one more."""
    table = requests((0, 9, 5), (1, 60, 1), priority=np.array([1, 0]))
    planned = plans(table, budget=30, pages=6, policy="priority", reserve_full_prompt=False)
    assert [(plan.tokens, plan.preempted) for plan in planned][:5] == [
        ({0: 9}, []),
        ({0: 1, 1: 29}, []),
        ({1: 29}, [0]),
        ({1: 2}, []),
        ({0: 11}, []),
    ]


def test_vllm_0_33_a_chunk_given_in_this_step_is_taken_back_with_its_request() -> None:
    """8 blocks, chunks of 20: the prompt of request 1 takes those that request 0 has just got."""
    table = requests((0, 60, 1), (1, 60, 1), priority=np.array([1, 0]))
    scheduler = VllmV1(
        policy="priority", long_prefill_token_threshold=20, reserve_full_prompt=False
    )
    cost = flat_cost(MS, max_num_tokens=40)
    limits: dict[str, Any] = {"cost": cost, "num_pages": 8, "block_tokens": 10}
    planned = plans_of(table, scheduler=scheduler, **limits)
    assert [(plan.tokens, plan.preempted) for plan in planned] == [
        ({0: 20}, []),
        ({0: 20, 1: 20}, []),
        ({1: 20}, [0]),
        ({0: 20, 1: 20}, []),
        ({0: 20}, []),
        ({0: 20}, []),
    ]
    log = run(toy_setup(table, scheduler=scheduler, **limits)).lanes[0].segments
    assert log["prefill_tokens"].tolist() == [20, 40, 20, 40, 20, 20]
    first, second, third = (20 * done + 210 for done in (0, 20, 40))
    pairs = [first, second + first, second, third + first, second, third]
    assert log["prefill_pairs"].tolist() == pairs


def test_vllm_0_33_priorities_are_ignored_by_the_fcfs_policy() -> None:
    table = requests(*[(0, 5, 1)] * 3, priority=np.array([2, 1, 0]))
    assert tokens(table, seqs=1) == [{0: 5}, {1: 5}, {2: 5}]


def test_a_policy_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"scheduler\.policy: expected 'fcfs' or 'priority'"):
        VllmV1(policy="lifo")


# --- the prefix cache in the scheduler ----------------------------------------------------------


def hashed(rows: list[tuple[int, int, int]], ids: list[list[int]], **columns: Any) -> RequestTable:
    """Requests with an id for each 10 tokens of their prompt."""
    return requests(
        *rows,
        hash_ids=np.array([i for each in ids for i in each], dtype=np.int64),
        hash_offsets=np.cumsum([0, *(len(each) for each in ids)]),
        hash_block_tokens=10,
        **columns,
    )


def test_vllm_0_33_a_prefix_hit_is_never_the_whole_prompt() -> None:
    """The same 30 tokens again: the last block is computed again, to sample from."""
    table = hashed([(0, 30, 1), (5, 30, 1)], [[1, 2, 3], [1, 2, 3]])
    assert tokens(table) == [{0: 30}, {1: 10}]


def test_vllm_0_33_a_prefix_hit_is_the_common_whole_blocks() -> None:
    table = hashed(
        [(0, 35, 1), (5, 45, 1), (9, 35, 1)], [[1, 2, 3, 4], [1, 2, 5, 6, 7], [1, 9, 3, 4]]
    )
    assert tokens(table) == [{0: 35}, {1: 25}, {2: 25}]


def test_vllm_0_33_blocks_can_be_hit_in_the_iteration_that_computes_them() -> None:
    table = hashed([(0, 35, 1), (0, 35, 1)], [[1, 2, 3, 4], [1, 2, 3, 5]])
    assert tokens(table) == [{0: 35, 1: 5}]


def test_vllm_0_33_evicts_the_least_recently_freed_a_requests_last_block_first() -> None:
    """5 blocks. Request 0 leaves 3, 2, 1 behind the two never used, which request 1 takes.

    Request 2 evicts block 3 alone, so that request 3 still hits 20 of its 35 tokens.
    """
    ids = [[1, 2, 3], [4, 5], [6], [1, 2, 3, 9]]
    table = hashed([(0, 30, 1), (2, 20, 1), (4, 10, 1), (6, 35, 1)], ids)
    assert tokens(table, pages=5) == [{0: 30}, {1: 20}, {2: 10}, {3: 15}]


def test_vllm_0_33_a_hit_makes_blocks_recently_used() -> None:
    """4 blocks: request 2 hits block 1, so request 3 evicts 3 and 4 and request 4 hits 1 again."""
    ids = [[1, 2], [3, 4], [1, 5], [6, 7], [1, 8]]
    table = hashed([(2 * i, 15, 1) for i in range(5)], ids)
    assert tokens(table, pages=4) == [{0: 15}, {1: 15}, {2: 5}, {3: 15}, {4: 5}]


def test_vllm_0_33_a_preempted_request_finds_its_own_blocks_again() -> None:
    """6 blocks, as in the preemption above: request 1 comes back for 31 tokens, 2 blocks of which
    are still cached (the third was evicted for request 0)."""
    table = hashed([(0, 29, 4), (0, 29, 4)], [[1, 2, 3], [4, 5, 6]])
    planned = plans(table, pages=6)
    assert [(plan.tokens, plan.preempted) for plan in planned] == [
        ({0: 29, 1: 29}, []),
        ({0: 1, 1: 1}, []),
        ({0: 1}, [1]),
        ({0: 1}, []),
        ({1: 11}, []),
        ({1: 1}, []),
    ]


# --- the block pool -----------------------------------------------------------------------------

BLOCK = 4
POOL = 14


class Blocks:
    """vLLM's block pool, block by block: a free queue, reference counts, one hash a full block.

    The rules of its 0.33 release: freed blocks join the tail, a request's last block first; new
    blocks come from the head and lose their hash; a hit takes its blocks out of the queue.
    """

    def __init__(self, num_blocks: int) -> None:
        self.queue = list(range(num_blocks))  # head first
        self.refs = [0] * num_blocks
        self.hash_of: dict[int, int] = {}
        self.block_of: dict[int, int] = {}
        self.held: dict[int, list[int]] = {}

    def hit(self, ids: list[int], num_tokens: int) -> list[int]:
        found = []
        for block_hash in ids[: (num_tokens - 1) // BLOCK]:
            if block_hash not in self.block_of:
                break
            found.append(self.block_of[block_hash])
        return found

    def admit(self, request: int, hit: list[int]) -> None:
        for block in hit:
            if self.refs[block] == 0:
                self.queue.remove(block)
            self.refs[block] += 1
        self.held[request] = list(hit)

    def grow(self, request: int, num_tokens: int) -> None:
        while len(self.held[request]) * BLOCK < num_tokens:
            block = self.queue.pop(0)
            if block in self.hash_of:
                del self.block_of[self.hash_of.pop(block)]
            self.refs[block] = 1
            self.held[request].append(block)

    def name(self, request: int, ids: list[int], num_tokens: int) -> None:
        for block, block_hash in zip(self.held[request], ids[: num_tokens // BLOCK], strict=False):
            if block not in self.hash_of:
                assert block_hash not in self.block_of, "computed twice at the same time"
                self.hash_of[block] = block_hash
                self.block_of[block_hash] = block

    def free(self, request: int) -> None:
        for block in reversed(self.held.pop(request)):
            self.refs[block] -= 1
            if self.refs[block] == 0:
                self.queue.append(block)


class Both:
    """One stream of requests through the reference and through `PrefixCachingAllocator`.

    The allocator is used as a lane uses it. Its two simplifications are kept out of the stream: a
    block that two requests compute at the same time is stored once (so a request whose text
    somebody is computing waits for that), and an id is cached as one extent (so an id is a block).
    """

    def __init__(self, texts: list[tuple[int, int]]) -> None:
        """`texts`: group and prompt tokens of each request; a group's prompts begin alike."""
        self.prompt = [tokens for _, tokens in texts]
        self.group = [group for group, _ in texts]
        self.ids = [[g * 100 + j for j in range(-(-tokens // BLOCK))] for g, tokens in texts]
        for i, tokens in enumerate(self.prompt):
            if tokens % BLOCK:
                self.ids[i][-1] = 10_000 + i  # a part of a block is its own content
        index = PrefixIndex(
            RequestTable(
                arrival_ns=np.zeros(len(texts), dtype=np.int64),
                prompt_tokens=np.array(self.prompt),
                output_tokens=np.ones(len(texts), dtype=np.int64),
                hash_ids=np.array([i for ids in self.ids for i in ids]),
                hash_offsets=np.cumsum([0, *map(len, self.ids)]),
                hash_block_tokens=BLOCK,
            ),
            BLOCK,
        )
        self.reference = Blocks(POOL)
        self.allocator = PrefixCachingAllocator(POOL, index, BLOCK)
        self.live: dict[int, Sequence] = {}
        self.hits = self.evictions = 0

    def check(self) -> None:
        assert self.allocator.free_pages == len(self.reference.queue)

    def admit(self, i: int, first_chunk: int) -> None:
        seq = Sequence(i, self.prompt[i], 1000)
        tokens, held, unpinned = self.allocator.match(seq)
        hit = self.reference.hit(self.ids[i], self.prompt[i])
        assert tokens == held * BLOCK == len(hit) * BLOCK
        assert unpinned == sum(self.reference.refs[block] == 0 for block in hit)
        needed = -(-self.prompt[i] // BLOCK) - held
        if needed + unpinned > self.allocator.free_pages:
            return
        self.hits += held
        self.allocator.claim(seq, held)
        self.reference.admit(i, hit)
        self.check()
        seq.blocks, seq.computed_tokens = held, tokens
        self.live[i] = seq
        self.compute(i, first_chunk)

    def compute(self, i: int, num_tokens: int) -> None:
        """More of the prompt, or beyond it the tokens of so many decodes."""
        seq = self.live[i]
        if seq.computed_tokens < self.prompt[i]:
            num_tokens = min(num_tokens, self.prompt[i] - seq.computed_tokens)
        total = seq.computed_tokens + num_tokens
        pages = -(-total // BLOCK) - seq.blocks
        if pages > self.allocator.free_pages:
            return
        cached = len(self.reference.block_of)
        self.allocator.take(pages)
        self.reference.grow(i, total)
        self.evictions += cached - len(self.reference.block_of)
        seq.blocks += pages
        seq.computed_tokens = total
        self.allocator.computed(seq, min(total, self.prompt[i]))
        self.reference.name(i, self.ids[i], min(total, self.prompt[i]))
        self.check()

    def finish_group(self, group: int) -> bool:
        """Whether nobody is half-way through a prompt of that group."""
        return all(
            seq.computed_tokens >= self.prompt[i]
            for i, seq in self.live.items()
            if self.group[i] == group
        )

    def free(self, i: int) -> None:
        seq = self.live.pop(i)
        self.allocator.release(seq, seq.blocks)
        self.reference.free(i)
        self.check()


TEXTS = st.tuples(st.integers(0, 2), st.integers(1, 30).filter(lambda n: n % BLOCK))
MOVES = st.tuples(st.sampled_from("aaccf"), st.integers(0, 7), st.integers(1, 12))


def play(texts: list[tuple[int, int]], moves: list[tuple[str, int, int]]) -> Both:
    both = Both(texts)
    waiting = list(range(len(texts)))
    for move, which, amount in moves:
        live = list(both.live)
        if move == "a" and waiting and both.finish_group(both.group[waiting[0]]):
            i = waiting.pop(0)
            both.admit(i, amount)
            if i not in both.live:
                waiting.append(i)
        elif move == "c" and live:
            both.compute(live[which % len(live)], amount)
        elif move == "f" and live:
            both.free(live[which % len(live)])
    for i in list(both.live):
        both.free(i)
    assert both.allocator.free_pages == POOL
    return both


@settings(derandomize=True, deadline=None, max_examples=300, database=None)
@given(st.lists(TEXTS, min_size=4, max_size=25), st.lists(MOVES, min_size=20, max_size=120))
def test_prefix_caching_equals_vllm_0_33s_block_pool(
    texts: list[tuple[int, int]], moves: list[tuple[str, int, int]]
) -> None:
    """Same hits and same free blocks after every move, block by block."""
    play(texts, moves)


def test_the_block_pool_is_compared_through_hits_and_evictions() -> None:
    hits = evictions = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        texts = [(int(rng.integers(3)), int(rng.integers(1, 31))) for _ in range(60)]
        texts = [(group, num + (num % BLOCK == 0)) for group, num in texts]
        moves = [
            ("aaccf"[int(rng.integers(5))], int(rng.integers(8)), int(rng.integers(1, 31)))
            for _ in range(300)
        ]
        both = play(texts, moves)
        hits += both.hits
        evictions += both.evictions
    assert hits > 2000
    assert evictions > 2000
