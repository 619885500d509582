"""Batches in flight: the lanes that iterate together, and the pipeline they pass through.

A `Lockstep` is the lanes of a replica's attention ranks that step as one (a single lane unless
attention is data-parallel). Its price on a stage is the maximum of one affine form a rank, so
later iterations of a run cost an addition and a shift each.
"""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from simulator.costs.compiled import TICK_BITS, CompiledCost, StageCost
from simulator.lane import Lane
from simulator.schedulers import Scheduler

MAX_RUN = 4096  # bounds the arrays of a run
_SHORT = 24  # runs up to this length are summed in Python: numpy's calls cost as much
_INDEX = np.arange(MAX_RUN, dtype=np.int64)

Form = list[int]  # [ticks of the coming iteration, growth an iteration]


class Lockstep:
    """The lanes of a replica's attention ranks that iterate together, as one batch in flight."""

    __slots__ = ("claim", "cost", "end_ns", "ended", "forms", "lanes", "scheduler", "sealed",
                 "send_ns", "start_ns")  # fmt: skip

    def __init__(self, lanes: list[Lane], cost: CompiledCost, scheduler: Scheduler) -> None:
        self.lanes = lanes
        self.cost = cost
        self.scheduler = scheduler
        self.claim = 0  # iterations that stay as planned, the one in flight included
        self.start_ns = 0
        self.ended: list[int] = []  # ends of iterations before the one in flight, not yet booked
        self.end_ns = 0  # of the one in flight
        self.sealed = False  # whoever arrives, the plan stays
        self.forms: list[list[Form]] = []  # [stage kind][rank]
        self.send_ns: list[int] = []  # [stage] hand-over to the next

    def plan(self, now_ns: int) -> int:
        """Plan an iteration on every rank; returns for how many it holds (0 = no work)."""
        least = 0
        for lane in self.lanes:
            lane.rank.now_ns = now_ns
            if lane.rank.starved:
                lane.rank.starved.discard(lane.key)
            claim = self.scheduler.plan(lane)
            if claim > 1:
                claim = lane.repeats(claim)
            if claim and (claim < least or least == 0):
                least = claim
        self.claim = least
        self.sealed = self.scheduler.arrivals_wait and all(
            lane.waiting and lane.granted for lane in self.lanes
        )
        return least

    def share_pages(self, num_batches: int) -> None:
        """Keep the claim within this batch's share of the free pages."""
        for lane in self.lanes:
            if self.claim > 1 and lane.granted:
                pages = lane.allocator.free_pages // num_batches + lane.taken
                self.claim = max(1, lane.decodes.iterations_within(pages, self.claim))

    def price(self, stages: list[int]) -> None:
        """Forms of the coming iteration on these stages (one of each kind)."""
        self.forms = [self._stage_forms(index) for index in stages]

    def _stage_forms(self, index: int) -> list[Form]:
        stage = self.cost.stages[index]
        fixed = self._fixed_ticks(stage, index)
        forms = []
        for lane in self.lanes:
            ticks, growth = lane.attention_ticks(stage)
            forms.append([fixed + ticks, growth])
        return forms

    def _fixed_ticks(self, stage: StageCost, index: int) -> int:
        """Price on one stage, attention excepted: the fullest rank decides."""
        cost = self.cost
        most = total = rows = seqs = 0
        for lane in self.lanes:
            decodes = lane.num_decoding
            tokens = decodes + lane.chunk_tokens
            total += tokens
            if tokens > most:
                most = tokens
            if lane.chunks:
                decodes, sampled = decodes + len(lane.chunks), lane.sampled
            else:
                sampled = decodes
            if decodes > seqs:
                seqs = decodes
            if sampled > rows:
                rows = sampled
        ticks = stage.linear[most]
        if stage.expert:
            ticks += stage.expert[-(-total // stage.expert_stride)]
        if index == 0:
            ticks += cost.host[seqs]
        if index == len(cost.stages) - 1:
            ticks += cost.logits[rows]
        return ticks

    def run_until(self, now_ns: int, limit_ns: int) -> list[int]:
        """Ends of the coming iterations on one stage, up to the first at or after the limit."""
        (forms,) = self.forms
        claim = self.claim
        if claim <= _SHORT and len(forms) == 1:
            ticks, growth = forms[0]
            ends = []
            for _ in range(claim):
                now_ns += ticks >> TICK_BITS
                ends.append(now_ns)
                if now_ns >= limit_ns:
                    break
                ticks += growth
            return ends
        first_ns = max(1, max(form[0] for form in forms) >> TICK_BITS)
        most = min(claim, MAX_RUN, (limit_ns - now_ns) // first_ns + 1)  # prices never fall
        ends = (_run_prices(forms, most).cumsum() + now_ns).tolist()
        return ends[: bisect_left(ends, limit_ns) + 1]

    def commit(self, num_ended: int | None = None) -> None:
        """Book what was in flight, or only the first iterations of it, already ended."""
        if num_ended is None:
            ends, self.ended = self.ended, []
            ends.append(self.end_ns)
        else:
            ends, self.ended = self.ended[:num_ended], self.ended[num_ended:]
        for lane in self.lanes:
            lane.log.end_ns.extend(ends)
            lane.commit(len(ends), self.start_ns, ends[-1])
        self.start_ns = ends[-1]

    def settle(self, before_ns: int) -> None:
        """Book the iterations that ended before this time; the rest stays in flight."""
        if self.ended and (num := bisect_left(self.ended, before_ns)):
            self.commit(num)
            for lane in self.lanes:
                if lane.decodes.num_seqs:
                    lane.decode()
                lane.in_flight = True

    def cut(self, now_ns: int) -> bool:
        """Drop the iterations of a run that have not begun now; True if there are any."""
        num = bisect_left(self.ended, now_ns)
        if num == len(self.ended):
            return False
        self.end_ns = self.ended[num]
        del self.ended[num:]
        return True


def _run_prices(forms: list[Form], num_iterations: int) -> NDArray[np.int64]:
    index = _INDEX[:num_iterations]
    ticks: NDArray[np.int64] = index * forms[0][1] + forms[0][0]
    for first, growth in forms[1:]:
        np.maximum(ticks, index * growth + first, out=ticks)
    return ticks >> TICK_BITS


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

    def price(self, batch: Lockstep) -> None:
        """Price the planned iteration of a batch on every kind of stage."""
        batch.price(self._kinds)
        if len(self._stages) > 1:
            most = max(lane.num_decoding + lane.chunk_tokens for lane in batch.lanes)
            batch.send_ns = [
                stage.send[most] >> TICK_BITS if stage.send else 0 for stage in self._stages
            ]

    def dispatch(self, batch: Lockstep, at_ns: int) -> int:
        """End of the batch's coming iteration, behind the batches before it on every stage."""
        forms = batch.forms
        if len(self._kind_of) == 1:
            return at_ns + (max(form[0] for form in forms[0]) >> TICK_BITS)
        free, sends = self._free_ns, batch.send_ns
        for stage, kind in enumerate(self._kind_of):
            pair = forms[kind]
            ticks = pair[0][0] if len(pair) == 1 else max(form[0] for form in pair)
            if free[stage] > at_ns:
                at_ns = free[stage]
            free[stage] = at_ns = at_ns + (ticks >> TICK_BITS)
            at_ns += sends[stage]
        return at_ns

    def dispatch_again(self, batch: Lockstep) -> None:
        """The same batch, one token of context later, as soon as its iteration has ended."""
        for pair in batch.forms:
            for form in pair:
                form[0] += form[1]
        at_ns = batch.end_ns
        batch.ended.append(at_ns)
        batch.claim -= 1
        batch.end_ns = self.dispatch(batch, at_ns)
