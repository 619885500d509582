"""`headway serve` under real clients: its times, its limits, and what it does with bad ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")
import httpx  # noqa: E402

from simulator.cli import run  # noqa: E402
from simulator.config import load  # noqa: E402
from simulator.engine import simulate  # noqa: E402
from simulator.request import RequestTable  # noqa: E402
from simulator.serve.words import text_of  # noqa: E402
from tests.serve.support import QUICKSTART, ROOT, Running, serving  # noqa: E402

EXACT = {"ignore_eos": True}
MODEL = "llama-3.1-8b"


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving("--max-body", "100000", "--max-pending", "1500") as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


def post(server: Running, body: object, path: str = "/v1/completions") -> httpx.Response:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return httpx.post(server.url + path, content=content, timeout=20)


def metric(server: Running, name: str) -> float:
    """Sum of a metric over its labels."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))


async def stream(
    url: str, prompt_tokens: int, most: int, together: asyncio.Barrier | None = None
) -> tuple[float, float, float, str]:
    """Time of sending, of the first and of the last token, and the text; a bare HTTP client."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    asked = {"prompt": "word" * prompt_tokens, "max_tokens": most, "stream": True, **EXACT}
    body = json.dumps(asked).encode()
    if together is not None:
        await together.wait()
    sent = time.perf_counter()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    first = last = 0.0
    text = ""
    while (line := await reader.readline()) != b"data: [DONE]\n":
        assert line, "the server closed the connection"
        if line.startswith(b"data: "):
            last = time.perf_counter()
            first = first or last
            text += json.loads(line[6:])["choices"][0]["text"]
    writer.close()
    return sent, first, last, text


def test_the_openai_client_gets_its_tokens(client: Any) -> None:
    whole = client.completions.create(
        model=MODEL, prompt=[1] * 40, max_tokens=50, n=2, extra_body=EXACT
    )
    assert [text_of(0, 50)] * 2 == [choice.text for choice in whole.choices]
    usage = whole.usage
    assert (40, 100, 140) == (
        usage.prompt_tokens,
        usage.completion_tokens,
        usage.total_tokens,
    )
    assert {"length"} == {choice.finish_reason for choice in whole.choices}
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "x" * 37}],  # 10 tokens, and 4 of the template
            max_completion_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=EXACT,
        )
    )
    said = [choice.delta.content for chunk in chunks for choice in chunk.choices]
    assert text_of(0, 40) == "".join(said)
    assert 41 == len(said)  # the role, then a chunk a token
    assert "length" == chunks[-2].choices[0].finish_reason
    assert (14, 40) == (chunks[-1].usage.prompt_tokens, chunks[-1].usage.completion_tokens)


def test_answers_are_as_long_as_those_of_the_workload(client: Any) -> None:
    lengths = load(QUICKSTART).workload.output_tokens
    made = [
        client.completions.create(model=MODEL, prompt="Hi", max_tokens=20, temperature=0.3)
        for _ in range(10)
    ]
    got = [(m.usage.completion_tokens, m.choices[0].finish_reason) for m in made]
    start = [(min(20, n), "stop" if n < 20 else "length") for n in lengths.tolist()]
    assert start[:10] == got


def test_times_are_those_of_an_offline_run(server: Running) -> None:
    num, rng = 80, np.random.default_rng(0)
    due = np.cumsum(rng.exponential(1 / 20, num)).tolist()
    prompt, output = rng.integers(50, 800, num), rng.integers(5, 60, num)

    async def drive() -> list[tuple[float, float, float, str]]:
        begin, tasks = time.perf_counter(), []
        for i in range(num):
            await asyncio.sleep(max(0.0, begin + due[i] - time.perf_counter()))
            tasks.append(asyncio.create_task(stream(server.url, int(prompt[i]), int(output[i]))))
        return list(await asyncio.gather(*tasks))

    seen = asyncio.run(drive())
    assert [text_of(0, n) for n in output.tolist()] == [text for *_, text in seen]
    sent, first, last = (np.array(column) for column in list(zip(*seen, strict=True))[:3])
    order = np.argsort(sent)
    table = RequestTable(
        arrival_ns=((sent - sent.min())[order] * 1e9).astype(np.int64),
        prompt_tokens=prompt[order],
        output_tokens=output[order],
    )
    offline = simulate(replace(load(QUICKSTART), workload=table))
    ttft_ms = (offline.first_token_ns - offline.sent_ns) / 1e6
    tpot_ms = (offline.finish_ns - offline.first_token_ns) / 1e6 / (output[order] - 1)
    measured = np.median((last - first)[order] / (output[order] - 1)) * 1e3
    assert abs(measured - np.median(tpot_ms)) <= 2 + 0.02 * np.median(tpot_ms)
    # Both processes share few cores with whatever else runs: the quickest quarter tells what the
    # server itself adds.
    late_ms = (first - sent)[order] * 1e3 - ttft_ms
    assert np.percentile(late_ms, 25) <= 2 + 0.02 * np.median(ttft_ms) + busy_ms()


def busy_ms() -> float:
    """How late this machine wakes a process that sleeps, three times over (there and back)."""
    late = []
    for _ in range(50):
        begin = time.perf_counter()
        time.sleep(0.005)
        late.append(time.perf_counter() - begin - 0.005)
    return 3e3 * float(np.median(late))


def test_a_thousand_streams_lose_no_token_and_repeat_none(server: Running) -> None:
    async def drive() -> list[tuple[float, float, float, str]]:
        together = asyncio.Barrier(1000)
        asked = (stream(server.url, 20, 20 + i % 7, together) for i in range(1000))
        return list(await asyncio.gather(*asked))

    seen = asyncio.run(drive())
    assert [text_of(0, 20 + i % 7) for i in range(1000)] == [text for *_, text in seen]
    assert max(sent for sent, *_ in seen) < min(last for _, _, last, _ in seen)


BAD = {
    "not JSON": (b'{"prompt":', 400, "JSON"),
    "not an object": (b"[]", 400, "object"),
    "no prompt": ({"max_tokens": 3}, 400, "prompt"),
    "an empty prompt": ({"prompt": []}, 400, "at least one token"),
    "no tokens": ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
    "too many tokens": ({"prompt": "a", "max_tokens": 10**7}, 400, "131072 tokens of context"),
    "too long a body": (b" " * 100_001, 413, "100000 bytes"),
    "another model": ({"model": "gpt-7", "prompt": "a"}, 404, "gpt-7"),
    "what words cannot answer": ({"prompt": "a", "logprobs": 3}, 400, "logprobs"),
    "too many at once": ({"prompt": ["a"] * 129}, 400, "128"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_gets_its_status_and_one_line(server: Running, name: str) -> None:
    body, status, words = BAD[name]
    response = post(server, body)
    assert status == response.status_code
    assert words in response.json()["error"]["message"]
    assert status == response.json()["error"]["code"]


def test_a_body_without_a_length_is_cut_off_too(server: Running) -> None:
    response = httpx.post(f"{server.url}/v1/completions", content=(b" " * 1000 for _ in range(200)))
    assert 413 == response.status_code


def test_dropped_and_slow_clients_leave_nothing(server: Running) -> None:
    asked = {"prompt": "word" * 500, "max_tokens": 100_000, "stream": True, **EXACT}
    aborted = metric(server, "vllm:request_success_total")
    for _ in range(3):
        with (
            contextlib.suppress(httpx.ReadTimeout),
            httpx.stream("POST", f"{server.url}/v1/completions", json=asked) as response,
        ):
            next(response.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json={**asked, "stream": False}, timeout=0.2)
    deadline = time.monotonic() + 5
    while metric(server, "vllm:num_requests_running") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert 0 == metric(server, "vllm:num_requests_running")
    assert 0 == metric(server, "vllm:kv_cache_usage_perc")
    assert aborted + 4 == metric(server, "vllm:request_success_total")


def test_a_full_server_says_so() -> None:
    with serving("--max-pending", "2") as server:
        url = f"{server.url}/v1/completions"
        asked = {"prompt": "a", "max_tokens": 100_000, "stream": True, **EXACT}
        with httpx.stream("POST", url, json=asked | {"n": 2}) as response:
            lines = response.iter_lines()  # kept: a generator that is let go closes the stream
            next(lines)
            refused = post(server, {"prompt": "a"})
            assert (429, "1") == (refused.status_code, refused.headers["retry-after"])
        assert 200 == httpx.get(f"{server.url}/health").status_code


def test_memory_is_flat_over_ten_thousand_requests() -> None:
    async def drive(url: str, num: int) -> None:
        left = iter(range(num))

        async def work() -> None:
            async with httpx.AsyncClient(timeout=30) as http:
                for _ in left:
                    body = {"prompt": ["ab"] * 100, "max_tokens": 4, **EXACT}
                    response = await http.post(f"{url}/v1/completions", json=body)
                    assert 400 == response.json()["usage"]["completion_tokens"]

        await asyncio.gather(*(work() for _ in range(4)))

    with serving("--speed", "50") as server:
        asyncio.run(drive(server.url, 25))  # 2,500 requests
        before = server.resident_bytes()
        asyncio.run(drive(server.url, 100))
        grown = server.resident_bytes() - before
        assert 12_500 == metric(server, "vllm:request_success_total")
    assert grown < 4e6


def test_a_load_generator_drives_it(server: Running, tmp_path: Path) -> None:
    script = tmp_path / "load.py"
    script.write_text(
        "from locust import FastHttpUser, constant, task\n"
        "class Reader(FastHttpUser):\n"
        "    wait_time = constant(0)\n"
        "    @task\n"
        "    def ask(self):\n"
        f"        body = {{'model': '{MODEL}', 'prompt': 'Hello', 'max_tokens': 5}}\n"
        "        self.client.post('/v1/completions', json=body)\n"
    )
    words = ["-m", "locust", "-f", str(script), "--headless", "--only-summary", "--json"]
    words += ["-u", "8", "-r", "8", "-t", "2s", "--host", server.url]
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    if "No module named locust" in done.stderr:
        pytest.skip("locust is not installed")
    (entry,) = json.loads(done.stdout)
    assert (0, True) == (entry["num_failures"], entry["num_requests"] > 20)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--speed", "0"], "--speed: expected a number from 0.001 to 1000 (got '0')"),
        (["--port", "x"], "--port: expected an int from 0 to 65535 (got 'x')"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
        (["--scheduler", "vtc"], "must know its requests"),
    ],
)
def test_a_wrong_flag_is_one_line(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 2 == run(["serve", str(ROOT / QUICKSTART), *flags])
    out, err = capsys.readouterr()
    assert ("", 1) == (out, err.count("\n"))
    assert words in err
