"""The readers on public traces, against their published statistics; skipped without them."""

import time
from pathlib import Path

import numpy as np
import pytest

from simulator.request import RequestTable
from simulator.workloads import LengthSet, ServeGen, detect, from_file

TRACES = Path(__file__).resolve().parents[3] / "shared" / "traces"
pytestmark = pytest.mark.skipif(not TRACES.is_dir(), reason="the public traces are not here")


def statistics(tokens: np.ndarray) -> list[float]:
    return [tokens.mean(), *np.percentile(tokens, [50, 90, 99])]


# file, kind, rows, span in s, requests/s, then mean, p50, p90, p99 of input and of output
PUBLISHED = [
    ("azure2023_conv_first30min.csv.gz", "azure", 10_108, 1800, 5.62,
     [1243, 1033, 4076, 4123], [217, 134, 427, 610]),
    ("azure2023_code_first30min.csv.gz", "azure", 5_740, 1788, 3.21,
     [2028, 1460, 5012, 7436], [27, 13, 53, 247]),
    ("mooncake_conversation_first30min.jsonl.gz", "mooncake", 5_719, 1797, 3.18,
     [12870, 7640, 28638, 91207], [346, 356, 608, 1105]),
    ("mooncake_synthetic.jsonl.gz", "mooncake", 3_993, 1022, 3.91,
     [15326, 11587, 38611, 66456], [149, 69, 389, 768]),
    ("arena_multiclient.csv.gz", "table", 1_500, 600, 2.50,
     [136, 40, 432, 902], [256, 211, 513, 785]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "kind", "rows", "span_s", "rate", "inputs", "outputs"),
    PUBLISHED,
    ids=[row[0] for row in PUBLISHED],
)
def test_traces_have_their_published_statistics(file, kind, rows, span_s, rate, inputs, outputs):
    assert detect(TRACES / file) == kind
    begin = time.process_time()
    table = from_file(TRACES / file).requests(0)
    assert time.process_time() - begin < (0.2 if kind == "azure" else 0.6)
    assert len(table) == rows
    assert table.arrival_ns[0] == 0
    assert abs(table.duration_s - span_s) < 3  # one tick of the Mooncake trace
    assert abs(rows / table.duration_s - rate) < 0.01
    np.testing.assert_allclose(statistics(table.prompt_tokens), inputs, atol=1)
    np.testing.assert_allclose(statistics(table.output_tokens), outputs, atol=1)


def test_arena_has_27_clients():
    table = from_file(TRACES / "arena_multiclient.csv.gz").requests(0)
    assert table.client is not None
    shares = np.sort(np.bincount(table.client))[::-1] / len(table)
    assert len(shares) == 27
    np.testing.assert_allclose(shares[:4], [0.20, 0.17, 0.13, 0.08], atol=0.01)


def ideal_reuse(table: RequestTable) -> float:
    """Share of prompt tokens in blocks seen before, with an infinite cache."""
    assert table.hash_ids is not None
    assert table.hash_offsets is not None
    seen: set[int] = set()
    reused = 0
    for request, prompt in enumerate(table.prompt_tokens.tolist()):
        start, stop = table.hash_offsets[request : request + 2]
        for block, value in enumerate(table.hash_ids[start:stop].tolist()):
            if value in seen:
                reused += min(512, prompt - 512 * block)
            seen.add(value)
    return reused / float(table.prompt_tokens.sum())


@pytest.mark.parametrize(
    ("file", "reuse"),
    [
        ("mooncake_conversation_first30min.jsonl.gz", 0.347),
        ("mooncake_synthetic.jsonl.gz", 0.651),
    ],
)
def test_mooncake_blocks_give_the_published_reuse(file, reuse):
    table = from_file(TRACES / file).requests(0)
    assert table.hash_offsets is not None
    assert (np.diff(table.hash_offsets) == -(-table.prompt_tokens // 512)).all()
    assert abs(ideal_reuse(table) - reuse) < 0.0005


@pytest.mark.parametrize(
    ("file", "where", "inputs", "outputs"),
    [
        ("sharegpt_8k_lengths_llama2.csv.gz", {}, [2340, 1730, 5696, 7434], [439, 415, 834, 998]),
        (
            "arxiv_summarization_lengths_llama2.csv.gz",
            {},
            [2588, 2730, 3702, 3933],
            [291, 167, 372, 3271],
        ),
        (
            "apex_lengths.csv.gz",
            {"workload": "creation", "tokenizer": "llama"},
            [308, 309, 400, 566],
            [1144, 1107, 1708, 2341],
        ),
    ],
)
def test_length_sets_keep_their_published_statistics(file, where, inputs, outputs):
    table = LengthSet(
        file=TRACES / file,
        where=where,
        arrivals={"process": "poisson", "rate": "20 /s"},
        num_requests=20_000,
    ).requests(0)
    np.testing.assert_allclose(statistics(table.prompt_tokens), inputs, rtol=0.03)
    np.testing.assert_allclose(statistics(table.output_tokens)[:3], outputs[:3], rtol=0.03)


def test_servegen_day_has_its_rate_and_lengths():
    rates = TRACES / "servegen_mlarge_day7_rates.csv.gz"
    lengths = TRACES / "servegen_mlarge_day7_lengths.csv.gz"
    day = ServeGen(rates=rates, lengths=lengths, duration_s=86_400, rate_scale=0.01).requests(0)
    assert abs(len(day) / 86_400 / 2.42 - 1) < 0.01
    with_rows = np.unique(np.loadtxt(lengths, delimiter=",", skiprows=1, usecols=0))
    own = np.isin(day.client, with_rows)
    assert day.client is not None
    assert len(np.unique(day.client)) > 100  # of 110; a hundredth of the rate loses the smallest
    assert abs(own.mean() - 0.47) < 0.02
    np.testing.assert_allclose(
        statistics(day.prompt_tokens[own]), [1109, 795, 2399, 5858], rtol=0.06
    )
    np.testing.assert_allclose(statistics(day.output_tokens[own]), [82, 46, 192, 561], rtol=0.06)
