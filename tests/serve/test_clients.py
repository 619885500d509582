"""Many clients, slow ones, and ones that go away: what they get, and what they leave behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import time
from collections.abc import Iterator

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")

from simulator.serve.words import WORDS, text_of  # noqa: E402
from tests.serve.support import EXACT, Running, head_of, post, serving, stream  # noqa: E402

PATIENCE_S = 0.5
LONG = {"prompt": "word" * 500, "max_tokens": 100_000, "stream": True, **EXACT}


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving("--max-pending", "1500", "--speed", "0.2") as running:
        yield running


@pytest.fixture(scope="module")
def impatient() -> Iterator[Running]:
    with serving("--patience", str(PATIENCE_S)) as running:
        yield running


def leaves_nothing(server: Running) -> bool:
    server.wait_for("vllm:num_requests_running", 0)
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    return [0, 0, 0] == [server.metric(f"vllm:{name}") for name in names]


def test_a_thousand_streams_lose_no_token_and_repeat_none(server: Running) -> None:
    def most_held() -> float:
        most, deadline = 0.0, time.monotonic() + 10
        while most < 1000 and time.monotonic() < deadline:
            held = [server.metric(f"vllm:num_requests_{x}") for x in ("running", "waiting")]
            most = max(most, sum(held))
        return most

    async def drive() -> list[str]:
        together = asyncio.Barrier(1000)
        asked = [stream(server, 20, 40 + i % 7, together) for i in range(1000)]
        held = asyncio.to_thread(most_held)
        *seen, most = await asyncio.gather(*asked, held)
        assert 1000 == most
        return [one.text for one in seen]

    made = server.metric("vllm:generation_tokens_total")
    expected = [text_of(0, 40 + i % 7) for i in range(1000)]
    assert expected == asyncio.run(drive())
    num_tokens = sum(40 + i % 7 for i in range(1000))
    assert made + num_tokens == server.metric("vllm:generation_tokens_total")
    assert leaves_nothing(server)


def test_clients_that_go_away_leave_nothing(server: Running) -> None:
    aborted = server.metric("vllm:request_success_total")
    url = f"{server.url}/v1/completions"
    for _ in range(3):
        with (
            contextlib.suppress(httpx.ReadTimeout),
            httpx.stream("POST", url, json=LONG) as response,
        ):
            next(response.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json={**LONG, "stream": False}, timeout=0.2)
    body = json.dumps(LONG).encode()
    for sent in (b"", body[:10], body):  # before, within and after the body, without goodbye
        with socket.create_connection(server.address) as half:
            half.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            half.sendall(head_of(body) + sent)
            time.sleep(0.05)
    assert leaves_nothing(server)
    assert aborted + 5 == server.wait_for("vllm:request_success_total", aborted + 5)


def test_a_reader_that_is_slow_gets_every_token_and_holds_nobody_up() -> None:
    most = 20_000
    with serving("--speed", "100") as server, _narrow(server) as slow:
        before = server.resident_bytes()
        body = json.dumps({**LONG, "max_tokens": most}).encode()
        slow.sendall(head_of(body) + body)
        assert 1 == server.wait_for("vllm:request_success_total", 1, within_s=30)  # the engine's
        assert server.resident_bytes() - before < 8e6  # 4 MB of tokens wait as a number
        assert (
            text_of(0, 5)
            == post(server, {"prompt": "a", "max_tokens": 5, **EXACT}).json()["choices"][0]["text"]
        )
        got = b""
        while not got.endswith(b"0\r\n\r\n"):
            part = slow.recv(1 << 16)
            assert part
            got += part
    lines = [x for x in got.split(b"\n") if x.startswith(b"data: {")]
    words = [json.loads(x[6:])["choices"][0]["text"] for x in lines]
    assert [WORDS[i % len(WORDS)] for i in range(most)] == words


def test_a_reader_that_takes_nothing_is_let_go(impatient: Running) -> None:
    aborted = impatient.metric("vllm:request_success_total")
    with _narrow(impatient) as slow:
        body = json.dumps({**LONG, "n": 100}).encode()
        slow.sendall(head_of(body) + body)
        assert 100 == impatient.wait_for("vllm:num_requests_running", 100)
        assert aborted + 100 == impatient.wait_for("vllm:request_success_total", aborted + 100, 15)
    assert leaves_nothing(impatient)


@contextlib.contextmanager
def _narrow(server: Running) -> Iterator[socket.socket]:
    """A connection that takes in 4 KB and then waits to be read."""
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        found.settimeout(10)
        found.connect(server.address)
        yield found


LINE = b"POST /v1/completions HTTP/1.1\r\n"
STALLED = {  # what is sent, so many times, and what comes back before the connection is closed
    "nothing": ([], b""),
    "half a line": ([LINE[:9]], b"408"),
    "a head that never ends": ([LINE, *[b"a: b\r\n"] * 8], b"408"),
    "blank lines": ([b"\r\n"] * 9, b""),
    "half a body": ([head_of(b" " * 100) + b"{"], b"408"),
    "a body drop by drop": ([head_of(b" " * 100), *[b" "] * 8], b"408"),
    "an endless line": ([LINE + b"a: " + b"b" * 70_000], b"431"),
    "no HTTP": ([b"hello\r\n\r\n"], b"400"),
    "the rest of a refused body": ([head_of(b" " * (5 << 20)), *[b" "] * 10], b"413"),
    "half a head after an answer": ([b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n", LINE], b"408"),
}


def test_a_client_that_stalls_is_told_so_and_let_go(impatient: Running) -> None:
    async def read_all(reader: asyncio.StreamReader) -> bytes:
        got = b""
        with contextlib.suppress(OSError):
            while part := await asyncio.wait_for(reader.read(4096), 10):
                got += part
        return got

    async def stall(name: str) -> tuple[bytes, float]:
        reader, writer = await asyncio.open_connection(*impatient.address)
        begin, reading = time.monotonic(), asyncio.create_task(read_all(reader))
        with contextlib.suppress(OSError):
            for part in STALLED[name][0]:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(PATIENCE_S / 5)
        got = await reading
        writer.close()
        return got, time.monotonic() - begin

    async def drive() -> list[tuple[bytes, float]]:
        return await asyncio.gather(*(stall(name) for name in STALLED))

    for (name, (_, status)), (got, took_s) in zip(
        STALLED.items(), asyncio.run(drive()), strict=True
    ):
        statuses = [x.split()[1] for x in got.split(b"\r\n") if x.startswith(b"HTTP/1.1 ")]
        assert (name, [status] if status else []) == (name, statuses[-1:])
        assert took_s < 8, name


def test_a_full_server_says_so() -> None:
    with serving("--max-pending", "2") as server:
        url = f"{server.url}/v1/completions"
        with httpx.stream("POST", url, json=LONG | {"n": 2}) as response:
            lines = response.iter_lines()  # kept: a generator that is let go closes the stream
            next(lines)
            refused = post(server, {"prompt": "a"})
            assert (429, "1") == (refused.status_code, refused.headers["retry-after"])
        assert 200 == httpx.get(f"{server.url}/health").status_code


ENDING = "ending: 2 answers go on for at most {} s (Ctrl-C again cuts them off)\n"


@pytest.mark.parametrize("is_patient", [True, False])
def test_ctrl_c_lets_answers_end_and_a_second_one_cuts_them_off(is_patient: bool) -> None:
    async def drive(server: Running) -> tuple[str, httpx.Response, float]:
        body = json.dumps(LONG | {"max_tokens": 100 if is_patient else 100_000}).encode()
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(head_of(body) + body)
        await reader.readuntil(b"data: ")
        async with httpx.AsyncClient(timeout=20) as http:
            whole = asyncio.create_task(
                http.post(
                    f"{server.url}/v1/completions",
                    json=LONG | {"stream": False, "max_tokens": 100 if is_patient else 100_000},
                )
            )
            await asyncio.sleep(0.3)
            begin = time.monotonic()
            for _ in range(1 if is_patient else 2):
                server.process.send_signal(signal.SIGINT)
                await asyncio.sleep(0.2)
            text = (await reader.read()).decode()
            writer.close()
            return text, await whole, time.monotonic() - begin

    with serving("--grace", "20", said=ENDING.format(20)) as server:
        text, whole, took_s = asyncio.run(drive(server))
        server.process.wait(10)
    assert took_s < 5
    assert text.endswith("0\r\n\r\n")  # whole, as HTTP sees it
    if is_patient:
        assert "data: [DONE]" in text
        assert text_of(0, 100) == whole.json()["choices"][0]["text"]
    else:
        assert ("[DONE]" in text, "shutting down" in text) == (False, True)
        assert 503 == whole.status_code


def test_memory_is_flat_over_ten_thousand_requests() -> None:
    """Each a request of its own; a tenth of them streams."""
    with serving("--speed", "100") as server:
        used = [
            (asyncio.run(_many(server, num)), server.resident_bytes())[1] for num in (2000, 8000)
        ]
        assert 10_000 == server.metric("vllm:request_success_total")
    assert used[1] - used[0] < 2e6  # 250 bytes a request


async def _many(server: Running, num: int) -> None:
    left = iter(range(num))

    async def work() -> None:
        reader, writer = await asyncio.open_connection(*server.address)
        for i in left:
            asked = {"prompt": "ab", "max_tokens": 4, "stream": i % 10 == 0, **EXACT}
            body = json.dumps(asked).encode()
            writer.write(head_of(body) + body)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            if i % 10 == 0:
                assert 4 == (await reader.readuntil(b"\r\n0\r\n\r\n")).count(b'"text":')
            else:
                length = int(head.lower().split(b"content-length: ")[1].split()[0])
                text = json.loads(await reader.readexactly(length))["choices"][0]["text"]
                assert text_of(0, 4) == text
        writer.close()

    await asyncio.gather(*(work() for _ in range(16)))
