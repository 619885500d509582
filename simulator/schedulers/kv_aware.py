"""KV-aware admission: a request is let in only if the predicted peak of KV memory fits the pool.

vLLM admits whoever has pages for the prompt, and preempts when answers then outgrow the pool. Here
each running request is predicted to grow to its prompt and a predicted output; the peak over the
time to come is that of LightLLM's scheduler: of decoding requests sorted by the tokens they have
left, longest first, the k-th ends when those before it have grown by as much as it had left,

    peak = max over k of sum(context of the first k) + k * left of the k-th

(each rounded up to a KV block), beside the whole of the prompts still being computed and of the
candidate, since when they begin to decode is not known. Where predictions are upper bounds nobody
is ever preempted (with one batch in flight).

An output is predicted by a quantile of the outputs of requests that have finished so far, and never
above `max_tokens`; before any has finished it is `max_tokens`. Who outgrows the prediction is given
that quantile of the outputs seen that are longer still, or else the bound.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.errors import ConfigError
from simulator.request import RequestTable, Sequence
from simulator.schedulers.edf import DeadlineQueue, Edf
from simulator.schedulers.vllm_v1 import VllmV1
from simulator.spec import Slo

if TYPE_CHECKING:
    from simulator.schedulers.view import LaneView, WaitingQueue

MOST_UNNOTED = 1000  # finished requests that are kept until their outputs are looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class KvAware(Edf):
    """Admission by the predicted peak of KV memory, first come first served or by deadline."""

    order: str = "fcfs"  # or "edf", whose keys are those of that scheduler
    output_quantile: float = 0.9  # of the outputs seen so far; 0 = every output is max_tokens
    max_tokens: int = 0  # longest output that clients ask for; 0 = as long as the pool holds

    def __post_init__(self) -> None:
        Edf.__post_init__(self)
        if self.order not in ("fcfs", "edf"):
            raise ConfigError(f"scheduler.order: expected 'fcfs' or 'edf' (got {self.order!r})")
        if not 0 <= self.output_quantile <= 1:
            raise ConfigError(
                "scheduler.output_quantile: expected a number in [0, 1] "
                f"(got {self.output_quantile!r})"
            )
        if self.max_tokens < 0:
            raise ConfigError(f"scheduler.max_tokens: expected an int >= 0 (got {self.max_tokens})")

    def clash(self, allocator: object) -> str:
        """Why it cannot run on such memory; "" where it can."""
        if not hasattr(allocator, "reserve"):
            return ""
        return "memory reserved at admission never runs out; use the allocator paged"

    def under(self, slo: Slo) -> Edf:
        return self if self.order == "fcfs" else Edf.under(self, slo)

    @property
    def by_priority(self) -> bool:
        return self.order == "edf"

    @property
    def arrivals_wait(self) -> bool:
        return self.order == "fcfs"

    def queue(self, table: RequestTable) -> WaitingQueue:
        """The waiting requests of one rank, and what is predicted of those that run."""
        return Forecast(self, DeadlineQueue(self) if self.order == "edf" else deque())

    def plan(self, lane: LaneView) -> int:
        forecast = lane.waiting
        assert isinstance(forecast, Forecast)
        if isinstance(forecast.inner, DeadlineQueue):
            forecast.inner.update(lane)
        forecast.update(lane)
        claim = VllmV1.plan(self, lane)
        if not forecast:
            return claim
        # A refusal stands until somebody finishes, or should have by its prediction.
        most = 1 if self.order == "edf" else forecast.least_left(lane)
        return min(claim, max(1, most))

    def _admit(self, lane: LaneView, budget: int) -> bool:
        forecast = lane.waiting
        assert isinstance(forecast, Forecast)
        while forecast and budget > 0 and lane.num_running < lane.max_num_seqs:
            if lane.num_running and not forecast.fits(lane, forecast[0]):
                return True
            seq = forecast[0]
            cached = lane.cached(seq)
            missing = seq.prefill_tokens - cached
            chunk = self._chunk(missing, budget)
            if not self.chunked_prefill and chunk < self._chunk(missing, missing):
                return True
            if not lane.admit(seq, cached, chunk, self.reserve_full_prompt):
                return self.reserve_full_prompt or cached == 0
            budget -= chunk
        return True


class Forecast:
    """A waiting queue that also knows how long running requests are predicted to become."""

    __slots__ = ("_outputs", "_policy", "_predicted", "_running", "inner")

    def __init__(self, policy: KvAware, inner: WaitingQueue) -> None:
        self.inner = inner
        self._policy = policy
        self._outputs: list[int] = []  # of finished requests, sorted
        self._predicted: dict[Sequence, int] = {}  # output tokens of whoever was admitted once
        self._running: dict[Sequence, None] = {}  # when last looked

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Sequence:
        return self.inner[index]

    def append(self, seq: Sequence) -> None:
        self.inner.append(seq)

    def appendleft(self, seq: Sequence) -> None:
        self._running.pop(seq, None)
        self.inner.appendleft(seq)

    def popleft(self) -> Sequence:
        seq = self.inner.popleft()
        self._running[seq] = None
        return seq

    def update(self, lane: LaneView) -> None:
        """Note who has finished, and who has outgrown the prediction.

        Only where somebody waits: when outputs are noted changes nothing but what is asked after.
        """
        if not self.inner and len(self._running) < 2 * lane.num_running + MOST_UNNOTED:
            return
        running = dict.fromkeys(lane.running())
        for seq in self._running:
            if seq not in running:
                insort(self._outputs, lane.generated(seq))
                self._predicted.pop(seq, None)
        self._running = running
        if self.inner:
            for seq in running:
                self._output(lane, seq)

    def fits(self, lane: LaneView, candidate: Sequence) -> bool:
        """Whether the predicted peak with one more request stays within the pool."""
        block = lane.block_tokens
        whole = self._whole(lane, candidate, block)
        decoding = []
        for seq in self._running:
            if seq.computed_tokens < seq.prefill_tokens:
                whole += self._whole(lane, seq, block)
            else:
                generated = lane.generated(seq)
                left = self._output(lane, seq) - generated
                decoding.append((left, seq.prompt_tokens + generated))
        decoding.sort(reverse=True)
        limit, contexts = lane.kv_tokens - whole, 0
        for number, (left, context) in enumerate(decoding, 1):
            contexts += context
            grown = contexts + number * (left - 1)
            if grown + number * (block - 1) <= limit:
                continue
            first = decoding[:number]
            if grown > limit or sum(-(-(c + left - 1) // block) for _, c in first) * block > limit:
                return False
        return limit >= 0

    def least_left(self, lane: LaneView) -> int:
        """Iterations until the first running request should have finished."""
        return min(
            (self._output(lane, seq) - lane.generated(seq) for seq in self._running), default=1
        )

    def _whole(self, lane: LaneView, seq: Sequence, block: int) -> int:
        tokens = seq.prompt_tokens + self._output(lane, seq) - 1
        return -(-tokens // block) * block

    def _output(self, lane: LaneView, seq: Sequence) -> int:
        """Predicted output of a request: more than it has generated."""
        generated = lane.generated(seq)
        known = self._predicted.get(seq, 0)
        if known > generated:
            return known
        policy, outputs = self._policy, self._outputs
        longest = lane.kv_tokens + 1 - seq.prompt_tokens  # the last token needs no KV
        predicted = min(policy.max_tokens or longest, longest)
        above = bisect_right(outputs, generated)
        rank = math.ceil(policy.output_quantile * (len(outputs) - above))
        if rank:
            predicted = min(predicted, outputs[above + rank - 1])
        predicted = max(predicted, generated + 1)
        if seq in self._running:
            self._predicted[seq] = predicted
        return predicted
