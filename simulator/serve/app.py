"""The HTTP application: routes, limits, and how many tokens an answer has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from simulator.errors import ConfigError
from simulator.experiment import Experiment
from simulator.live.engine import LiveEngine
from simulator.live.ticket import Ticket
from simulator.serve.answer import Answer, Choice, Stream, Whole, error_response
from simulator.serve.clock import WallClock
from simulator.serve.metrics import Metrics
from simulator.serve.protocol import BadRequest, Wish, read_wish
from simulator.serve.record import Record
from simulator.serve.words import stop_at

ANY_ORIGIN = {name: ["*"] for name in ("allow_origins", "allow_methods", "allow_headers")}
CLOSING = "the server is shutting down"
FAILED = "the simulated engine has failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a server bears."""

    most_pending: int = 4096  # requests in flight; more are answered 429
    most_body_bytes: int = 4 << 20
    client_s: float = 0.001  # of the front-end time that HTTP and the client take themselves
    patience_s: float = 30.0  # how long a client may take to send a request or take an answer


class Server:
    """One emulated model behind HTTP."""

    def __init__(
        self,
        experiment: Experiment,
        names: tuple[str, ...],
        speed: float = 1.0,
        limits: Limits | None = None,
        notify: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.record: Record | None = None
        self.notify = notify
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
        self.clock = WallClock(self.engine, speed, self.limits.client_s)
        self.clock.on_failure = self._failed
        self.is_closing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lengths: list[int] = experiment.workload.output_tokens.tolist()
        self._num_drawn = 0
        self._latest_ns = -1
        self._answers: set[Answer] = set()  # not yet written to the end
        self._reasons: dict[Ticket, str] = {}
        routes = [
            Route("/v1/completions", self.completions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/health", self.health),
            Route("/ping", self.health, methods=["GET", "POST"]),
            Route("/metrics", self.scrape),
        ]
        self.app = Starlette(
            routes=routes,
            lifespan=self._lifespan,
            middleware=[Middleware(CORSMiddleware, **ANY_ORIGIN)],  # type: ignore[arg-type]
            exception_handlers={HTTPException: _http_error, BadRequest: _bad_request},  # type: ignore[dict-item]
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        self.clock.start()
        yield

    # --- routes -------------------------------------------------------------------------------

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, is_chat=False)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, is_chat=True)

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._card(name) for name in self.names]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.names:
            raise self._unknown(name)
        return JSONResponse(self._card(name))

    def _card(self, name: str) -> dict[str, object]:
        return {
            "id": name,
            "object": "model",
            "created": 0,
            "owned_by": "headway",
            "root": self.names[0],
            "parent": None,
            "max_model_len": self.engine.most_tokens,
        }

    def _unknown(self, name: str) -> BadRequest:
        return BadRequest(404, f"model: no {name!r} here ({', '.join(self.names)})", "model")

    async def health(self, request: Request) -> Response:
        return Response(status_code=503 if self.is_closing or self.clock.failure else 200)

    async def scrape(self, request: Request) -> Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(self.metrics.page(self.clock.lag_s), media_type=kind)

    # --- an answer ----------------------------------------------------------------------------

    async def _answer(self, request: Request, is_chat: bool) -> Response:
        if self.clock.failure:
            raise BadRequest(500, FAILED)
        if self.is_closing:
            raise BadRequest(503, CLOSING)
        body = await self._body(request)
        came_s = request.scope.get("came_s") or asyncio.get_running_loop().time()
        wish = read_wish(body, is_chat)
        if wish.model and wish.model not in self.names:
            raise self._unknown(wish.model)
        prompts = [tokens for tokens in wish.prompts for _ in range(wish.num_answers)]
        ends = [self._end(wish, tokens) for tokens in prompts]
        if self.engine.num_in_flight + len(prompts) > self.limits.most_pending:
            raise BadRequest(429, f"{self.engine.num_in_flight} requests are in flight; try later")
        answer = Answer(wish, wish.model or self.names[0], self._written)
        # No two requests at one time, so that a record of them tells their order.
        self._latest_ns = max(self.clock.sent_ns(came_s), self._latest_ns + 1)
        for prompt_tokens, end in zip(prompts, ends, strict=True):
            choice = Choice(answer, *end)
            choice.ticket = self.clock.submit(
                self._latest_ns, prompt_tokens, choice.asked, wish.priority, choice.show
            )
            answer.choices.append(choice)
            self._reasons[choice.ticket] = choice.reason
        self._answers.add(answer)
        return Stream(answer, self._late) if wish.stream else Whole(answer)

    async def _body(self, request: Request) -> bytes:
        most = self.limits.most_body_bytes
        stated = request.headers.get("content-length", "")
        if stated.isdigit() and int(stated) > most:
            raise BadRequest(413, f"body: expected at most {most} bytes (got {stated})")
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.patience_s):
                async for part in request.stream():
                    body += part
                    if len(body) > most:
                        raise BadRequest(413, f"body: expected at most {most} bytes")
        except TimeoutError:
            raise BadRequest(408, "body: did not come in time") from None
        except ClientDisconnect:
            raise BadRequest(400, "body: the client went away") from None
        return bytes(body)

    def _end(self, wish: Wish, prompt_tokens: int) -> tuple[int, str, int | None]:
        """Tokens of an answer, why it ends there, and how many characters are shown; None = all.

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
        end, reason = most, "length"
        if not wish.ignore_eos:
            drawn = max(self._lengths[self._num_drawn % len(self._lengths)], wish.min_tokens, 1)
            self._num_drawn += 1
            if drawn < most:
                end, reason = drawn, "stop"
        stop = stop_at(wish.stop)
        if stop is not None and stop[0] <= end:
            return stop[0], "stop", stop[1]
        return end, reason, None

    # --- news of the engine -------------------------------------------------------------------

    def _ended(self, ticket: Ticket) -> None:
        reason = self._reasons.pop(ticket, "length")
        if ticket.is_dropped:
            reason = "abort"
        self.metrics.ended(ticket, reason)
        if self.record is not None:
            self.record.add(ticket, reason)

    def _late(self, due_s: float) -> None:
        self.metrics.late(asyncio.get_running_loop().time() - due_s)

    def _written(self, answer: Answer) -> None:
        """Nothing more will be written of it, whether it is finished or not."""
        self._answers.discard(answer)
        for choice in answer.choices:
            if choice.ticket is not None and not choice.ticket.is_done:
                self.engine.drop(choice.ticket)

    def _failed(self) -> None:
        self._end_all(500, FAILED)

    def _end_all(self, status: int, message: str) -> None:
        for answer in self._answers:
            answer.fail(status, message)

    def close_soon(self, grace_s: float) -> None:
        """Take nothing new; what is being answered may end in this time. For signal handlers."""
        self.is_closing = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._close, grace_s)

    def _close(self, grace_s: float) -> None:
        asyncio.get_running_loop().call_later(grace_s, self._end_all, 503, CLOSING)
        if self._answers and grace_s:
            self.notify(
                f"ending: {len(self._answers)} answers go on for at most {grace_s:g} s "
                "(Ctrl-C again cuts them off)"
            )


async def _bad_request(request: Request, error: BadRequest) -> Response:
    return error_response(error.status, str(error), error.param)


async def _http_error(request: Request, error: HTTPException) -> Response:
    """A path or a method that is not here."""
    what = f"{request.method} {request.url.path}: {error.detail}"
    if error.status_code == 404:
        routes = [route.path for route in request.app.routes]
        what += f" (here are {', '.join(path for path in routes if '{' not in path)})"
    response = error_response(error.status_code, what)
    response.headers.update(error.headers or {})
    return response
