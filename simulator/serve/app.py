"""The HTTP application: routes, limits, and how many tokens an answer has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from simulator.errors import ConfigError
from simulator.experiment import Experiment
from simulator.live.engine import LiveEngine
from simulator.live.ticket import Ticket
from simulator.serve.answer import Answer, Choice, Stream, Whole, failure
from simulator.serve.clock import WallClock
from simulator.serve.metrics import Metrics
from simulator.serve.protocol import BadRequest, Wish, read_wish

KINDS = {
    400: "invalid_request_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server bears."""

    most_pending: int = 4096  # requests in flight; more are answered 429
    most_body_bytes: int = 4 << 20
    body_patience_s: float = 30.0  # for a body to come in


class Server:
    """One emulated model behind HTTP."""

    def __init__(
        self,
        experiment: Experiment,
        names: tuple[str, ...],
        speed: float = 1.0,
        limits: Limits | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.names = names  # the first is the one answers carry
        if experiment.workload.samples_many:
            raise ConfigError("workload.n: expected 1, as clients say themselves how many answers")
        self.engine = LiveEngine(
            experiment,
            self.limits.most_pending,
            on_finish=self._ended,
            on_token=lambda ticket, gap_ns: self.metrics.token(ticket, gap_ns),
        )
        self.metrics = Metrics(names[0], self.engine.ranks, self.engine.most_tokens)
        self.clock = WallClock(self.engine, speed)
        self.clock.on_failure = self._failed
        self.is_closing = False
        self._lengths: list[int] = experiment.workload.output_tokens.tolist()
        self._num_drawn = 0
        self._answers: set[Answer] = set()
        self._reasons: dict[Ticket, str] = {}
        routes = [
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/health", self.health),
            Route("/ping", self.health, methods=["GET", "POST"]),
            Route("/metrics", self.scrape),
        ]
        self.app = Starlette(
            routes=routes,
            lifespan=self._lifespan,
            exception_handlers={HTTPException: _http_error, BadRequest: _bad_request},  # type: ignore[dict-item]
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self.clock.start()
        yield

    # --- routes -------------------------------------------------------------------------------

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, is_chat=False)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, is_chat=True)

    async def models(self, request: Request) -> Response:
        cards = [
            {
                "id": name,
                "object": "model",
                "created": 0,
                "owned_by": "headway",
                "root": self.names[0],
                "parent": None,
                "max_model_len": self.engine.most_tokens,
            }
            for name in self.names
        ]
        return JSONResponse({"object": "list", "data": cards})

    async def health(self, request: Request) -> Response:
        return Response(status_code=503 if self.is_closing or self.clock.failure else 200)

    async def scrape(self, request: Request) -> Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(self.metrics.page(self.clock.lag_s), media_type=kind)

    # --- an answer ----------------------------------------------------------------------------

    async def _answer(self, request: Request, is_chat: bool) -> Response:
        if self.clock.failure:
            return failure()
        if self.is_closing:
            raise BadRequest(503, "the server is shutting down")
        body = await self._body(request)
        arrival_ns = self.clock.now_ns()  # what reading costs here is in the engine's own lead
        wish = read_wish(body, is_chat)
        if wish.model and wish.model not in self.names:
            raise BadRequest(
                404, f"model: no {wish.model!r} here ({', '.join(self.names)})", "model"
            )
        asked = [(n, *self._length(wish, n)) for n in wish.prompts for _ in range(wish.num_answers)]
        if self.engine.num_in_flight + len(asked) > self.limits.most_pending:
            raise BadRequest(429, f"{self.engine.num_in_flight} requests are in flight; try later")
        answer = Answer(wish, wish.model or self.names[0], self.clock.drop)
        for prompt_tokens, output_tokens, reason in asked:
            ticket = self.clock.submit(
                arrival_ns, prompt_tokens, output_tokens, wish.priority, answer.news.set
            )
            answer.choices.append(Choice(ticket, reason))
            self._reasons[ticket] = reason
        self._answers.add(answer)
        return _Kept(Stream(answer) if wish.stream else Whole(answer), self._answers, answer)

    async def _body(self, request: Request) -> bytes:
        most = self.limits.most_body_bytes
        stated = request.headers.get("content-length", "")
        if stated.isdigit() and int(stated) > most:
            raise BadRequest(413, f"body: expected at most {most} bytes (got {stated})")
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_patience_s):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise BadRequest(413, f"body: expected at most {most} bytes")
        except TimeoutError:
            raise BadRequest(408, "body: did not come in time") from None
        except ClientDisconnect:
            raise BadRequest(400, "body: the client went away") from None
        return bytes(body)

    def _length(self, wish: Wish, prompt_tokens: int) -> tuple[int, str]:
        """Tokens of an answer, and why it ends there.

        Without `ignore_eos` an answer would be as long as the next of the experiment's workload.
        """
        room = self.engine.most_tokens - prompt_tokens
        most = wish.most_tokens or room
        if room < 1 or (wish.most_tokens is not None and most > room):
            raise BadRequest(
                400,
                f"expected at most {self.engine.most_tokens} tokens of context "
                f"(got {prompt_tokens} of prompt, {wish.most_tokens or 1} of answer)",
            )
        if wish.ignore_eos:
            return most, "length"
        drawn = max(self._lengths[self._num_drawn % len(self._lengths)], wish.min_tokens, 1)
        self._num_drawn += 1
        return (drawn, "stop") if drawn < most else (most, "length")

    # --- news of the engine -------------------------------------------------------------------

    def _ended(self, ticket: Ticket) -> None:
        reason = self._reasons.pop(ticket, "length")
        self.metrics.ended(ticket, "abort" if ticket.is_dropped else reason)

    def _failed(self) -> None:
        for answer in self._answers:
            answer.fail()

    def close(self) -> None:
        """Take nothing new; what is being answered goes on."""
        self.is_closing = True


class _Kept(Response):
    """A response that is on the server's list until it has been sent."""

    def __init__(self, inner: Response, kept: set[Answer], answer: Answer) -> None:
        super().__init__()
        self._inner, self._kept, self._answer = inner, kept, answer

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        try:
            await self._inner(scope, receive, send)
        finally:
            self._kept.discard(self._answer)


def _error(status: int, message: str, param: str | None = None) -> JSONResponse:
    kind = KINDS.get(status, "invalid_request_error")
    body = {"error": {"message": message, "type": kind, "param": param, "code": status}}
    return JSONResponse(body, status, {"retry-after": "1"} if status in (429, 503) else None)


async def _bad_request(request: Request, error: BadRequest) -> Response:
    return _error(error.status, str(error), error.param)


async def _http_error(request: Request, error: HTTPException) -> Response:
    response = _error(error.status_code, str(error.detail))
    response.headers.update(error.headers or {})
    return response
