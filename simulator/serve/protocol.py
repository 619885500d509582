"""Bodies of /v1/completions and /v1/chat/completions: what they may hold, and what they ask for."""

from __future__ import annotations

import json
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simulator.serve.words import TOKENS_A_MESSAGE, tokens_of

MOST_CHOICES = 128
DEFAULT_TOKENS = 16  # of /v1/completions, as OpenAI's and vLLM's
EITHER = {  # keys that are of several kinds
    "prompt": "expected text, a list of texts, token ids, or a list of lists of token ids",
    "messages": "expected text, or a list of parts with a type",
    "stop": "expected text, or a list of texts",
}
KINDS = {
    404: "not_found_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "internal_server_error",
    503: "service_unavailable_error",
}


class BadRequest(Exception):
    """A request that gets an error: its HTTP status, and what is wrong."""

    def __init__(self, status: int, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.param = param


def error_document(status: int, message: str, param: str | None = None) -> bytes:
    """The body of an error, in OpenAI's form."""
    kind = KINDS.get(status, "invalid_request_error")
    error = {"message": message, "type": kind, "param": param, "code": status}
    return json.dumps({"error": error}, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What a body asks for."""

    is_chat: bool
    model: str
    prompts: tuple[int, ...]  # tokens of each
    num_answers: int  # of each prompt
    most_tokens: int | None  # of an answer; None = as many as the context holds
    min_tokens: int
    ignore_eos: bool
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool
    priority: int


class _StreamOptions(BaseModel):
    include_usage: bool = False


class _Body(BaseModel):
    """Keys that both endpoints read; the others (temperature, ...) change nothing here."""

    model_config = ConfigDict(extra="ignore")

    model: str = ""
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    min_tokens: int = Field(0, ge=0)
    n: int | None = Field(1, ge=1, le=MOST_CHOICES)
    ignore_eos: bool = False
    stop: str | list[str] | None = None
    stream: bool | None = False
    stream_options: _StreamOptions | None = None
    priority: int = 0
    echo: bool | None = False
    logprobs: bool | int | None = None


class _Completion(_Body):
    prompt: str | list[int] | list[str] | list[list[int]]


class _Part(BaseModel):
    type: str = "text"
    text: str | None = None


class _Message(BaseModel):
    role: str
    content: str | list[_Part] | None = None


class _Chat(_Body):
    messages: list[_Message] = Field(min_length=1)


def read_wish(raw: bytes, is_chat: bool) -> Wish:
    """What a body asks for.

    Raises:
        BadRequest: not JSON, not such a body, or something that no words of ours could answer.
    """
    try:
        body = (_Chat if is_chat else _Completion).model_validate_json(raw)
    except ValidationError as error:
        raise _refusal(error) from None
    if body.echo or body.logprobs not in (None, False, 0):
        name = "echo" if body.echo else "logprobs"
        raise BadRequest(400, f"{name}: an emulated model has none", name)
    if isinstance(body, _Chat):
        prompts: tuple[int, ...] = (sum(_tokens_of_message(m) for m in body.messages),)
    else:
        assert isinstance(body, _Completion)
        prompts = _prompts(body.prompt)
    num = body.n or 1
    if len(prompts) * num > MOST_CHOICES:
        raise BadRequest(400, f"n: expected at most {MOST_CHOICES} answers in all", "n")
    most = body.max_completion_tokens or body.max_tokens or (None if is_chat else DEFAULT_TOKENS)
    if most is not None and body.min_tokens > most:
        raise BadRequest(400, f"min_tokens: expected at most max_tokens, {most}", "min_tokens")
    return Wish(
        is_chat=is_chat,
        model=body.model,
        prompts=prompts,
        num_answers=num,
        most_tokens=most,
        min_tokens=body.min_tokens,
        ignore_eos=body.ignore_eos,
        stop=tuple(filter(None, [body.stop] if isinstance(body.stop, str) else body.stop or ())),
        stream=bool(body.stream),
        include_usage=bool(body.stream_options and body.stream_options.include_usage),
        priority=body.priority,
    )


def _refusal(error: ValidationError) -> BadRequest:
    first = error.errors(include_url=False)[0]
    keys = [str(part) for part in first["loc"]]
    kinds = [key for key in keys if key in ("str", "bool", "int") or key.startswith("list[")]
    place = ".".join(key for key in keys if key not in kinds)
    what = EITHER[keys[0]] if kinds and keys[0] in EITHER else first["msg"]
    return BadRequest(400, f"{place}: {what}".lstrip(": "), place or None)


def _prompts(prompt: str | list[int] | list[str] | list[list[int]]) -> tuple[int, ...]:
    """Tokens of each prompt: exact for ids."""
    if isinstance(prompt, str):
        return (tokens_of(prompt),)
    if not prompt or any(part == [] for part in prompt):
        raise BadRequest(400, "prompt: expected at least one token", "prompt")
    if isinstance(prompt[0], int):
        return (len(prompt),)
    return tuple(tokens_of(part) if isinstance(part, str) else len(part) for part in prompt)


def _tokens_of_message(message: _Message) -> int:
    content = message.content or ""
    if isinstance(content, str):
        return TOKENS_A_MESSAGE + tokens_of(content)
    kinds = {part.type for part in content} - {"text"}
    if kinds:
        raise BadRequest(400, f"messages: expected text (got {', '.join(sorted(kinds))})")
    return TOKENS_A_MESSAGE + tokens_of("".join(part.text or "" for part in content))
