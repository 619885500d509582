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

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from simulator.live.ticket import Ticket
from simulator.serve.protocol import Wish, error_document
from simulator.serve.words import WORDS, start_of, text_of

MOST_AT_ONCE = 64  # tokens in one write, when a client has fallen behind
JSON_TYPE = "application/json"
QUOTED = [json.dumps(word)[1:-1].encode() for word in WORDS]


class Choice:
    """One answer: how much of it is due, and how much has been written."""

    __slots__ = ("answer", "asked", "cut", "due", "reason", "ticket", "written")

    def __init__(self, answer: Answer, asked: int, reason: str, cut: int | None) -> None:
        self.answer = answer
        self.cut = cut  # characters shown, where a stop string cuts the text off
        self.asked = asked  # tokens
        self.reason = reason  # why it will end: stop or length
        self.due = self.written = 0
        self.ticket: Ticket | None = None

    def show(self, given: int, due_s: float) -> None:
        """So many of its tokens are due, the newest since then (loop time)."""
        self.due = given
        self.answer.tell(due_s, given == self.asked)

    def quoted(self, token: int) -> bytes:
        """The text of a token, as it stands in JSON."""
        word = QUOTED[token % len(QUOTED)]
        return word if self.cut is None else word[: max(0, self.cut - start_of(token))]


class Answer:
    """All choices of a request, and the news of them."""

    def __init__(self, wish: Wish, model: str, on_end: Callable[[Answer], None]) -> None:
        self.wish = wish
        self.model = model
        self.choices: list[Choice] = []
        self.is_gone = False  # the client
        self.failure: tuple[int, str] | None = None  # status, and what is wrong
        self.end = on_end  # to be called when there is nothing more to write
        self._news = asyncio.Event()
        self._due_s = 0.0  # of the first token of the news
        self._created = int(time.time())
        self._id = f"{'chatcmpl' if wish.is_chat else 'cmpl'}-{uuid.uuid4().hex}"

    def tell(self, due_s: float, is_last: bool) -> None:
        if not self._news.is_set() and (is_last or self.wish.stream):
            self._due_s = due_s
            self._news.set()

    def fail(self, status: int, message: str) -> None:
        self.failure = self.failure or (status, message)
        self._news.set()

    async def news(self) -> float | None:
        """Wait for some. When its token was due, if it has been waited for."""
        was_there = self._news.is_set()
        await self._news.wait()
        self._news.clear()
        return None if was_there or self.failure or self.is_gone else self._due_s

    async def watch(self, receive: Receive) -> None:
        """Note when the client goes away."""
        while (await receive())["type"] != "http.disconnect":
            pass
        self.is_gone = True
        self._news.set()

    def header(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self.model}

    def usage(self) -> dict[str, int]:
        prompt = sum(self.wish.prompts)
        given = sum(choice.due for choice in self.choices)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": given,
            "total_tokens": prompt + given,
        }

    def document(self) -> dict[str, Any]:
        """The whole, once every choice is finished."""
        choices = []
        for i, choice in enumerate(self.choices):
            text = text_of(0, choice.due)[: choice.cut]
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
            while not all(choice.due == choice.asked for choice in answer.choices):
                await answer.news()
                if answer.is_gone:
                    return
                if answer.failure:
                    await error_response(*answer.failure)(scope, receive, send)
                    return
            body = _compact(answer.document())
            await Response(body, media_type=JSON_TYPE)(scope, receive, send)
        finally:
            watcher.cancel()
            answer.end(answer)


class Stream(Response):
    """An answer token by token: an event each, those that are late together in one write."""

    def __init__(self, answer: Answer, on_late: Callable[[float], None]) -> None:
        super().__init__()
        self.answer = answer
        self._on_late = on_late  # told how late tokens are that are about to be written (due time)
        self._frames = [self._frame(i) for i in range(len(answer.choices))]

    def _frame(self, index: int) -> tuple[bytes, bytes, bytes]:
        """What stands before the text of an event, after it, and after the last one's."""
        mark = "\u0000"
        said: dict[str, Any] = (
            {"delta": {"content": mark}} if self.answer.wish.is_chat else {"text": mark}
        )
        ends = []
        for reason in (None, self.answer.choices[index].reason):
            choice = {"index": index, **said, "logprobs": None, "finish_reason": reason}
            ends.append(self._event([choice]))
        before, after = ends[0].split(b"\\u0000")
        return before, after, ends[1].split(b"\\u0000")[1]

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        kind = "chat.completion.chunk" if self.answer.wish.is_chat else "text_completion"
        return _event({**self.answer.header(kind), "choices": choices, **more})

    def _greeting(self, index: int) -> bytes:
        delta = {"role": "assistant", "content": ""}
        return self._event(
            [{"index": index, "delta": delta, "logprobs": None, "finish_reason": None}]
        )

    def _fresh(self) -> bytes:
        """Events of tokens that are due and not yet written."""
        parts: list[bytes] = []
        for index, choice in enumerate(self.answer.choices):
            first, end = choice.written, min(choice.due, choice.written + MOST_AT_ONCE)
            if first == end:
                continue
            before, after, last = self._frames[index]
            if first == 0 and self.answer.wish.is_chat:
                parts.append(self._greeting(index))
            for i in range(first, end):
                ending = last if i + 1 == choice.asked else after
                parts += (before, choice.quoted(i), ending)
            choice.written = end
        return b"".join(parts)

    def _closing(self) -> bytes:
        answer = self.answer
        if answer.failure:
            return b"data: " + error_document(*answer.failure) + b"\n\n"
        usage = b""
        if answer.wish.include_usage:
            usage = self._event([], usage=answer.usage())
        return usage + b"data: [DONE]\n\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self.answer
        watcher = asyncio.ensure_future(answer.watch(receive))
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        headers += [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        try:
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while not all(choice.written == choice.asked for choice in answer.choices):
                if body := self._fresh():
                    await send({"type": "http.response.body", "body": body, "more_body": True})
                    continue
                if (due_s := await answer.news()) is not None:
                    self._on_late(due_s)
                if answer.is_gone:
                    return
                if answer.failure:
                    break
            await send({"type": "http.response.body", "body": self._closing(), "more_body": False})
        finally:
            watcher.cancel()
            answer.end(answer)


def error_response(status: int, message: str, param: str | None = None) -> Response:
    """An error, in OpenAI's form."""
    headers = {"retry-after": "1"} if status in (429, 503) else {}
    if status == 408:
        headers["connection"] = "close"
    return Response(error_document(status, message, param), status, headers, JSON_TYPE)


def _compact(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def _event(document: dict[str, Any]) -> bytes:
    return b"data: " + _compact(document) + b"\n\n"
