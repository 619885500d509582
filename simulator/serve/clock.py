"""The live engine on the wall clock: simulated a little ahead, told when it is due.

A request that comes now reaches the scheduler only after its front-end time, so whatever happens
before that is settled already: it is simulated early, and what is left to do when a token is due
is to write it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf

from simulator.live.engine import LiveEngine
from simulator.live.ticket import Ticket

MOST_AHEAD_S = 0.005
SLICE_S = 0.005  # of catching up, before connections get their turn
MOST_TOLD = 8  # at once, likewise

Show = Callable[[int, float], None]  # tokens so far, and when the newest was due (loop time)


class WallClock:
    """Moves an engine; simulated time is wall time times `speed` since `start`."""

    def __init__(self, engine: LiveEngine, speed: float, client_s: float) -> None:
        self.engine = engine
        self.speed = speed
        self.failure: Exception | None = None  # a bug of the engine: nothing comes any more
        self.on_failure: Callable[[], None] = lambda: None
        # Front-end times are fitted to what clients measured, so they hold HTTP and the client,
        # which here take their time themselves.
        self._client_ns = min(int(client_s * speed * 1e9), engine.lead_ns // 2)
        # Half of the rest; the other half is for reading a request, after its arrival was noted.
        ahead_ns = (engine.lead_ns - self._client_ns) // 2
        self._ahead_ns = min(ahead_ns, int(MOST_AHEAD_S * speed * 1e9))
        self._due: deque[tuple[int, int, Show]] = deque()  # ns, tokens so far, whom to tell
        self._begin_s = 0.0
        self._timer: asyncio.Handle | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._begin_s = self._loop.time()

    def at_ns(self, loop_s: float) -> int:
        """Simulated time at a time of the event loop."""
        return int((loop_s - self._begin_s) * self.speed * 1e9)

    def sent_ns(self, came_s: float) -> int:
        """Simulated time at which a client has sent a request that came at a time of the loop."""
        return max(0, self.at_ns(came_s) - self._client_ns)

    def at_s(self, time_ns: float) -> float:
        """Time of the event loop at a simulated time."""
        return self._begin_s + time_ns / 1e9 / self.speed

    @property
    def lag_s(self) -> float:
        """Wall seconds by which the engine is behind."""
        next_ns = self._due[0][0] if self._due else self.engine.next_ns
        return max(0.0, self._loop.time() - self.at_s(next_ns))

    def submit(
        self, time_ns: int, prompt_tokens: int, output_tokens: int, priority: int, show: Show
    ) -> Ticket:
        """As the engine's; `show` is called when tokens are due."""

        def change() -> None:
            self._due.append((ticket.latest_ns, ticket.given, show))

        ticket = self.engine.submit(time_ns, prompt_tokens, output_tokens, priority, change)
        self._arm()
        return ticket

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        next_ns = self.engine.next_ns - self._ahead_ns
        if self._due:
            next_ns = min(next_ns, self._due[0][0])
        if next_ns < inf:
            self._timer = self._loop.call_at(self.at_s(next_ns), self._tick)

    def _tick(self) -> None:
        self._timer = None
        until_s = self._loop.time() + SLICE_S
        try:
            while True:
                now_s = self._loop.time()
                now_ns = self.at_ns(now_s)
                if self._tell(now_ns):
                    break  # it is to be written first
                next_ns = self.engine.next_ns
                if next_ns > now_ns + self._ahead_ns or now_s > until_s:
                    break
                self.engine.advance(int(next_ns))
        except Exception as error:
            self.failure = error
            self.on_failure()
        else:
            self._arm()

    def _tell(self, now_ns: int) -> bool:
        """Tell of tokens that are due; whether there were any."""
        due = self._due
        for told in range(MOST_TOLD):
            if not due or due[0][0] > now_ns:
                return told > 0
            time_ns, given, show = due.popleft()
            show(given, self.at_s(time_ns))
        return True
