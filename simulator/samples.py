"""Requests that are answered more than once: rows of samples for a run, and back.

The engine runs a table whose rows are samples, those of a request one after the other. Where the
scheduler forks sequences (vLLM V0) the first of them arrives alone and the others begin at the end
of its prompt; elsewhere each is a request of its own (as the children of vLLM V1's ParentRequest),
and they share what a prefix cache shares.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from simulator.recorder import COMPLETED, Result
from simulator.request import Ints, RequestTable, Sequence

NEVER = np.iinfo(np.int64).max


def sample_rows(table: RequestTable, block_tokens: int = 0) -> tuple[RequestTable, Ints]:
    """The table with a row a sample, and the request of each row.

    `block_tokens`: name prompts that have no ids by blocks of so many tokens, for a prefix cache.
    """
    counts = table.num_samples
    assert counts is not None
    of = np.repeat(np.arange(len(table)), counts)
    first = np.cumsum(counts) - counts
    parent = None
    if table.parent is not None:
        parent = np.where(table.parent >= 0, first[table.parent], -1)[of]
    ids, offsets, size = _prompt_ids(table, of, block_tokens)
    lengths = table.output_tokens[of] if table.sample_tokens is None else table.sample_tokens
    rows = replace(
        table,
        arrival_ns=table.arrival_ns[of],
        prompt_tokens=table.prompt_tokens[of],
        output_tokens=lengths,
        priority=_rows(table.priority, of),
        client=_rows(table.client, of),
        session=_rows(table.session, of),
        parent=parent,
        delay_ns=_rows(table.delay_ns, of),
        hash_ids=ids,
        hash_offsets=offsets,
        hash_block_tokens=size,
        num_samples=None,
        sample_tokens=None,
        leader=first[of],
    )
    return rows, of


def _rows(column: Ints | None, index: Ints) -> Ints | None:
    return None if column is None else column[index]


def _prompt_ids(
    table: RequestTable, of: Ints, block_tokens: int
) -> tuple[Ints | None, Ints | None, int]:
    """Ids, offsets and their block of every row; of requests with several answers the prompt's."""
    ids, offsets, size = table.hash_ids, table.hash_offsets, table.hash_block_tokens
    assert table.num_samples is not None
    if ids is None or offsets is None:
        if not block_tokens:
            return None, None, 0
        size = block_tokens
        counts = table.prompt_tokens // size
        starts = np.cumsum(counts) - counts
        ids = np.arange(int(counts.sum()), dtype=np.int64)
    else:
        starts, counts = offsets[:-1], np.diff(offsets)
        of_prompt = np.minimum(counts, -(-table.prompt_tokens // size))
        counts = np.where(table.num_samples > 1, of_prompt, counts)
    mine = counts[of]
    ends = np.concatenate(([0], np.cumsum(mine)))
    flat = np.repeat(starts[of] - ends[:-1], mine) + np.arange(ends[-1])
    return ids[flat], ends, size


def whole_requests(fits: NDArray[np.bool_], leader: Ints | None) -> NDArray[np.bool_]:
    """Rows whose request fits with all its samples."""
    if leader is None:
        return fits
    misfits = np.bincount(leader, weights=~fits, minlength=len(leader))
    whole: NDArray[np.bool_] = misfits[leader] == 0
    return whole


def by_request(result: Result, table: RequestTable, forks: bool) -> Result:
    """The result of a table's requests from that of their samples, which it keeps.

    A request is sent and admitted with the first of its samples, has its first token with the
    first of any, and is finished with the last. `forks`: its samples were preempted together.
    """
    leader = result.table.leader
    assert leader is not None
    first = np.flatnonzero(leader == np.arange(len(leader)))
    if forks:  # they have been there since their first one came
        names = ("sent_ns", "scheduled_ns", "target", "cached_tokens")
        result = replace(result, **{name: getattr(result, name)[leader] for name in names})
    status = np.maximum.reduceat(result.status, first)
    finish_ns = np.maximum.reduceat(result.finish_ns, first)
    together = np.maximum if forks else np.add
    return replace(
        result,
        table=table,
        status=status,
        sent_ns=result.sent_ns[first],
        scheduled_ns=_earliest(result.scheduled_ns, first),
        first_token_ns=_earliest(result.first_token_ns, first),
        finish_ns=np.where(status == COMPLETED, finish_ns, -1),
        cached_tokens=result.cached_tokens[first],
        preemptions=together.reduceat(result.preemptions, first),
        target=result.target[first],
        asked_tokens=_total(result.asked_tokens, first),
        given_tokens=_total(result.given_tokens, first),
        samples=result,
    )


def _total(column: Ints | None, first: Ints) -> Ints | None:
    return None if column is None else np.add.reduceat(column, first)


def _earliest(times_ns: Ints, first: Ints) -> Ints:
    """Of each request, -1 where it never happened."""
    earliest = np.minimum.reduceat(np.where(times_ns < 0, NEVER, times_ns), first)
    return np.where(earliest == NEVER, -1, earliest)


class Families:
    """The sequences that fork from the first of a request's."""

    __slots__ = ("_output", "_sizes", "table")

    def __init__(self, table: RequestTable) -> None:
        assert table.leader is not None
        self.table = table
        self._sizes: list[int] = np.bincount(table.leader, minlength=len(table)).tolist()
        self._output: list[int] = table.output_tokens.tolist()

    def num_more(self, seq: Sequence) -> int:
        """Sequences that will fork from it at the end of its prompt."""
        return 0 if seq.generated_tokens else max(0, self._sizes[seq.id] - 1)

    def fork(self, seq: Sequence) -> list[Sequence]:
        """The other sequences of a request, as far as `seq` is at the end of its prompt."""
        siblings = []
        for row in range(seq.id + 1, seq.id + self._sizes[seq.id]):
            sibling = Sequence(row, seq.prompt_tokens, self._output[row], seq.priority)
            sibling.computed_tokens, sibling.cached_tokens = seq.computed_tokens, seq.cached_tokens
            sibling.blocks, sibling.lane = seq.blocks, seq.lane
            siblings.append(sibling)
        return siblings
