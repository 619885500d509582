"""One connection: when its requests came, and how long its client may keep the server waiting.

uvicorn alone waits for ever for a head, for the rest of a body that nobody reads any more, and
for a client that takes nothing, and it bounds no head.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from simulator.serve.protocol import error_document

MOST_HEAD_BYTES = 1 << 16


class Connection(HttpToolsProtocol):
    """uvicorn's, with deadlines. `scope["came_s"]` is the loop's time at a request's last byte."""

    def __init__(self, *args: Any, patience_s: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._patience_s = patience_s
        self._came_s = 0.0
        self._head_bytes = 0  # of a head that is not complete
        self._in_head = self._in_body = self._is_further = False
        self._owed: asyncio.TimerHandle | None = None  # runs while the client owes us bytes
        self._stall: asyncio.TimerHandle | None = None  # runs while it takes none

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        self._came_s = self.loop.time()
        self._is_further = False
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._in_body:
            if self.cycle.response_complete:  # it was refused
                self._expect()
        elif self._in_head or not self._is_further:
            self._head_bytes += 0 if self._is_further else len(data)
            if self._head_bytes > MOST_HEAD_BYTES:
                self._refuse(431, f"head: expected at most {MOST_HEAD_BYTES} bytes")
            self._expect()

    # --- what the parser finds ----------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        self._settle()
        self._in_head, self._in_body = False, True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._settle()
        self._in_body = False
        self.scope["came_s"] = self._came_s  # type: ignore[typeddict-unknown-key]
        super().on_message_complete()

    # --- what the client owes -----------------------------------------------------------------

    def _expect(self) -> None:
        if self._owed is None:
            self._owed = self.loop.call_later(self._patience_s, self._give_up)

    def _settle(self) -> None:
        self._is_further = True
        self._head_bytes = 0
        if self._owed is not None:
            self._owed.cancel()
            self._owed = None

    def _give_up(self) -> None:
        self._owed = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._expect()  # it is being answered
        elif self._in_head:
            self._refuse(408, "head: did not come in time")
        else:
            self.transport.close()

    def _refuse(self, status: int, message: str) -> None:
        body = error_document(status, message)
        length = f"content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
        kind = b"content-type: application/json\r\n"
        self.transport.write(STATUS_LINE[status] + kind + length + body)
        self.transport.close()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self.loop.call_later(self._patience_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._taken()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._settle()
        self._taken()

    def _taken(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
