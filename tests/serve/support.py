"""A real server process for the tests, and bare clients that count every token."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
QUICKSTART = "experiments/quickstart.yaml"
MODEL = "llama-3.1-8b"
EXACT = {"ignore_eos": True}


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    url: str  # without /v1
    process: subprocess.Popen[str]

    @property
    def address(self) -> tuple[str, int]:
        host, port = self.url.removeprefix("http://").split(":")
        return host, int(port)

    def resident_bytes(self) -> int:
        """Memory of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    def metric(self, name: str) -> float:
        """Sum of a metric over its labels."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return sum(float(x.split()[-1]) for x in lines if re.match(re.escape(name) + "[{ ]", x))

    def wait_for(self, name: str, value: float, within_s: float = 5) -> float:
        """Read a metric until it has a value; the last one read."""
        deadline = time.monotonic() + within_s
        while (got := self.metric(name)) != value and time.monotonic() < deadline:
            time.sleep(0.05)
        return got


@contextmanager
def serving(*arguments: str, experiment: str = QUICKSTART, said: str = "") -> Iterator[Running]:
    """`headway serve` on a free port, ended with Ctrl-C; it must end well, saying only `said`."""
    words: Sequence[str] = (sys.executable, "-m", "simulator", "serve", experiment, "--port", "0")
    process = subprocess.Popen(
        [*words, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"(http://[\w.\[\]:]+)/v1$", line.strip())
        if found is None:
            process.kill()
            raise AssertionError(f"{line!r}; {process.communicate()[1]}")
        yield Running(found[1], process)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
        assert (0, said) == (process.returncode, errors)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def post(server: Running, body: object, path: str = "/v1/completions") -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(server.url + path, content=content, timeout=20)


def head_of(body: bytes, path: str = "/v1/completions") -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()


@dataclass
class Seen:
    """What a client has measured of a stream (s, monotonic clock), and the text it got."""

    sent_s: float
    token_s: list[float] = field(default_factory=list)
    text: str = ""

    @property
    def ttft_s(self) -> float:
        return self.token_s[0] - self.sent_s

    @property
    def tpot_s(self) -> float:
        return (self.token_s[-1] - self.token_s[0]) / (len(self.token_s) - 1)


def completion(prompt_tokens: int, most: int) -> dict[str, Any]:
    return {"prompt": "word" * prompt_tokens, "max_tokens": most, "stream": True, **EXACT}


async def stream(
    server: Running, prompt_tokens: int, most: int, together: asyncio.Barrier | None = None
) -> Seen:
    """A completion over a socket of its own, without any library."""
    reader, writer = await asyncio.open_connection(*server.address)
    body = json.dumps(completion(prompt_tokens, most)).encode()
    if together is not None:
        await together.wait()
    seen = Seen(time.monotonic())
    writer.write(head_of(body) + body)
    while (line := await reader.readline()) != b"data: [DONE]\n":
        assert line, "the server closed the connection"
        if line.startswith(b"data: "):
            seen.token_s.append(time.monotonic())
            seen.text += json.loads(line[6:])["choices"][0]["text"]
    writer.close()
    return seen
