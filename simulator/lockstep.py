"""Batches in flight: the lanes that iterate together, and the pipeline they pass through.

A `Lockstep` is the lanes of a replica's attention ranks that step as one (a single lane unless
attention is data-parallel). Its price on a stage is the maximum of one affine form a rank, so
later iterations of a run cost an addition and a shift each.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque

import numpy as np
from numpy.typing import NDArray

from simulator.batch import FOREVER
from simulator.costs.compiled import TICK_BITS, CompiledCost
from simulator.lane import Lane
from simulator.schedulers import Scheduler

MAX_RUN = 4096  # bounds the arrays of a run
_SHORT = 24  # runs up to this length are summed in Python: numpy's calls cost as much
_INDEX = np.arange(MAX_RUN, dtype=np.int64)

Form = list[int]  # [ticks of the coming iteration, growth an iteration]


class Lockstep:
    """The lanes of a replica's attention ranks that iterate together, as one batch in flight."""

    __slots__ = ("_arrivals_wait", "claim", "cost", "end_log", "end_ns", "ended", "fixed", "forms",
                 "lanes", "scheduler", "sealed", "send_ns", "start_ns")  # fmt: skip

    def __init__(
        self, lanes: list[Lane], cost: CompiledCost, scheduler: Scheduler, end_log: array[int]
    ) -> None:
        self.lanes = lanes
        self.cost = cost
        self.scheduler = scheduler
        self._arrivals_wait = scheduler.arrivals_wait
        self.end_log = end_log  # of every iteration
        self.claim = 0  # iterations that stay as planned, the one in flight included
        self.start_ns = 0
        self.ended = array("q")  # ends of iterations before the one in flight, not yet logged
        self.end_ns = 0  # of the one in flight
        self.sealed = False  # whoever arrives, the plan stays
        self.fixed: list[int] = []  # [stage kind] ticks, attention excepted
        self.forms: list[list[Form]] = [[] for _ in lanes]  # [rank][stage kind] attention
        self.send_ns: list[int] = []  # [stage] hand-over to the next

    def plan(self, now_ns: int, stages: list[int], keep: bool, is_alone: bool) -> int:
        """Plan an iteration on every rank, and price its attention on these stages.

        `keep`: leave a rank's plan as it is where the scheduler could decide nothing new. Returns
        for how many iterations the whole holds (0 = no work).
        """
        least, sealed = FOREVER, True
        for number, lane in enumerate(self.lanes):
            if not keep or lane.needs_plan(is_alone):
                self._plan_lane(number, lane, now_ns, stages, is_alone)
            if lane.claim < least and lane.has_work:
                least = lane.claim
            sealed = sealed and lane.sealed and lane.granted
        self.claim = 0 if least == FOREVER else least
        self.sealed = sealed
        if self.claim:
            self.fixed = self._fixed_ticks(stages)
        return self.claim

    def _plan_lane(
        self, number: int, lane: Lane, now_ns: int, stages: list[int], is_alone: bool
    ) -> None:
        rank = lane.rank
        if not is_alone:
            rank.catch_up()
        elif lane.behind:
            lane.catch_up()
        rank.now_ns = now_ns
        if rank.starved:
            rank.starved.discard(lane.key)
        lane.planned(self.scheduler.plan(lane), self._arrivals_wait)
        all_stages = self.cost.stages
        self.forms[number] = [lane.attention_form(all_stages[i]) for i in stages]

    def share_pages(self, num_lanes: int) -> None:
        """Keep the claim within the lanes' shares of the free pages of their ranks."""
        for lane in self.lanes:
            lane.share_pages(num_lanes)
            self.claim = min(self.claim, lane.claim)

    def ticks(self, kind: int) -> int:
        """Price of the coming iteration on a kind of stage: the slowest rank decides."""
        forms = self.forms
        if len(forms) == 1:
            return self.fixed[kind] + forms[0][kind][0]
        return self.fixed[kind] + max(form[kind][0] for form in forms)

    def _fixed_ticks(self, stages: list[int]) -> list[int]:
        """Prices on these stages, attention excepted: the fullest rank decides."""
        most, seqs, rows = total, _, _ = self.lanes[0].load()
        for lane in self.lanes[1:]:
            tokens, num_seqs, num_rows = lane.load()
            total += tokens
            most, seqs, rows = max(most, tokens), max(seqs, num_seqs), max(rows, num_rows)
        cost = self.cost
        last = len(cost.stages) - 1
        prices = []
        for index in stages:
            stage = cost.stages[index]
            ticks = stage.linear[most]
            if stage.expert:
                ticks += stage.expert[-(-total // stage.expert_stride)]
            if index == 0:
                ticks += cost.host[seqs]
            if index == last:
                ticks += cost.logits[rows]
            prices.append(ticks)
        return prices

    def run_until(self, now_ns: int, limit_ns: int, beyond: int = 0) -> array[int]:
        """Ends of the coming iterations on one stage, up to the first at or after the limit.

        And so many `beyond` it.
        """
        ends = array("q")
        claim = self.claim
        if claim <= _SHORT and len(self.forms) == 1:
            ticks, growth = self.forms[0][0]
            ticks += self.fixed[0]
            for _ in range(claim):
                now_ns += ticks >> TICK_BITS
                ends.append(now_ns)
                if now_ns >= limit_ns:
                    if not beyond:
                        break
                    beyond -= 1
                ticks += growth
            return ends
        first_ns = max(1, self.ticks(0) >> TICK_BITS)
        until_limit = (limit_ns - now_ns) // first_ns + 1  # prices never fall
        most = min(claim, MAX_RUN, until_limit + beyond)
        ends.frombytes((self._run_prices(most).cumsum() + now_ns).tobytes())
        return ends[: bisect_left(ends, limit_ns) + 1 + beyond]

    def _run_prices(self, num_iterations: int) -> NDArray[np.int64]:
        index = _INDEX[:num_iterations]
        first, growth = self.forms[0][0]
        ticks: NDArray[np.int64] = index * growth + first
        for ((first, growth),) in self.forms[1:]:
            np.maximum(ticks, index * growth + first, out=ticks)
        return (ticks + self.fixed[0]) >> TICK_BITS

    def grow(self, num_iterations: int) -> None:
        """Attention prices of the iteration after so many more."""
        for forms in self.forms:
            for form in forms:
                form[0] += num_iterations * form[1]

    def log(self, num_ended: int) -> None:
        """Log the first iterations that have ended; the ranks book them when it matters."""
        if num_ended == len(self.ended):
            ends, self.ended = self.ended, array("q")
        else:
            ends, self.ended = self.ended[:num_ended], self.ended[num_ended:]
        self.end_log.extend(ends)
        for lane in self.lanes:
            lane.ended(num_ended, self.start_ns, ends[-1])
        self.start_ns = ends[-1]

    def settle(self, before_ns: int) -> None:
        """Log the iterations that ended before this time; the rest stays in flight."""
        if self.ended and (num := bisect_left(self.ended, before_ns)):
            self.log(num)
            for lane in self.lanes:
                lane.in_flight = True

    def cut(self, now_ns: int, beyond: int = 0) -> bool:
        """Drop the iterations of a run that have not begun now, but for some; True if there are."""
        num = bisect_left(self.ended, now_ns) + beyond
        if num >= len(self.ended):
            return False
        self.end_ns = self.ended[num]
        del self.ended[num:]
        return True


class Pipeline:
    """The stages of a replica, and when each is free again."""

    __slots__ = ("_free_ns", "_kind_of", "_kinds", "_stages")

    def __init__(self, cost: CompiledCost) -> None:
        self._stages = cost.stages
        self._free_ns = [0] * len(cost.stages)
        kinds: dict[tuple[object, ...], int] = {}  # look of a stage -> its kind
        self._kinds: list[int] = []  # a stage of each kind
        self._kind_of: list[int] = []
        for index, stage in enumerate(cost.stages):
            look = (
                id(stage.linear),
                id(stage.expert),
                *(id(attention.decode_base) for attention in stage.attention),
                index == 0 or index == len(cost.stages) - 1,
            )
            if look not in kinds or index in (0, len(cost.stages) - 1):
                kinds[look] = len(self._kinds)
                self._kinds.append(index)
            self._kind_of.append(kinds[look])

    def plan(self, batch: Lockstep, now_ns: int, keep: bool, is_alone: bool) -> int:
        """Plan and price an iteration of a batch; returns for how many it holds."""
        claim = batch.plan(now_ns, self._kinds, keep, is_alone)
        if claim and len(self._stages) > 1:
            most = max(lane.num_decoding + lane.chunks.tokens for lane in batch.lanes)
            batch.send_ns = [
                stage.send[most] >> TICK_BITS if stage.send else 0 for stage in self._stages
            ]
        return claim

    def dispatch(self, batch: Lockstep, at_ns: int) -> int:
        """End of the batch's coming iteration, behind the batches before it on every stage."""
        if len(self._kind_of) == 1:
            return at_ns + (batch.ticks(0) >> TICK_BITS)
        prices = [batch.ticks(kind) >> TICK_BITS for kind in range(len(self._kinds))]
        free = self._free_ns
        for stage, kind in enumerate(self._kind_of):
            free[stage] = at_ns = max(free[stage], at_ns) + prices[kind]
            at_ns += batch.send_ns[stage]
        return at_ns

    def run_ahead(self, in_flight: deque[Lockstep], limit_ns: int) -> None:
        """Each batch again as soon as its iteration has ended, a token of context later.

        Until the one to go next has no claim left, or its time has come to the limit.
        """
        if len(in_flight[0].forms) == 1:
            in_flight.rotate(-self._run_ahead_alone(list(in_flight), limit_ns))
            return
        while (batch := in_flight[0]).claim > 1 and batch.end_ns < limit_ns:
            batch.ended.append(batch.end_ns)
            batch.claim -= 1
            batch.grow(1)
            batch.end_ns = self.dispatch(batch, batch.end_ns)
            in_flight.rotate(-1)

    def _run_ahead_alone(self, batches: list[Lockstep], limit_ns: int) -> int:
        """The same for batches of one rank, which is most of them; returns the number of passes.

        Plain lists instead of attributes: the loop takes half the time (measured at two stages).
        """
        ends = [batch.end_ns for batch in batches]
        lefts = [batch.claim - 1 for batch in batches]
        appends = [batch.ended.append for batch in batches]
        ticks = [[f[0] + x for f, x in zip(b.forms[0], b.fixed, strict=True)] for b in batches]
        growths = [[form[1] for form in batch.forms[0]] for batch in batches]
        sends = [batch.send_ns for batch in batches]
        free, kinds = self._free_ns, self._kind_of
        turn = passes = 0
        while lefts[turn] > 0 and (at_ns := ends[turn]) < limit_ns:
            lefts[turn] -= 1
            appends[turn](at_ns)
            ticks[turn] = prices = [t + g for t, g in zip(ticks[turn], growths[turn])]  # noqa: B905
            send_ns = sends[turn]
            for stage, kind in enumerate(kinds):
                free_ns = free[stage]
                free[stage] = at_ns = (free_ns if free_ns > at_ns else at_ns) + (
                    prices[kind] >> TICK_BITS
                )
                at_ns += send_ns[stage]
            ends[turn] = at_ns
            passes += 1
            turn = turn + 1 if turn + 1 < len(batches) else 0
        for batch, end_ns, left in zip(batches, ends, lefts, strict=True):
            batch.grow(batch.claim - 1 - left)
            batch.end_ns, batch.claim = end_ns, left + 1
        return passes
