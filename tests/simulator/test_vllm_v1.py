"""The golden script of vLLM's V1 scheduler (behaviour of 0.33): what each iteration computes.

A plan is written {request: tokens}. Iterations take 1 ms and blocks hold 10 tokens unless said.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from simulator.engine import run
from simulator.errors import ConfigError
from simulator.request import RequestTable
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

    It waits at the head of the queue for 4 free blocks, then recomputes its prompt and two tokens;
    request 2, which came last, waits behind it.
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
    are still cached (the third went to request 0)."""
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
