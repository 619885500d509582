"""An event loop whose timers are as fine as the system's."""

from __future__ import annotations

import asyncio
import select
import selectors


def precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop; on Linux `epoll_wait` counts in milliseconds, which rounds timers up."""
    if hasattr(selectors, "EpollSelector"):
        return asyncio.SelectorEventLoop(_Fine())
    return asyncio.new_event_loop()


if hasattr(selectors, "EpollSelector"):

    class _Fine(selectors.EpollSelector):
        """Waits on the epoll's own descriptor with `select`, which counts in microseconds."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0:
                select.select((self.fileno(),), (), (), timeout)
                timeout = 0
            return super().select(timeout)
