"""Requests at 20 a second from a real client, and what they should have measured.

The offline answer is an ordinary simulation of what `--requests-out` recorded: the arrivals as the
server noted them, and the lengths.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from simulator.config import load
from simulator.engine import simulate
from simulator.serve.running import precise_loop
from simulator.serve.words import text_of
from simulator.workloads import from_file
from tests.serve.support import MODEL, QUICKSTART, Running, Seen, completion, serving, stream

RATE_PER_S = 20.0
WARM_UP = 5
Ask = Callable[[int, int], Awaitable[Seen]]


@dataclass(frozen=True)
class Measured:
    """Errors of single requests against the offline answer, and how late things were meanwhile."""

    ttft_error_s: np.ndarray
    tpot_error_s: np.ndarray
    ttft_s: np.ndarray  # of the offline answer
    tpot_s: np.ndarray
    server_late_s: float  # mean, of tokens
    machine_late_s: float  # p90, of a thread that sleeps

    def excess_s(self, name: str) -> np.ndarray:
        """Absolute errors less 2 % of the answer: at most 2 ms are wanted."""
        return np.abs(getattr(self, f"{name}_error_s")) - 0.02 * getattr(self, f"{name}_s")

    def __str__(self) -> str:
        rows = []
        for name in ("ttft", "tpot"):
            error_ms, excess_s = getattr(self, f"{name}_error_s") * 1e3, self.excess_s(name)
            p50, p90, p99 = np.percentile(np.abs(error_ms), (50, 90, 99))
            rows.append(
                f"{name}: mean error {error_ms.mean():.2f} ms, absolute mean "
                f"{np.abs(error_ms).mean():.2f} p50 {p50:.2f} p90 {p90:.2f} p99 {p99:.2f}; "
                f"{(excess_s <= 0.002).mean():.1%} of {len(error_ms)} within 2 ms + 2 %"
            )
        late = f"tokens left {self.server_late_s * 1e3:.2f} ms late; a sleeping thread woke "
        return "\n".join([*rows, f"{late}{self.machine_late_s * 1e3:.2f} ms late (p90)"])


def measure(client: str, seconds: float, folder: Path, seed: int = 0, nice: int = 0) -> Measured:
    """Drive a server of its own with `socket`, `openai` or `locust`."""
    rng = np.random.default_rng(seed)
    num = round(RATE_PER_S * seconds)
    due_s = np.cumsum(rng.exponential(1 / RATE_PER_S, num))
    prompts = rng.permutation(np.arange(50, 50 + max(750, num)))[:num]  # each has its own
    outputs = rng.integers(5, 60, num)
    record = folder / "served.csv"
    with serving("--requests-out", str(record)) as server, machine_lateness() as late:
        plan = list(zip(due_s.tolist(), prompts.tolist(), outputs.tolist(), strict=True))
        seen = (
            drive_locust(server, plan, folder)
            if client == "locust"
            else drive(server, plan, client)
        )
        tokens = server.metric("headway:token_lateness_seconds_count")
        server_late_s = server.metric("headway:token_lateness_seconds_sum") / tokens
    assert [text_of(0, most) for most in outputs.tolist()] == [one.text for one in seen]
    ttft_s, tpot_s = offline(record)
    at = [int(prompt) for prompt in prompts]
    ttft_s, tpot_s = np.array([ttft_s[p] for p in at]), np.array([tpot_s[p] for p in at])
    return Measured(
        ttft_error_s=np.array([one.ttft_s for one in seen]) - ttft_s,
        tpot_error_s=np.array([one.tpot_s for one in seen]) - tpot_s,
        ttft_s=ttft_s,
        tpot_s=tpot_s,
        server_late_s=server_late_s,
        machine_late_s=float(np.percentile(late, 90)),
    )


def offline(record: Path) -> tuple[dict[int, float], dict[int, float]]:
    """TTFT and TPOT by length of the prompt, and proof that the server simulated the same."""
    result = simulate(replace(load(QUICKSTART), workload=from_file(record).requests(0)))
    prompts = result.table.prompt_tokens.tolist()
    ttft_ns = result.first_token_ns - result.sent_ns
    decode_ns = result.finish_ns - result.first_token_ns
    live = pd.read_csv(record).sort_values("arrival_s", kind="stable")
    assert (ttft_ns / 1e9).round(9).tolist() == live["ttft_s"].tolist()
    assert ((result.finish_ns - result.sent_ns) / 1e9).round(9).tolist() == live["e2e_s"].tolist()
    tpot_s = decode_ns / 1e9 / np.maximum(result.table.output_tokens - 1, 1)
    pairs = zip(prompts, (ttft_ns / 1e9).tolist(), strict=True)
    return dict(pairs), dict(zip(prompts, tpot_s.tolist(), strict=True))


@contextmanager
def machine_lateness() -> Iterator[list[float]]:
    """How late a thread wakes that sleeps 2 ms, again and again: what the machine alone adds."""
    late: list[float] = []
    is_over = threading.Event()

    def probe() -> None:
        while not is_over.is_set():
            begin = time.monotonic()
            time.sleep(0.002)
            late.append(time.monotonic() - begin - 0.002)

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield late
    finally:
        is_over.set()
        thread.join()


def drive(server: Running, plan: list[tuple[float, int, int]], client: str) -> list[Seen]:
    async def with_sockets() -> list[Seen]:
        return await paced(plan, lambda prompt, most: stream(server, prompt, most))

    async def with_openai() -> list[Seen]:
        from openai import AsyncOpenAI

        async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
            return await paced(plan, lambda prompt, most: ask_openai(found, prompt, most))

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        return runner.run(with_openai() if client == "openai" else with_sockets())


async def paced(plan: list[tuple[float, int, int]], ask: Ask) -> list[Seen]:
    for i in range(WARM_UP):
        await ask(1 + i, 5)
    begin_s, tasks = time.monotonic(), []
    for due_s, prompt, most in plan:
        await asyncio.sleep(max(0.0, begin_s + due_s - time.monotonic()))
        tasks.append(asyncio.create_task(ask(prompt, most)))
    return list(await asyncio.gather(*tasks))


async def ask_openai(client: Any, prompt_tokens: int, most: int) -> Seen:
    asked = completion(prompt_tokens, most)
    extra = {"ignore_eos": asked.pop("ignore_eos")}
    seen = Seen(time.monotonic())
    async for chunk in await client.completions.create(model=MODEL, **asked, extra_body=extra):
        seen.token_s.append(time.monotonic())
        seen.text += chunk.choices[0].text
    return seen


LOCUST = """
import json, time
import gevent
from locust import FastHttpUser, constant, task
from locust.exception import StopUser

PLAN = json.load(open({plan!r}))
WAITING, SEEN, BEGIN = list(enumerate(PLAN)), [None] * len(PLAN), []

class Reader(FastHttpUser):
    wait_time = constant(0)

    @task
    def ask(self):
        if not BEGIN:
            BEGIN.append(time.monotonic() + 1)
        if not WAITING:
            raise StopUser
        number, (due, body) = WAITING.pop(0)
        gevent.sleep(max(0, BEGIN[0] + due - time.monotonic()))
        sent, tokens, text = time.monotonic(), [], ""
        with self.client.post(
            "/v1/completions", json=body, stream=True, catch_response=True
        ) as answer:
            while (line := answer.stream.readline(b"\\n")) != b"data: [DONE]\\n":
                assert line, "the server closed the connection"
                if line.startswith(b"data: "):
                    tokens.append(time.monotonic())
                    text += json.loads(line[6:])["choices"][0]["text"]
            answer.stream.readline(b"\\n")
            answer.success()
        SEEN[number] = (sent, tokens, text)
        if all(SEEN):
            json.dump(SEEN, open({seen!r}, "w"))
            self.environment.runner.quit()
"""


def drive_locust(
    server: Running, plan: list[tuple[float, int, int]], folder: Path, users: int = 40
) -> list[Seen]:
    """Locust's users take the requests of a plan in turn, each when it is due."""
    files = {name: folder / f"{name}.json" for name in ("plan", "seen")}
    bodies = [(due_s, completion(prompt, most)) for due_s, prompt, most in plan]
    files["plan"].write_text(json.dumps(bodies))
    script = folder / "load.py"
    script.write_text(LOCUST.format(plan=str(files["plan"]), seen=str(files["seen"])))
    words = ["-m", "locust", "-f", str(script), "--headless", "--only-summary"]
    words += ["-u", str(users), "-r", str(users), "--host", server.url]
    words += ["-t", f"{plan[-1][0] + 30:.0f}s"]
    done = subprocess.run(
        [sys.executable, *words],
        capture_output=True,
        text=True,
        timeout=plan[-1][0] + 60,
        check=False,
    )
    assert files["seen"].exists(), done.stderr
    return [Seen(*one) for one in json.loads(files["seen"].read_text())]
