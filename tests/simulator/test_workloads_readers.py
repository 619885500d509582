"""Each trace reader on a file small enough to check by hand."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.request import RequestTable
from simulator.workloads import Azure, BurstGpt, LengthSet, Mooncake, ServeGen, Table, TimedTrace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""
AZURE_NS = [0, 4_314_579_000, 4_541_877_000]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def columns(table: RequestTable) -> tuple[list[int], list[int], list[int]]:
    return (
        table.arrival_ns.tolist(),
        table.prompt_tokens.tolist(),
        table.output_tokens.tolist(),
    )


def test_azure_keeps_hundred_nanosecond_digits(tmp_path):
    table = Azure(file=write(tmp_path / "a.csv", AZURE)).requests(0)
    assert columns(table) == (AZURE_NS, [374, 396, 879], [44, 109, 55])
    assert table.notes == ()
    assert table.is_open_loop


@pytest.mark.parametrize(
    "data",
    [
        gzip.compress(AZURE.encode()),
        b"\xef\xbb\xbf" + AZURE.encode(),
        AZURE.replace("\n", "\r\n").encode(),
        AZURE.strip().encode() + b"\n\n\n",
        AZURE.replace("18:15", "T18:15").replace(" T", "T").encode(),
        AZURE.replace(",374", '," 374 "').encode(),
        AZURE.replace("ContextTokens,", "contexttokens ,").encode(),
    ],
    ids=["gzip", "byte-order mark", "CRLF", "blank lines", "ISO T", "quotes", "header case"],
)
def test_azure_reads_any_dialect(tmp_path, data):
    (tmp_path / "trace").write_bytes(data)
    assert Azure(file=tmp_path / "trace").requests(0).arrival_ns.tolist() == AZURE_NS


def test_azure_sorts_and_says_so(tmp_path):
    lines = AZURE.splitlines()
    text = "\n".join([lines[0], lines[2], lines[1], lines[3]])
    table = Azure(file=write(tmp_path / "a.csv", text)).requests(0)
    assert columns(table) == (AZURE_NS, [374, 396, 879], [44, 109, 55])
    assert table.notes == ("arrivals were not in order: sorted",)


def test_azure_applies_time_zones(tmp_path):
    text = (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-12 00:00:00.5+00:00,1,1\n2024-05-12 01:00:01.5+01:00,2,2\n"
    )
    table = Azure(file=write(tmp_path / "a.csv", text)).requests(0)
    assert table.arrival_ns.tolist() == [0, 10**9]


def test_burstgpt_leaves_failures_and_other_models_out(tmp_path):
    text = (
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,0,1087,Conversation log\n"
        "118.5,GPT-4,417,276,693,API log\n120,GPT-4,10,0,10,API log\n"
    )
    file = write(tmp_path / "b.csv", text)
    table = BurstGpt(file=file).requests(0)
    assert columns(table) == ([0, 113_500_000_000], [472, 417], [18, 276])
    assert table.notes == ("2 failed request(s) without prompt or response left out",)
    only = BurstGpt(file=file, model="GPT-4").requests(0)
    assert columns(only) == ([0], [417], [276])
    assert only.notes[1] == "2 request(s) of models other than GPT-4 left out"


TABLE = """arrival_s,input_tokens,output_tokens,client,session,priority,hash_ids,ttft_ms
0.5,20,5,alice,7,0,1;2,9
0.75,33,6,bob,8,-1,1 2 3,9
1.5,16,7,alice,7,2,1;9,9
"""


def check_table(table: RequestTable) -> None:
    assert columns(table) == ([0, 250_000_000, 10**9], [20, 33, 16], [5, 6, 7])
    assert table.client is not None
    assert table.session is not None
    assert table.priority is not None
    assert table.hash_ids is not None
    assert table.hash_offsets is not None
    assert table.client.tolist() == [0, 1, 0]
    assert table.session.tolist() == [7, 8, 7]
    assert table.priority.tolist() == [0, -1, 2]
    assert table.hash_ids.tolist() == [1, 2, 1, 2, 3, 1, 9]
    assert table.hash_offsets.tolist() == [0, 2, 5, 7]
    assert table.hash_block_tokens == 16
    assert table.parent is None  # turns keep the arrival times given
    assert table.notes == ("columns not used: ttft_ms",)


def test_table_reads_csv_with_every_column(tmp_path):
    check_table(Table(file=write(tmp_path / "t.csv", TABLE)).requests(0))


def test_table_reads_parquet_with_every_column(tmp_path):
    data = {
        "arrival_s": [0.5, 0.75, 1.5],
        "input_tokens": [20, 33, 16],
        "output_tokens": [5, 6, 7],
        "client": ["alice", "bob", "alice"],
        "session": [7, 8, 7],
        "priority": [0, -1, 2],
        "hash_ids": [[1, 2], [1, 2, 3], [1, 9]],
        "ttft_ms": [9, 9, 9],
    }
    pyarrow.parquet.write_table(pyarrow.table(data), tmp_path / "t.parquet")
    check_table(Table(file=tmp_path / "t.parquet").requests(0))


def test_table_keeps_hash_ids_with_their_rows_when_sorting(tmp_path):
    text = "arrival_s,input_tokens,output_tokens,hash_ids\n3,33,1,7 8 9\n1,1,1,4\n2,17,1,5 6\n"
    table = Table(file=write(tmp_path / "t.csv", text)).requests(0)
    assert table.hash_ids is not None
    assert table.hash_offsets is not None
    assert table.prompt_tokens.tolist() == [1, 17, 33]
    assert table.hash_ids.tolist() == [4, 5, 6, 7, 8, 9]
    assert table.hash_offsets.tolist() == [0, 1, 3, 6]


@given(
    st.lists(
        st.tuples(st.integers(0, 10**9), st.integers(1, 10**6), st.integers(1, 10**6)),
        min_size=1,
        max_size=30,
    )
)
def test_table_returns_what_was_written(tmp_path_factory, rows):
    text = "\n".join(f"{micro / 1e6:.6f},{prompt},{output}" for micro, prompt, output in rows)
    file = tmp_path_factory.mktemp("table") / "t.csv"
    write(file, f"arrival_s,input_tokens,output_tokens\n{text}\n")
    table = Table(file=file).requests(0)
    expected = sorted(rows, key=lambda row: row[0])
    first = expected[0][0]
    assert table.prompt_tokens.tolist() == [row[1] for row in expected]
    assert table.output_tokens.tolist() == [row[2] for row in expected]
    shifted = np.array([1000 * (row[0] - first) for row in expected])
    assert np.abs(table.arrival_ns - shifted).max() <= 1  # half a nanosecond on either side


def mooncake(times: list[int], tokens: int = 600) -> str:
    records = [
        {"timestamp": t, "input_length": tokens, "output_length": 5, "hash_ids": [0, 1 + i]}
        for i, t in enumerate(times)
    ]
    return "\n".join(map(json.dumps, records)) + "\n"


def test_mooncake_reads_milliseconds_and_blocks(tmp_path):
    file = write(tmp_path / "m.jsonl", mooncake([100, 350, 350]))
    table = Mooncake(file=file, spread_ticks=False).requests(0)
    assert columns(table) == ([0, 250_000_000, 250_000_000], [600] * 3, [5] * 3)
    assert table.hash_ids is not None
    assert table.hash_ids.tolist() == [0, 1, 0, 2, 0, 3]
    assert table.hash_block_tokens == 512


def test_mooncake_spreads_requests_of_a_tick_until_the_next(tmp_path):
    times = [0] * 200 + [3000] * 400 + [6000] + [9000] * 100
    workload = Mooncake(file=write(tmp_path / "m.jsonl", mooncake(times)))
    table = workload.requests(1)
    first_s = 3 - table.arrival_ns[600] / 1e9 + 3  # 6 s is not shared, so it did not move
    arrivals = table.arrival_ns / 1e9 + first_s
    assert np.histogram(arrivals, [0, 3, 6, 9, 12])[0].tolist() == [200, 400, 1, 100]
    assert abs(arrivals[200:600].mean() - 4.5) < 0.15
    assert table.hash_ids is not None
    assert table.hash_ids[1::2].tolist() == list(range(1, 702))  # the order of the file
    assert (workload.requests(1).arrival_ns == table.arrival_ns).all()
    assert (workload.requests(2).arrival_ns != table.arrival_ns).any()


def test_timed_trace_takes_other_labels_and_nanosecond_epochs(tmp_path):
    start = 1753780607550317897
    records = [{"ts": start + i * 10**6, "in": 20, "out": 3, "ids": [4, 5 + i]} for i in range(3)]
    file = write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, records)))
    table = TimedTrace(
        file=file,
        sec_multiplier=1e-9,
        label_timestamp="ts",
        label_input_length="in",
        label_output_length="out",
        label_hash_ids="ids",
    ).requests(0)
    assert columns(table) == ([0, 10**6, 2 * 10**6], [20] * 3, [3] * 3)
    assert table.hash_block_tokens == 16


def test_timed_trace_may_have_no_hash_ids(tmp_path):
    file = write(
        tmp_path / "t.jsonl", '{"timestamp": 1.5, "input_length": 2, "output_length": 3}\n'
    )
    table = TimedTrace(file=file).requests(0)
    assert table.hash_ids is None
    assert table.hash_block_tokens == 0


LENGTHS = "kind,input_tokens,output_tokens\n" + "".join(
    f"{'even' if i % 2 == 0 else 'odd'},{i},{10 * i}\n" for i in range(1, 101)
)


def test_lengths_keep_input_and_output_of_a_row_together(tmp_path):
    file = write(tmp_path / "l.csv", LENGTHS)
    load = {"process": "poisson", "rate": "10 /s"}
    table = LengthSet(
        file=file, arrivals=load, num_requests=50, where={"kind": "odd"}, replacement=False
    ).requests(3)
    assert sorted(table.prompt_tokens.tolist()) == list(range(1, 101, 2))
    assert (table.output_tokens == 10 * table.prompt_tokens).all()


def test_lengths_bounded_by_duration_extend_the_shorter_run(tmp_path):
    file = write(tmp_path / "l.csv", LENGTHS)
    load = {"process": "gamma", "rate": "20 /s", "cv": 2}
    short, long = (
        LengthSet(file=file, arrivals=load, duration_s=duration).requests(0)
        for duration in (20.0, 100.0)
    )
    assert abs(len(long) - 2000) < 300
    assert (long.arrival_ns[: len(short)] == short.arrival_ns).all()
    assert short.arrival_ns[-1] < 20e9 <= long.arrival_ns[len(short)]


QUANTILES = "p1,p5,p10,p20,p30,p40,p50,p60,p70,p80,p90,p95,p99,p99.9"


def servegen(tmp_path: Path) -> tuple[Path, Path]:
    rates = (
        "client,window_start_s,rate_rps,cv,family,shape,scale_s\n"
        "0,0,2,1,Gamma,1,0.5\n0,600,4,1,Gamma,1,0.5\n1,0,1,3,Weibull,0.4,0.2\n"
    )
    lengths = f"client,window_start_s,field,{QUANTILES},mean\n" + "".join(
        f"0,0,{name},{','.join(str(base + i) for i in range(14))},{base}\n"
        for name, base in (("input_tokens", 100), ("output_tokens", 500))
    )
    return (
        write(tmp_path / "x_rates.csv", rates),
        write(tmp_path / "x_lengths.csv", lengths),
    )


def test_servegen_windows_hold_the_recorded_counts(tmp_path):
    rates, lengths = servegen(tmp_path)
    table = ServeGen(rates=rates, lengths=lengths, duration_s=1200).requests(0)
    assert table.client is not None
    first = table.arrival_ns < 600e9
    assert [int((table.client[first] == client).sum()) for client in (0, 1)] == [1200, 600]
    assert [int((table.client[~first] == client).sum()) for client in (0, 1)] == [2400, 0]
    assert table.prompt_tokens.min() == 100
    assert table.prompt_tokens.max() == 113
    assert table.output_tokens.min() == 500
    assert np.median(table.prompt_tokens) == 106


def test_servegen_cuts_a_span_out_of_the_same_day(tmp_path):
    rates, lengths = servegen(tmp_path)
    whole = ServeGen(rates=rates, lengths=lengths, duration_s=1200).requests(0)
    part = ServeGen(rates=rates, lengths=lengths, start_s=300, duration_s=600).requests(0)
    inside = (whole.arrival_ns >= 300e9) & (whole.arrival_ns < 900e9)
    assert np.abs(whole.arrival_ns[inside] - 300 * 10**9 - part.arrival_ns).max() <= 1
    assert (whole.prompt_tokens[inside] == part.prompt_tokens).all()


def test_servegen_rate_scale_multiplies_the_count(tmp_path):
    rates, lengths = servegen(tmp_path)
    scaled = ServeGen(rates=rates, lengths=lengths, rate_scale=0.5).requests(0)
    assert len(scaled) == 900
