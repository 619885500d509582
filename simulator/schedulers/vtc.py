"""VTC, the virtual token counter (OSDI'24): fair shares between clients, work-conserving.

Every client has a counter of the service it was given: `input_weight` for each prompt token, at
admission, and `output_weight` for each token generated. The next to be admitted is the earliest
request of the waiting client with the smallest counter. A client that comes back after having
nothing waiting is lifted to the smallest counter of those that wait, so that nobody saves up. Which
requests run is all that VTC decides: batches are formed as vLLM V1 forms them.

The rivals of the paper are this without the lift (`lift: false`, least counter first), plain FCFS
(`vllm_v1`), and a limit of requests a minute for each client (`rpm`). Counters are kept for each
attention rank on its own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from simulator.errors import ConfigError
from simulator.request import RequestTable, Sequence
from simulator.schedulers.vllm_v1 import VllmV1

if TYPE_CHECKING:
    from simulator.schedulers.view import LaneView, WaitingQueue

PREDICTIONS = ("none", "oracle", "history")
HISTORY = 5  # finished requests of a client whose mean length predicts the next one's


@dataclass(frozen=True, slots=True, kw_only=True)
class Vtc(VllmV1):
    """Fair admission between clients by virtual token counters."""

    input_weight: float = 1.0
    output_weight: float = 2.0
    client_weights: tuple[float, ...] = ()  # shares of client 0, 1, ...; () = equal
    lift: bool = True  # false = LCF: a client that was idle keeps its old, small counter
    admit_every: int = 1  # decode iterations from one admission to the next (LightLLM: 10)
    predict: str = "none"  # charge the output at admission: oracle (true length) or history
    predict_error: float = 0.0  # of the oracle: up to this share too long or too short
    predict_seed: int = 0  # of those errors

    def __post_init__(self) -> None:
        VllmV1.__post_init__(self)
        if self.policy != "fcfs":
            raise ConfigError("scheduler.policy: VTC orders requests itself (got 'priority')")
        for name in ("input_weight", "output_weight", "predict_error"):
            if getattr(self, name) < 0:
                value = getattr(self, name)
                raise ConfigError(f"scheduler.{name}: expected a number >= 0 (got {value!r})")
        if self.admit_every < 1:
            value = self.admit_every
            raise ConfigError(f"scheduler.admit_every: expected an int >= 1 (got {value!r})")
        if any(not weight > 0 for weight in self.client_weights):
            raise ConfigError("scheduler.client_weights: expected numbers > 0")
        if self.predict not in PREDICTIONS:
            names = ", ".join(PREDICTIONS)
            raise ConfigError(f"scheduler.predict: expected one of {names} (got {self.predict!r})")

    @property
    def by_priority(self) -> bool:
        return True  # a newcomer may be the next

    @property
    def arrivals_wait(self) -> bool:
        return False

    def queue(self, table: RequestTable) -> WaitingQueue:
        """The waiting requests of one rank, with the counters."""
        return ClientQueues(self, table)

    def plan(self, lane: LaneView) -> int:
        waiting = lane.waiting
        assert isinstance(waiting, ClientQueues)
        waiting.update(lane)
        claim = VllmV1.plan(self, lane)
        # While somebody waits, counters decide at every iteration who is next.
        return min(claim, 1) if waiting else claim

    def _admit(self, lane: LaneView, budget: int) -> bool:
        waiting = lane.waiting
        assert isinstance(waiting, ClientQueues)
        since = lane.decode_iterations - waiting.admitted_at.get(lane.key, 0)
        if since < self.admit_every and lane.num_decode:
            return False
        waiting.admitted_at[lane.key] = lane.decode_iterations
        return VllmV1._admit(self, lane, budget)

    def _preempt(self, lane: LaneView) -> bool:
        return lane.preempt_last()


class ClientQueues:
    """Waiting requests by client; [0] is the earliest of the client with the least counter.

    Counters follow what was computed when `update` is called, before each plan: so they are the
    same however many iterations were run at once.
    """

    __slots__ = ("_charged", "_client", "_incoming", "_last_left", "_num", "_policy",
                 "_predicted", "_preempted", "_queues", "_recent", "admitted_at",
                 "counters")  # fmt: skip

    def __init__(self, policy: Vtc, table: RequestTable) -> None:
        self._policy = policy
        clients = np.zeros(len(table), np.int64) if table.client is None else table.client
        self._client: list[int] = clients.tolist()
        self.counters: dict[int, float] = {}
        self._queues: dict[int, deque[Sequence]] = {}  # of clients with something waiting
        self._incoming: list[Sequence] = []  # arrived since the latest update
        self._charged: dict[Sequence, float] = {}  # begun: tokens of output paid for
        self._preempted: set[Sequence] = set()  # waiting again
        self._last_left = -1  # client that last had nothing waiting any more
        self._num = 0
        self.admitted_at: dict[int, int] = {}  # lane: decode iterations before it last admitted
        self._recent: dict[int, deque[int]] = {}  # output lengths of each client's last requests
        self._predicted: list[float] = []
        if policy.predict == "oracle":
            rng = np.random.default_rng(policy.predict_seed)
            errors = 1 + policy.predict_error * rng.uniform(-1, 1, len(table))
            self._predicted = (table.output_tokens * errors).tolist()

    def __len__(self) -> int:
        return self._num

    def __getitem__(self, index: int) -> Sequence:
        return self._queues[self._next_client()][index]

    def append(self, seq: Sequence) -> None:
        self._num += 1
        self._incoming.append(seq)

    def appendleft(self, seq: Sequence) -> None:
        """A preempted request comes back; what it was given stays paid."""
        self._num += 1
        self._preempted.add(seq)
        client = self._client[seq.id]
        if client not in self.counters:
            self._enter(client)
        self._queues.setdefault(client, deque()).appendleft(seq)

    def popleft(self) -> Sequence:
        client = self._next_client()
        queue = self._queues[client]
        seq = queue.popleft()
        self._num -= 1
        if not queue:
            del self._queues[client]
            self._last_left = client
        if seq in self._preempted:
            self._preempted.remove(seq)
        else:
            policy = self._policy
            self._charged[seq] = ahead = self._prediction(seq)
            prompt = policy.input_weight * seq.prompt_tokens
            self._charge(client, prompt + policy.output_weight * ahead)
        return seq

    def update(self, lane: LaneView) -> None:
        """Charge what has been generated since the last time, then let newcomers in."""
        running = dict.fromkeys(lane.running())
        for seq in running:
            if seq not in self._charged:  # moved here: paid for elsewhere until now
                self._charged[seq] = lane.generated(seq)
        for seq, paid in list(self._charged.items()):
            client, generated = self._client[seq.id], lane.generated(seq)
            is_over = seq not in running and seq not in self._preempted
            if is_over or generated > paid:  # what was paid too much comes back at the end
                self._charge(client, self._policy.output_weight * (generated - paid))
                self._charged[seq] = generated
            if is_over:
                del self._charged[seq]
                self._recent.setdefault(client, deque(maxlen=HISTORY)).append(generated)
        for seq in self._incoming:
            client = self._client[seq.id]
            if client not in self._queues:
                self._enter(client)
                self._queues[client] = deque()
            self._queues[client].append(seq)
        self._incoming.clear()

    def _enter(self, client: int) -> None:
        mine = self.counters.setdefault(client, 0.0)
        if not self._policy.lift:
            return
        if self._queues:
            least = min(self.counters[other] for other in self._queues)
        else:
            least = self.counters.get(self._last_left, 0.0)
        self.counters[client] = max(mine, least)

    def _next_client(self) -> int:
        counters, queues = self.counters, self._queues
        return min(queues, key=lambda client: (counters[client], queues[client][0].id))

    def _charge(self, client: int, service: float) -> None:
        weights = self._policy.client_weights
        weight = weights[client] if client < len(weights) else 1.0
        self.counters[client] = self.counters.get(client, 0.0) + service / weight

    def _prediction(self, seq: Sequence) -> float:
        if self._predicted:
            return self._predicted[seq.id]
        recent = self._recent.get(self._client[seq.id])
        if self._policy.predict == "none" or not recent:
            return 0.0
        return sum(recent) / len(recent)
