"""`headway serve` as the OpenAI client and a careless user see it: answers, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")
import httpx  # noqa: E402

from simulator.cli import run  # noqa: E402
from simulator.config import load  # noqa: E402
from simulator.serve.words import text_of  # noqa: E402
from tests.serve.support import EXACT, MODEL, QUICKSTART, ROOT, Running, post, serving  # noqa: E402


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving("--max-body", "100000") as running:
        yield running


@pytest.fixture
def client(server: Running) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as found:
        yield found


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


@pytest.mark.parametrize("stop", [" delta", ["heron", "a em"], "cedar delta ember"])
@pytest.mark.parametrize("is_stream", [False, True])
def test_an_answer_ends_before_a_stop_string(client: Any, stop: Any, is_stream: bool) -> None:
    found = client.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=40,
        stop=stop,
        stream=is_stream,
        extra_body=EXACT,
    )
    strings = [stop] if isinstance(stop, str) else stop
    cut = min(at for string in strings if (at := text_of(0, 40).find(string)) >= 0)
    if is_stream:
        choices = [chunk.choices[0] for chunk in found]
        text = "".join(choice.delta.content for choice in choices)
    else:
        choices = [found.choices[0]]
        text = choices[0].message.content
        ends = min(cut + len(x) for x in strings if text_of(0, 40).find(x) == cut)
        used = found.usage.completion_tokens
        assert len(text_of(0, used - 1)) < ends <= len(text_of(0, used))
    assert (text_of(0, 40)[:cut], "stop") == (text, choices[-1].finish_reason)


def test_models_are_listed_and_found_by_name(client: Any) -> None:
    names = [model.id for model in client.models.list()]
    assert ["meta-llama/Llama-3.1-8B", MODEL] == names
    assert 131072 == client.models.retrieve(names[0]).max_model_len
    with pytest.raises(openai.NotFoundError, match="gpt-7"):
        client.models.retrieve("gpt-7")


def test_monitors_and_browsers_get_what_they_ask_for(server: Running) -> None:
    assert (200, b"") == (httpx.head(f"{server.url}/health").status_code, b"")
    assert 200 == httpx.head(f"{server.url}/v1/models").status_code
    origin = {"origin": "http://page", "access-control-request-method": "POST"}
    allowed = httpx.options(f"{server.url}/v1/completions", headers=origin)
    assert (200, "*") == (allowed.status_code, allowed.headers["access-control-allow-origin"])
    wrong = httpx.get(f"{server.url}/v1/completions")
    assert (405, "POST") == (wrong.status_code, wrong.headers["allow"])
    lost = httpx.get(f"{server.url}/v1/embeddings")
    assert 404 == lost.status_code
    assert "/v1/chat/completions" in lost.json()["error"]["message"]
    assert post(server, {"prompt": "a", "max_tokens": 3}).is_success
    page = httpx.get(f"{server.url}/metrics").text
    for name in (
        *("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"),
        *("time_to_first_token_seconds_bucket", "inter_token_latency_seconds_sum"),
        *("e2e_request_latency_seconds_count", "request_success_total", "prompt_tokens_total"),
    ):
        assert f"\nvllm:{name}{{" in page


BAD = {
    "not JSON": (b'{"prompt":', 400, "JSON"),
    "not an object": (b"[]", 400, "object"),
    "no prompt": ({"max_tokens": 3}, 400, "prompt"),
    "an empty prompt": ({"prompt": []}, 400, "at least one token"),
    "no tokens": ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
    "too many tokens": ({"prompt": "a", "max_tokens": 10**7}, 400, "131072 tokens of context"),
    "too long a body": (b" " * 100_001, 413, "100000 bytes"),
    "a wrong type": ({"prompt": "a", "max_tokens": "many"}, 400, "max_tokens: Input should be"),
    "a prompt of a wrong kind": ({"prompt": 5}, 400, "prompt: expected text, a list of texts"),
    "another model": ({"model": "gpt-7", "prompt": "a"}, 404, "gpt-7"),
    "what words cannot answer": ({"prompt": "a", "logprobs": 3}, 400, "logprobs"),
    "chat that is none": ({"messages": "hi"}, 400, "messages: Input should be"),
    "images": (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        400,
        "expected text (got image_url)",
    ),
    "log probabilities of chat": (
        {"messages": [{"role": "user", "content": "a"}], "logprobs": True},
        400,
        "logprobs: an emulated model has none",
    ),
    "too many at once": ({"prompt": ["a"] * 129}, 400, "128"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_request_gets_its_status_and_one_line(server: Running, name: str) -> None:
    body, status, words = BAD[name]
    is_chat = isinstance(body, dict) and "messages" in body
    response = post(server, body, "/v1/chat/completions" if is_chat else "/v1/completions")
    assert status == response.status_code
    assert words in response.json()["error"]["message"]
    assert status == response.json()["error"]["code"]


def test_a_body_without_a_length_is_cut_off_too(server: Running) -> None:
    response = httpx.post(f"{server.url}/v1/completions", content=(b" " * 1000 for _ in range(200)))
    assert 413 == response.status_code


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--speed", "0"], "--speed: expected a number from 0.001 to 1000 (got '0')"),
        (["--port", "x"], "--port: expected an int from 0 to 65535 (got 'x')"),
        (["--patience", "0"], "--patience: expected a number from 0.1 to 3600 (got '0')"),
        (["--requests-out", "a.json"], "--requests-out: expected a .csv file (got 'a.json')"),
        (["--requests-out", "/no/where.csv"], "cannot write '/no/where.csv'"),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1"),
        (["--scheduler", "vtc"], "must know its requests"),
    ],
)
def test_a_wrong_flag_is_one_line(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 2 == run(["serve", str(ROOT / QUICKSTART), "--port", "0", *flags])
    out, err = capsys.readouterr()
    assert ("", 1) == (out, err.count("\n"))
    assert words in err
