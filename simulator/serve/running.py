"""The server's process: an event loop, uvicorn, and what signals do."""

from __future__ import annotations

import asyncio
import gc
import select
import selectors
import signal
import socket
from functools import partial
from typing import Any

import uvicorn

from simulator.serve.app import Server
from simulator.serve.connection import Connection

LAST_WORDS_S = 2  # for answers that are cut off to say so


def run_server(server: Server, listener: socket.socket, grace_s: int) -> None:
    """Serve until SIGINT or SIGTERM, then let answers end for so long, or until it comes again."""
    config = uvicorn.Config(
        server.app,
        http=partial(Connection, patience_s=server.limits.patience_s),  # type: ignore[arg-type]
        ws="none",
        proxy_headers=False,
        log_level="error",  # a client that speaks no HTTP is told so itself
        access_log=False,
        timeout_graceful_shutdown=grace_s + LAST_WORDS_S,
        lifespan="on",
    )

    class Closing(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            server.close_soon(0 if self.should_exit else grace_s)
            if not self.should_exit:
                super().handle_exit(sig, frame)

    gc.collect()
    gc.freeze()  # no collection goes through all that was imported, which would take 50 ms
    # uvicorn raises the signal again when it has closed; that is not an error here.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with asyncio.Runner(loop_factory=precise_loop) as runner:
            runner.run(Closing(config).serve(sockets=[listener]))
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        gc.unfreeze()


def precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop; on Linux `epoll_wait` counts in milliseconds, which rounds timers up."""
    if hasattr(selectors, "EpollSelector"):
        return asyncio.SelectorEventLoop(_FineSelector())
    return asyncio.new_event_loop()


if hasattr(selectors, "EpollSelector"):

    class _FineSelector(selectors.EpollSelector):
        """Waits on the epoll's own descriptor with `select`, which counts in microseconds."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            if timeout is not None and timeout > 0:
                select.select((self.fileno(),), (), (), timeout)
                timeout = 0
            return super().select(timeout)
