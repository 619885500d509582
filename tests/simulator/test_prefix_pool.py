"""The prefix cache against vLLM 0.33's block pool, kept block by block as vLLM keeps it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.allocators.prefix import PrefixCachingAllocator, PrefixIndex
from simulator.request import RequestTable, Sequence

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

    The allocator is used as a lane uses it. Its simplifications are kept out of the stream: a block
    that two requests compute at the same time is stored once (so a request whose text somebody is
    computing waits for that), an id is cached as one extent (so an id is a block here), and the
    last block of a prompt that is hit whole is shared, where vLLM computes a second copy (so no
    prompt is whole blocks).
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
