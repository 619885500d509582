"""Who shares which KV blocks after a fork: block tables with reference counts and copy-on-write.

A block that several sequences refer to is copied by each of them but the last when a token is to be
written into it (PagedAttention, SOSP'23, section 4.4). Sequences that are sampled in parallel share
their prompt and nothing else, so a count is the whole state. Beams go on from one another, so their
tables form a tree; all beams of a search are equally long, so it is kept by depth.
"""

from __future__ import annotations

from simulator.request import Sequence


class Samples:
    """Sequences sampled from one prompt; numbers of blocks."""

    __slots__ = ("_block_tokens", "_prompt_tokens", "members", "shared", "unwritten")

    def __init__(self, members: list[Sequence], block_tokens: int) -> None:
        self.members = members  # unfinished
        self._prompt_tokens = members[0].prompt_tokens
        self._block_tokens = block_tokens
        self.shared = -(-self._prompt_tokens // block_tokens)  # held by all members
        self.unwritten = self._prompt_tokens % block_tokens > 0  # the last of them is partly filled

    @property
    def copies(self) -> int:
        """Blocks that the coming token makes them copy."""
        return self.copies_of(len(self.members))

    def copies_of(self, num_members: int) -> int:
        """That of so many members, as of those that are on the host."""
        return num_members - 1 if self.unwritten and num_members else 0

    @property
    def saved(self) -> int:
        """Blocks that they would hold beyond theirs if they shared none."""
        return (len(self.members) - 1) * self.shared if self.members else 0

    def write(self) -> None:
        """Every member writes its next token: of the shared blocks only full ones stay shared."""
        self.shared = self._prompt_tokens // self._block_tokens
        self.unwritten = False

    def leave(self, seq: Sequence, blocks: int) -> int:
        """`seq` gives up its table of so many blocks; returns those that nobody else refers to."""
        self.members.remove(seq)
        return blocks - self.shared if self.members else blocks


class BeamTree:
    """The beams of one search; `rows[j][i]` names the block of beam i after the common ones."""

    __slots__ = ("_block_tokens", "_distinct", "_parents", "_step", "common", "held", "members",
                 "rows", "tokens", "width")  # fmt: skip

    def __init__(
        self, members: list[Sequence], block_tokens: int, parents: list[list[int]]
    ) -> None:
        self.members = members
        self.width = len(members)
        self.tokens = members[0].prompt_tokens  # of each beam, with KV
        self._block_tokens = block_tokens
        self._parents = parents  # after each token, the beam that each goes on from
        self._step = 0
        self.common = -(-self.tokens // block_tokens)  # blocks that all beams refer to
        self.rows: list[list[int]] = []  # equal names = one block
        self._distinct: list[int] = []  # names in each row
        self.held = self.common  # blocks that some beam refers to

    @property
    def copies(self) -> int:
        """Blocks that the coming token makes them copy."""
        if self.tokens % self._block_tokens == 0:
            return 0  # each begins a block of its own
        return self.width - (self._distinct[-1] if self.rows else 1)

    def copies_of(self, num_members: int) -> int:
        return self.copies

    @property
    def saved(self) -> int:
        if len(self.members) < self.width:
            return 0  # they leave together, one by one
        return self.width * (self.common + len(self.rows)) - self.held

    def write(self) -> None:
        """Every beam writes its next token into a block that is its own."""
        self.held += self.copies or (self.tokens % self._block_tokens == 0) * self.width
        if self.tokens % self._block_tokens:
            if self.rows:
                self.rows.pop()
                self._distinct.pop()
            else:
                self.common -= 1
        self.rows.append(list(range(self.width)))
        self._distinct.append(self.width)
        self.tokens += 1

    def step(self) -> int:
        """The best continuations are chosen; returns the blocks of beams that nobody continues."""
        before = self.held
        parents = self._parents[self._step]
        self._step += 1
        rows = [[row[parent] for parent in parents] for row in self.rows]
        distinct = [len(set(row)) for row in rows]
        self.held = self.common + sum(distinct)
        num_common = distinct.count(1)  # the first: beams that share a block share all before it
        self.common += num_common
        self.rows, self._distinct = rows[num_common:], distinct[num_common:]
        return before - self.held

    def leave(self, seq: Sequence, blocks: int) -> int:
        """As of samples; all beams leave together, so the last one returns everything."""
        self.members.remove(seq)
        return 0 if self.members else self.held
