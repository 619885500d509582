"""A limit of requests a minute for each client: VTC's rival that turns requests away."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ConfigError
from simulator.request import RequestTable
from simulator.schedulers.vllm_v1 import VllmV1

MINUTE_NS = 60_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rpm(VllmV1):
    """vLLM V1 behind a limit of requests a minute for each client; the rest are rejected."""

    requests_per_minute: int = 20

    def __post_init__(self) -> None:
        VllmV1.__post_init__(self)
        if self.requests_per_minute < 1:
            raise ConfigError(
                "scheduler.requests_per_minute: expected an int >= 1 "
                f"(got {self.requests_per_minute!r})"
            )

    def takes(self, table: RequestTable) -> NDArray[np.bool_]:
        """Requests whose client has fewer than the limit accepted in the minute before.

        Raises:
            ConfigError: a closed loop, whose requests have no time before they are sent.
        """
        if not table.is_open_loop:
            raise ConfigError(
                "scheduler rpm: expected a workload whose arrivals are known (got a closed loop)"
            )
        clients = np.zeros(len(table), np.int64) if table.client is None else table.client
        recent: dict[int, deque[int]] = {}
        taken = np.zeros(len(table), dtype=np.bool_)
        requests = zip(table.arrival_ns.tolist(), clients.tolist(), strict=True)
        for i, (at_ns, client) in enumerate(requests):
            times = recent.setdefault(client, deque())
            while times and times[0] <= at_ns - MINUTE_NS:
                times.popleft()
            if len(times) < self.requests_per_minute:
                times.append(at_ns)
                taken[i] = True
        return taken
