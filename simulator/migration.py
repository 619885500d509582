"""Live migration: running requests move between ranks without losing their KV (Llumnix, OSDI'24).

A request's finished blocks are copied while it goes on decoding; then what has been computed
meanwhile, and so on, until few blocks remain: those are copied while it stands still, and it goes
on at the target. The target reserves pages before each stage. A request that finishes or is
preempted on the way, or a target that has no room, ends the migration: the reservation is given
back and nothing else has changed. Whoever stands still holds its pages at the source until the
last copy has ended, so that two copies exist, never none.

A request leaves and joins a lane only between two of its iterations.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field

from simulator.lane import Lane
from simulator.rank import Rank
from simulator.recorder import MIGRATION_COLUMNS, Ints, as_ints
from simulator.replica import Replica
from simulator.request import Sequence
from simulator.routers.llumnix import Llumnix

CopyTime = Callable[[int, int, int], int]  # source replica, target replica, pages -> ns


@dataclass(eq=False, slots=True)
class Migration:
    """One request on its way."""

    seq: Sequence
    lane: Lane  # it runs in
    target: Rank
    begin_ns: int
    stand_in: Sequence  # holds the target's reservation
    preemptions: int  # of the request so far
    reserved: int = 0  # pages at the target
    copied: int = 0  # of those, with their content
    stages: int = 0
    held: int = 0  # pages at the source once it stands still
    left_ns: int = -1
    landed: bool = False  # the source has let go of it


@dataclass(slots=True)
class Engine:
    """What migrations need of the run around them."""

    now: Callable[[], int]
    then: Callable[[int, Callable[[], None]], None]  # at a time
    copy_ns: CopyTime
    is_over: Callable[[], bool]  # nobody is left to serve


@dataclass(slots=True)
class Migrations:
    """Carries out a policy's migrations between the ranks of these replicas."""

    policy: Llumnix
    engine: Engine
    replicas: list[Replica]
    ranks: list[Rank] = field(default_factory=list)
    owner: list[int] = field(default_factory=list)  # [rank] number of its replica
    log: array[int] = field(default_factory=lambda: array("q"))  # rows of MIGRATION_COLUMNS
    outgoing: dict[int, Migration] = field(default_factory=dict)  # by source rank
    _arriving: list[Migration] = field(default_factory=list)  # landed, not yet joined
    _pairs: dict[int, int] = field(default_factory=dict)  # source and target rank
    _due: dict[int, list[Callable[[], None]]] = field(default_factory=dict)  # by key of a lane

    def __post_init__(self) -> None:
        for number, replica in enumerate(self.replicas):
            self.ranks += replica.ranks
            self.owner += [number] * len(replica.ranks)
            replica.at_end = self._ended
        if self.policy.migrate:
            self._later(self.policy.interval_s, self._pair)

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        self.engine.then(self.engine.now() + max(1, round(seconds * 1e9)), act)

    def _pair(self) -> None:
        """Fullest with freest, second fullest with second freest, ..."""
        if self.engine.is_over():
            return
        policy = self.policy
        spare = [policy.spare(rank) for rank in self.ranks]
        order = sorted(range(len(spare)), key=lambda i: (spare[i], i))
        sources = [i for i in order if spare[i] < policy.source_below]
        targets = [i for i in reversed(order) if spare[i] > policy.source_below]
        self._pairs = dict(zip(sources, targets, strict=False))
        for source in list(self._pairs):
            self.start(source)
        self._later(policy.interval_s, self._pair)

    def start(self, source: int) -> None:
        """Begin to move one request of this rank to the one it is paired with."""
        rank = self.ranks[source]
        target = self.ranks[self._pairs[source]] if source in self._pairs else None
        if source in self.outgoing or target is None:
            return
        spare, limit = self.policy.spare, self.policy.source_below
        if spare(rank) >= limit or spare(target) <= limit:
            return
        seq = self._victim(rank)
        if seq is not None:
            self.move(seq, target)

    def _victim(self, rank: Rank) -> Sequence | None:
        decoding = [seq for seq in rank.running if self._is_decoding(seq, rank)]
        if not decoding:
            return None
        least = max(seq.priority for seq in decoding)
        willing = [seq for seq in decoding if seq.priority == least]
        if self.policy.victim == "last":
            return willing[-1]
        return min(willing, key=lambda seq: (self._context(seq, rank), seq.id))

    def _is_decoding(self, seq: Sequence, rank: Rank) -> bool:
        return seq in rank.running and seq not in lane_of(seq, rank).prefilling

    def _context(self, seq: Sequence, rank: Rank) -> int:
        return lane_of(seq, rank).decodes.context(seq)

    # --- one migration ------------------------------------------------------------------------

    def move(self, seq: Sequence, target: Rank) -> None:
        """Migrate a decoding request, from the end of the iteration it is in."""
        source = next(rank for rank in self.ranks if seq in rank.running)
        lane, allocator = lane_of(seq, source), target.allocator
        stand_in = Sequence(seq.id, seq.prompt_tokens, seq.output_tokens)
        preemptions = source.recorder.preemptions[seq.id]
        migration = Migration(seq, lane, target, self.engine.now(), stand_in, preemptions)
        self.outgoing[source.index] = migration
        target.incoming += 1
        allocator.claim(stand_in, 0)
        self._when_free(lane, lambda: self._stage(migration))

    def _stage(self, migration: Migration) -> None:
        """Between two iterations: copy on while it decodes, or let it stand still, or give up."""
        seq, lane, target = migration.seq, migration.lane, migration.target
        lane.rank.catch_up()
        is_preempted = lane.rank.recorder.preemptions[seq.id] > migration.preemptions
        if is_preempted or not self._is_decoding(seq, lane.rank):
            self._give_up(migration)
            return
        kv_tokens, pages = lane.decodes.context(seq) - 1, lane.rank.layout.pages
        missing = pages(kv_tokens) - migration.reserved
        if (
            missing > target.allocator.free_pages
            or target.num_running + target.incoming > lane.max_num_seqs
            or migration.stages >= self.policy.max_stages
        ):
            self._give_up(migration)
            return
        target.allocator.take(missing)
        migration.reserved += missing
        migration.stages += 1
        left = migration.reserved - migration.copied
        if left <= self.policy.last_stage_blocks * lane.rank.block_pages:
            self._leave(migration)
            self._copy(migration, left, lambda: self._land(migration))
            return
        size = lane.rank.block_tokens
        whole = pages(kv_tokens // size * size) - migration.copied
        self._copy(migration, whole, lambda: self._when_free(lane, lambda: self._stage(migration)))

    def _copy(self, migration: Migration, num_pages: int, act: Callable[[], None]) -> None:
        source, target = migration.lane.rank.index, migration.target.index
        copy_ns = self.engine.copy_ns(self.owner[source], self.owner[target], num_pages)
        migration.copied += num_pages
        self._later(self.policy.stage_s + copy_ns / 1e9, act)

    def _leave(self, migration: Migration) -> None:
        """It stands still: out of the batch, its pages still held."""
        seq, lane = migration.seq, migration.lane
        decodes, rank = lane.decodes, lane.rank
        del rank.running[seq]
        rank.blocked = False
        lane.claim = 0  # the plan it was in stands no more
        rank.recorder.paused(seq, lane.key, len(lane.log.end_ns) - 1)
        seq.generated_tokens += decodes.iteration - seq.decode_since
        kv_tokens = decodes.context(seq) - 1
        migration.held = decodes.remove(seq)
        seq.prefill_tokens = seq.computed_tokens = kv_tokens
        migration.left_ns = self.engine.now()

    def _land(self, migration: Migration) -> None:
        """The last copy has ended: the source lets go of its pages, the target takes over."""
        seq, source, target = migration.seq, migration.lane.rank, migration.target
        source.allocator.release(seq, migration.held)
        source.outstanding_tokens -= seq.prompt_tokens
        target.outstanding_tokens += seq.prompt_tokens
        target.recorder.target[seq.id] = target.index
        migration.landed = True
        del self.outgoing[source.index]
        self._arriving.append(migration)
        self._wake(source)
        lanes = [lane for lane in target.lanes.values() if isinstance(lane, Lane)]
        lane = min(lanes, key=lambda lane: (lane.decodes.num_seqs, lane.key))
        self._when_free(lane, lambda: self._join(migration, lane))
        self.start(source.index)

    def _join(self, migration: Migration, lane: Lane) -> None:
        seq, rank = migration.seq, lane.rank
        rank.catch_up()
        self._arriving.remove(migration)
        rank.incoming -= 1
        rank.running[seq] = None
        seq.allocation = migration.stand_in.allocation
        rank.allocator.computed(seq, seq.computed_tokens)
        seq.lane = lane.key
        seq.span_start = len(lane.log.end_ns)
        lane.granted = False  # a grant to nobody may be left of an empty plan
        lane.decodes.add(seq)
        self._log(migration, self.engine.now())
        self._wake(rank)

    def _give_up(self, migration: Migration) -> None:
        """Give the reservation back; the request goes on where it is."""
        source, target = migration.lane.rank, migration.target
        target.allocator.release(migration.stand_in, migration.reserved)
        target.incoming -= 1
        target.blocked = False
        del self.outgoing[source.index]
        self._log(migration, -1)
        self._wake(target)

    # --- when things happen -------------------------------------------------------------------

    def _when_free(self, lane: Lane, act: Callable[[], None]) -> None:
        if lane.in_flight:
            self._due.setdefault(lane.key, []).append(act)
        else:
            act()

    def _ended(self, lanes: list[Lane]) -> None:
        for lane in lanes:
            for act in self._due.pop(lane.key, ()):
                act()

    def _wake(self, rank: Rank) -> None:
        self.engine.then(self.engine.now(), self.replicas[self.owner[rank.index]].wake)

    def _log(self, migration: Migration, resumed_ns: int) -> None:
        self.log.extend(
            (
                migration.seq.id,
                migration.lane.rank.index,
                migration.target.index,
                migration.begin_ns,
                migration.left_ns,
                resumed_ns,
                migration.stages,
                migration.copied,
            )
        )

    def close(self) -> None:
        """The run is over: whatever is still on its way gives its pages back."""
        for migration in [*self.outgoing.values(), *self._arriving]:
            seq, source, target = migration.seq, migration.lane.rank, migration.target
            target.allocator.release(migration.stand_in, migration.reserved)
            target.incoming -= 1
            if migration.held and not migration.landed:
                source.allocator.release(seq, migration.held)
            self._log(migration, -1)
        self.outgoing.clear()
        self._arriving.clear()

    def rows(self) -> Ints:
        """[num_migrations, len(MIGRATION_COLUMNS)], in the order they ended."""
        return as_ints(self.log).reshape(-1, len(MIGRATION_COLUMNS))


def lane_of(seq: Sequence, rank: Rank) -> Lane:
    """The lane that a running request iterates in."""
    lane = rank.lanes[seq.lane]
    assert isinstance(lane, Lane)
    return lane
