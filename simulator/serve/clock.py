"""The live engine on the wall clock: a timer of the event loop for each instant it has."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from math import inf

from simulator.live.engine import LiveEngine
from simulator.live.ticket import Ticket

ROUNDED_S = 0.001  # timers of an event loop are late by up to this: the rest is polled
SLICE_S = 0.005  # of catching up, before connections get their turn


class WallClock:
    """Moves an engine; simulated time is wall time times `speed` since `start`."""

    def __init__(self, engine: LiveEngine, speed: float) -> None:
        self.engine = engine
        self.speed = speed
        self.failure: Exception | None = None  # a bug of the engine: nothing comes any more
        self.on_failure: Callable[[], None] = lambda: None
        self._begin_s = 0.0
        self._timer: asyncio.Handle | None = None

    def start(self) -> None:
        self._begin_s = asyncio.get_running_loop().time()

    def now_ns(self) -> int:
        passed_s = asyncio.get_running_loop().time() - self._begin_s
        return int(passed_s * self.speed * 1e9)

    @property
    def lag_s(self) -> float:
        """Wall seconds by which the engine is behind."""
        if self.engine.next_ns == inf:
            return 0.0
        return max(0.0, (self.now_ns() - self.engine.next_ns) / 1e9 / self.speed)

    def submit(
        self,
        time_ns: int,
        prompt_tokens: int,
        output_tokens: int,
        priority: int,
        change: Callable[[], None],
    ) -> Ticket:
        """As the engine's; a time that is already past for the engine is now."""
        ticket = self.engine.submit(time_ns, prompt_tokens, output_tokens, priority, change)
        self._arm()
        return ticket

    def drop(self, ticket: Ticket) -> None:
        self.engine.drop(ticket)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        next_ns = self.engine.next_ns
        if next_ns < inf:
            loop = asyncio.get_running_loop()
            left_s = self._begin_s + next_ns / self.speed / 1e9 - loop.time()
            if left_s > ROUNDED_S:
                self._timer = loop.call_later(left_s - ROUNDED_S, self._tick)
            else:
                self._timer = loop.call_soon(self._tick)

    def _tick(self) -> None:
        self._timer = None
        until_s = time.perf_counter() + SLICE_S
        try:
            while (next_ns := self.engine.next_ns) <= self.now_ns():
                self.engine.advance(int(next_ns))
                if time.perf_counter() > until_s:
                    break
            self._arm()
        except Exception as error:
            self.failure = error
            self.on_failure()
