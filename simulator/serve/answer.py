"""Answers: the choices of one request, as JSON at once or as server-sent events.

What has been written of a choice is a number, so a client that reads slowly costs no memory and
never holds up the engine.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Callable
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from simulator.live.ticket import Ticket
from simulator.serve.protocol import Wish
from simulator.serve.words import WORDS, text_of

STALL_S = 60.0  # a client that takes nothing for so long is gone
QUOTED = [json.dumps(word)[1:-1].encode() for word in WORDS]


class Choice:
    """One answer: its ticket, and how much of it has been written."""

    __slots__ = ("is_over", "reason", "ticket", "written")

    def __init__(self, ticket: Ticket, reason: str) -> None:
        self.ticket = ticket
        self.reason = reason  # why it will end: stop or length
        self.written = 0
        self.is_over = False


class Answer:
    """All choices of a request, and the news of them."""

    def __init__(self, wish: Wish, model: str, drop: Callable[[Ticket], None]) -> None:
        self.wish = wish
        self.model = model
        self.choices: list[Choice] = []
        self.news = asyncio.Event()
        self.is_gone = False  # the client
        self.has_failed = False  # the engine
        self.created = int(time.time())
        self.id = f"{'chatcmpl' if wish.is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._drop = drop

    def fail(self) -> None:
        self.has_failed = True
        self.news.set()

    def release(self) -> None:
        """Let go of what is not finished."""
        for choice in self.choices:
            if not choice.ticket.is_done:
                self._drop(choice.ticket)

    def usage(self) -> dict[str, int]:
        prompt = sum(self.wish.prompts)
        given = sum(choice.ticket.given for choice in self.choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": given,
            "total_tokens": prompt + given,
        }

    def header(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    async def watch(self, receive: Receive) -> None:
        """Note when the client goes away."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.is_gone = True
        self.news.set()

    def document(self) -> dict[str, Any]:
        """The whole, once every choice is finished."""
        choices = []
        for i, choice in enumerate(self.choices):
            text = text_of(0, choice.ticket.given)
            said: dict[str, Any] = {"text": text}
            if self.wish.is_chat:
                said = {"message": {"role": "assistant", "content": text}}
            choices.append({"index": i, **said, "logprobs": None, "finish_reason": choice.reason})
        kind = "chat.completion" if self.wish.is_chat else "text_completion"
        return {**self.header(kind), "choices": choices, "usage": self.usage()}


class Whole(Response):
    """An answer as one JSON document."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self.answer
        watcher = asyncio.ensure_future(answer.watch(receive))
        try:
            while not all(choice.ticket.is_done for choice in answer.choices):
                await answer.news.wait()
                answer.news.clear()
                if answer.is_gone:
                    return
                if answer.has_failed:
                    await failure()(scope, receive, send)
                    return
            async with asyncio.timeout(STALL_S):
                await JSONResponse(answer.document())(scope, receive, send)
        except TimeoutError:
            pass
        finally:
            watcher.cancel()
            answer.release()


class Stream(Response):
    """An answer token by token: an event each, those that are late together in one write."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer
        self._frames = [self._frame(i) for i in range(len(answer.choices))]

    def _frame(self, index: int) -> tuple[bytes, bytes, bytes]:
        """What stands before the text of an event, after it, and after the last one's."""
        answer = self.answer
        kind = "chat.completion.chunk" if answer.wish.is_chat else "text_completion"
        mark = "\u0000"
        said: dict[str, Any] = (
            {"delta": {"content": mark}} if answer.wish.is_chat else {"text": mark}
        )
        ends = []
        for reason in (None, answer.choices[index].reason):
            choice = {"index": index, **said, "logprobs": None, "finish_reason": reason}
            ends.append(_event({**answer.header(kind), "choices": [choice]}))
        before, after = ends[0].split(b"\\u0000")
        return before, after, ends[1].split(b"\\u0000")[1]

    def _greeting(self, index: int) -> bytes:
        delta = {"role": "assistant", "content": ""}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
        return _event({**self.answer.header("chat.completion.chunk"), "choices": [choice]})

    def _fresh(self) -> bytes:
        """Events of the tokens not yet written."""
        parts: list[bytes] = []
        for index, choice in enumerate(self.answer.choices):
            given = choice.ticket.given
            if choice.written == given:
                continue
            before, after, last = self._frames[index]
            if choice.written == 0 and self.answer.wish.is_chat:
                parts.append(self._greeting(index))
            for i in range(choice.written, given):
                ending = last if i + 1 == choice.ticket.asked else after
                parts += (before, QUOTED[i % len(QUOTED)], ending)
            choice.written = given
        return b"".join(parts)

    def _closing(self) -> bytes:
        answer = self.answer
        if answer.has_failed:
            return _event(ERROR)
        usage = b""
        if answer.wish.include_usage:
            kind = "chat.completion.chunk" if answer.wish.is_chat else "text_completion"
            usage = _event({**answer.header(kind), "choices": [], "usage": answer.usage()})
        return usage + b"data: [DONE]\n\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self.answer
        watcher = asyncio.ensure_future(answer.watch(receive))
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]

        async def write(body: bytes, more: bool = True) -> None:
            async with asyncio.timeout(STALL_S):
                await send({"type": "http.response.body", "body": body, "more_body": more})

        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while not answer.has_failed:
                if body := self._fresh():
                    await write(body)
                if all(choice.written == choice.ticket.asked for choice in answer.choices):
                    break
                await answer.news.wait()
                answer.news.clear()
                if answer.is_gone:
                    return
            await write(self._closing(), more=False)
        except (TimeoutError, OSError):
            pass  # the client takes nothing any more
        finally:
            watcher.cancel()
            answer.release()


ERROR = {
    "error": {
        "message": "the simulated engine has failed",
        "type": "internal_server_error",
        "param": None,
        "code": 500,
    }
}


def failure() -> JSONResponse:
    """The answer of a server whose engine is broken."""
    return JSONResponse(ERROR, 500)


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"
