"""The live engine: replicas behind a router, on a clock that somebody else moves.

What is booked of a request goes when it has finished, and the logs of iterations are cut as they
grow: memory depends on how many requests are in flight, not on how many there were.
Prompts share nothing: a request that is not known in advance has no identity to find in a cache.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import inf

import simpy
from simpy.events import URGENT

from simulator.engine import build
from simulator.errors import ConfigError
from simulator.experiment import Experiment
from simulator.lane import Lane
from simulator.live.setup import (
    COLUMNS,
    Dropping,
    forgetful_recorder,
    lead_of,
    most_tokens,
    unqueue,
    without_workload,
)
from simulator.live.ticket import Ticket, Totals
from simulator.rank import Rank
from simulator.replica import Replica
from simulator.request import Sequence

MOST_LOGGED = 4096  # iterations of a lane kept before its log is cut


class LiveEngine:
    """The replicas of an experiment, its workload left aside.

    Args:
        experiment: what is simulated.
        places: most requests in flight.
        on_finish: told of each request that ends (or has been dropped), when it does.
        on_token: told of each token, and the ns since the one before it; -1 = it is the first.

    Raises:
        InfeasiblePlan: as `engine.prepare`.
        ConfigError: a policy that must know the workload beforehand.
    """

    def __init__(
        self,
        experiment: Experiment,
        places: int,
        on_finish: Callable[[Ticket], None] = lambda ticket: None,
        on_token: Callable[[Ticket, int], None] = lambda ticket, ns: None,
    ) -> None:
        setup = without_workload(experiment)
        self.totals = Totals()
        self.places = places
        self._on_finish = on_finish
        self._on_token = on_token
        self._env = simpy.Environment()
        self._recorder = forgetful_recorder()
        self._over_ns = -1  # the last instant that is over
        self._num_sent = 0
        self._tickets: dict[int, Ticket] = {}  # by number
        self._doomed: dict[int, Ticket] = {}  # dropped, not yet out of their lanes
        self._lead = lead_of(experiment)
        self._router = setup.router
        self._num_routed = 0
        scheduler = Dropping(setup.scheduler, self._let_go)
        self._replicas = build(
            replace(setup, scheduler=scheduler),  # type: ignore[arg-type]
            self._env,
            self._recorder,
            None,
            None,
        )
        self._ranks: list[Rank] = [rank for r in self._replicas for rank in r.ranks]
        self._owners: list[Replica] = [r for r in self._replicas for _ in r.ranks]
        for rank in self._ranks:
            rank.on_finish = self._finished
        self._lanes = [lane for r in self._replicas for b in r.batches for lane in b.lanes]
        self._seen = [0] * len(self._lanes)  # iterations of each, told to the tickets
        self._evictions = 0
        self.most_tokens = most_tokens(setup)  # prompt and output of a request that can be served

    # --- what its owner does ------------------------------------------------------------------

    @property
    def now_ns(self) -> int:
        return int(self._env.now)

    @property
    def next_ns(self) -> float:
        """When something happens next; inf while nothing is in flight."""
        return self._env.peek() if self._tickets else inf

    @property
    def lead_ns(self) -> int:
        """Front-end time of the shortest prompt: what is sent now changes nothing before."""
        return self._lead(1)

    @property
    def num_in_flight(self) -> int:
        return len(self._tickets)

    def submit(
        self,
        time_ns: int,
        prompt_tokens: int,
        output_tokens: int,
        priority: int = 0,
        change: Callable[[], None] = lambda: None,
    ) -> Ticket:
        """A client sends a request; there must be a free place.

        It reaches its scheduler after its front-end time. Where that is past already, it is sent
        as late as it has to be.

        Raises:
            ConfigError: no place is free, or the request can never be served.
        """
        if len(self._tickets) >= self.places:
            raise ConfigError(f"expected at most {self.places} requests in flight")
        if prompt_tokens < 1 or output_tokens < 1:
            raise ConfigError(
                "expected at least one prompt token and one output token "
                f"(got {prompt_tokens} and {output_tokens})"
            )
        if prompt_tokens + output_tokens > self.most_tokens:
            raise ConfigError(
                f"expected at most {self.most_tokens} tokens "
                f"(got {prompt_tokens} of prompt, {output_tokens} of output)"
            )
        lead_ns = self._lead(prompt_tokens)
        time_ns = max(time_ns, self._over_ns + 1 - lead_ns)
        number = self._num_sent
        self._num_sent += 1
        ticket = Ticket(prompt_tokens, output_tokens, priority, change)
        ticket.sent_ns = time_ns
        ticket.seq = Sequence(number, prompt_tokens, output_tokens, priority)
        self._tickets[number] = ticket
        self._recorder.scheduled_ns[number] = -1
        self._recorder.preemptions[number] = 0
        event = self._env.event()
        event._ok, event._value = True, None
        self._env.schedule(event, URGENT, time_ns + lead_ns - self.now_ns)
        assert event.callbacks is not None
        event.callbacks.append(lambda _: self._arrive(ticket))
        return ticket

    def drop(self, ticket: Ticket) -> None:
        """Nobody waits for it any more: it leaves its batch when the iteration in flight ends."""
        if ticket.seq is not None and not ticket.is_dropped:
            ticket.is_dropped = True
            self._doomed[ticket.seq.id] = ticket

    def advance(self, to_ns: int) -> None:
        """Let everything up to this time happen (the time itself included)."""
        env = self._env
        while (time_ns := env.peek()) <= to_ns:
            env.step()
            if env.peek() > time_ns:
                self._over_ns = int(time_ns)
                self._tell()

    # --- what happens inside ------------------------------------------------------------------

    def _arrive(self, ticket: Ticket) -> None:
        seq = ticket.seq
        assert seq is not None
        if ticket.is_dropped:
            self._gone(ticket)
            return
        now_ns = self.now_ns
        if self._router.reads_cache:
            for replica in self._replicas:
                replica.settle(now_ns)
        target = ticket.rank = self._router.choose(self._num_routed, seq, self._ranks)
        self._num_routed += 1
        self._ranks[target].receive(seq, now_ns)
        self._owners[target].notify(now_ns)

    def _tell(self) -> None:
        """Tokens of the iterations that have just ended."""
        for number, lane in enumerate(self._lanes):
            ends = lane.log.end_ns
            if len(ends) == self._seen[number]:
                continue
            self.totals.iterations += len(ends) - self._seen[number]
            self._seen[number] = len(ends)
            prefilling = set(lane.prefilling)
            steps = lane.decodes.iteration
            for seq in reversed(lane.rank.running):  # a first token before others' next
                if seq.lane == lane.key:
                    since = 0 if seq in prefilling else steps - seq.decode_since
                    self._give(self._tickets[seq.id], seq.generated_tokens + since, ends[-1])
        if (evictions := sum(rank.num_evictions for rank in self._ranks)) != self._evictions:
            self._evictions = evictions
            for ticket in self._tickets.values():  # a token, and preempted at the same instant
                assert ticket.seq is not None
                self._give(ticket, ticket.seq.generated_tokens, self.now_ns)
        self._cut_logs()

    def _give(self, ticket: Ticket, given: int, now_ns: int) -> None:
        if given > ticket.given:
            gap_ns = -1
            if ticket.first_ns < 0:
                assert ticket.seq is not None
                ticket.first_ns = now_ns
                ticket.scheduled_ns = self._recorder.scheduled_ns[ticket.seq.id]
            else:
                gap_ns = now_ns - ticket.latest_ns
            self.totals.tokens += given - ticket.given
            ticket.given = given
            ticket.latest_ns = now_ns
            self._on_token(ticket, gap_ns)
            ticket.change()

    def _finished(self, seq: Sequence, now_ns: int) -> None:
        ticket = self._tickets[seq.id]
        self._doomed.pop(seq.id, None)
        ticket.finish_ns = now_ns
        self._give(ticket, ticket.asked, now_ns)
        self._gone(ticket)

    def _gone(self, ticket: Ticket) -> None:
        assert ticket.seq is not None
        number = ticket.seq.id
        ticket.preemptions = self._recorder.preemptions[number]
        ticket.seq = None
        self._doomed.pop(number, None)
        del self._tickets[number]
        for name in COLUMNS:
            getattr(self._recorder, name).pop(number, None)
        totals = self.totals
        totals.preemptions += ticket.preemptions
        totals.dropped += ticket.is_dropped
        totals.finished += not ticket.is_dropped
        self._on_finish(ticket)

    def _let_go(self, lane: Lane) -> None:
        """Take dropped requests out of a rank whose lane is about to plan."""
        if not self._doomed:
            return
        rank = lane.rank
        for ticket in list(self._doomed.values()):
            seq = ticket.seq
            assert seq is not None
            if seq in rank.running:
                owner = rank.lanes[seq.lane]
                if owner.in_flight:
                    continue
                owner.evict(seq)
                self._recorder.preemptions[seq.id] -= 1
            if unqueue(rank, seq):
                rank.outstanding_tokens -= seq.prompt_tokens
                rank.blocked = False
                self._gone(ticket)

    def _cut_logs(self) -> None:
        longest = max(len(lane.log.end_ns) for lane in self._lanes)
        if max(longest, len(self._recorder.spans)) < MOST_LOGGED:
            return
        for replica in self._replicas:
            for batch in replica.batches:
                del batch.end_log[:-1]
        for number, lane in enumerate(self._lanes):
            log = lane.log
            del log.start_ns[:], log.segments[:]
            self._seen[number] = len(log.end_ns)
        del self._recorder.spans[:-4], self._recorder.pauses[:]

    # --- what a monitor sees ------------------------------------------------------------------

    @property
    def ranks(self) -> tuple[Rank, ...]:
        """Waiting, running and pages of each attention rank."""
        return tuple(self._ranks)

    @property
    def kv_usage(self) -> float:
        """Share of the KV pages in use, over all ranks."""
        pages = sum(rank.allocator.num_pages for rank in self._ranks)
        return 1 - sum(rank.allocator.free_pages for rank in self._ranks) / pages
