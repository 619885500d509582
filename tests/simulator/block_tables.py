"""Block tables as PagedAttention describes them, one list of blocks a sequence: for comparison.

It follows what a scheduler has planned (who runs, who decodes) and knows nothing of the engine's
counts: a fork copies a table, and a token that goes into a block that others hold copies it first.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from simulator.request import RequestTable, Sequence


class BlockTables:
    """The tables of one rank's sequences; `rows` has a row a sample."""

    def __init__(self, rows: RequestTable, block_tokens: int) -> None:
        assert rows.leader is not None
        self.rows = rows
        self.leader: list[int] = rows.leader.tolist()
        self.groups: dict[int, list[int]] = {}
        for row, first in enumerate(self.leader):
            self.groups.setdefault(first, []).append(row)
        self.block_tokens = block_tokens
        self.tables: dict[int, list[int]] = {}  # of sequences on the GPU
        self.host: dict[int, list[int]] = {}  # of the others: who shares what
        self.alone: set[int] = set()  # requests whose sequences were recomputed one by one
        self._seqs: dict[int, Sequence] = {}
        self._chosen: Counter[int] = Counter()  # selections of a search, by its first row
        self._last_block = 0

    def references(self) -> Counter[int]:
        """How many sequences hold each block."""
        return Counter(block for table in self.tables.values() for block in table)

    def planned(self, lane: Any, granted: bool) -> None:
        """The scheduler has planned `lane`'s coming iteration."""
        running = {seq.id: seq for seq in lane.running()}
        prefilling = {s.id for each in lane.rank.lanes.values() for s in each.prefilling}
        self._seqs |= running
        for row in running.keys() - prefilling:
            self._fork(row)
        if self.rows.beams is not None:
            self._choose(lane.rank, running)
        for row in self.tables.keys() - running.keys():
            self.host[row] = self.tables.pop(row)
        self._wake(running.keys() - prefilling)
        for row in prefilling - self.tables.keys():
            self._begin(running[row])
        if granted:
            for row, seq in running.items():
                if seq.lane == lane.key and row not in prefilling:
                    self._write(row, lane.decodes.context(seq) - 1)

    def _new(self) -> int:
        self._last_block += 1
        return self._last_block

    def _fork(self, row: int) -> None:
        if row in self.tables or row in self.host:
            return
        first = self.leader[row]
        place = self.tables if first in self.tables else self.host
        place[row] = list(place[first])

    def _begin(self, seq: Sequence) -> None:
        self.host.pop(seq.id, None)
        if seq.generated_tokens:
            self.alone.add(self.leader[seq.id])
        count = -(-seq.prefill_tokens // self.block_tokens)
        self.tables[seq.id] = [self._new() for _ in range(count)]

    def _choose(self, rank: Any, running: dict[int, Sequence]) -> None:
        """Beams that have gained a token go on from those that were chosen after it."""
        assert self.rows.beams is not None
        for first, group in self.groups.items():
            if first in self.alone or not self.tables.keys() >= set(group):
                continue
            seq = self._seqs[first]
            given = seq.generated_tokens
            if first in running:
                given = rank.lanes[seq.lane].generated_by(seq)
            parents = self.rows.beams.parents(first, seq.output_tokens, len(group))
            while self._chosen[first] < given - 1:
                old = [self.tables[row] for row in group]
                for row, parent in zip(group, parents[self._chosen[first]], strict=True):
                    self.tables[row] = list(old[parent])
                self._chosen[first] += 1

    def _wake(self, running: set[int]) -> None:
        """Tables come back from the host with new blocks, shared as before."""
        names: dict[int, int] = {}
        for row in running & self.host.keys():
            table = self.host.pop(row)
            self.tables[row] = [names.setdefault(block, self._new()) for block in table]

    def _write(self, row: int, position: int) -> None:
        table = self.tables[row]
        if position % self.block_tokens == 0:
            assert len(table) == position // self.block_tokens
            table.append(self._new())
            return
        assert len(table) == position // self.block_tokens + 1
        if self.references()[table[-1]] > 1:
            table[-1] = self._new()
