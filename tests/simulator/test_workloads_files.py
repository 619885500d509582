"""Finding, recognising and transforming workloads."""

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.workloads.make_chat_1k import trace_csv
from simulator.errors import ConfigError
from simulator.request import RequestTable
from simulator.workloads import (
    WORKLOADS,
    Azure,
    Sessions,
    Synthetic,
    bundled_workloads,
    detect,
    from_file,
    transform,
)


def record(tokens: int, block: int) -> str:
    ids = list(range(-(-tokens // block)))
    return json.dumps({"timestamp": 0, "input_length": tokens, "output_length": 1, "hash_ids": ids})


FORMATS = {
    "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46,1,1\n",
    "burstgpt": "Timestamp,Model,Request tokens,Response tokens,Log Type\n5,a,1,1,b\n",
    "table": "arrival_s,input_tokens,output_tokens\n0,1,1\n",
    "lengths": "kind,input_tokens,output_tokens\na,1,1\n",
    "servegen": "client,window_start_s,rate_rps,cv,family,shape,scale_s\n0,0,1,1,Gamma,1,1\n",
    "mooncake": f"{record(5, 512)}\n{record(513, 512)}\n",
    "timed_trace": f"{record(5, 16)}\n{record(100, 16)}\n",
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("packed", [False, True])
def test_formats_are_recognised(tmp_path, kind, packed):
    data = FORMATS[kind].encode()
    file = tmp_path / "trace"
    file.write_bytes(gzip.compress(data) if packed else data)
    assert detect(file) == kind
    assert kind in WORKLOADS
    if kind not in ("lengths", "servegen"):
        workload = from_file(file)
        assert type(workload) is WORKLOADS[kind]
        assert len(workload.requests(0)) == len(data.splitlines()) - (data[:1] != b"{")


def test_formats_that_need_more_than_the_file(tmp_path):
    file = tmp_path / "x_rates.csv"
    file.write_text(FORMATS["lengths"])
    with pytest.raises(
        ConfigError, match=r"x_rates.csv: holds lengths without arrival times; give"
    ):
        from_file(file)
    file.write_text(FORMATS["servegen"])
    with pytest.raises(ConfigError, match=r"lengths is not beside it \(x_lengths.csv\)"):
        from_file(file)
    (tmp_path / "x_lengths.csv").write_text("")
    assert type(from_file(file)) is WORKLOADS["servegen"]


def test_parquet_is_a_table(tmp_path):
    (tmp_path / "t").write_bytes(b"PAR1....")
    assert detect(tmp_path / "t") == "table"


@pytest.mark.parametrize("text", ["a,b,c\n1,2,3\n", '{"prompt": "x"}\n', "hello\n", "{\n"])
def test_an_unknown_format_lists_the_known(tmp_path, text):
    file = tmp_path / "trace"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        detect(file)
    message = str(caught.value)
    assert message.startswith("trace: unknown trace format (first line ")
    assert all(kind in message for kind in FORMATS)
    assert "\n" not in message


def test_json_lines_without_telling_ids_are_ambiguous(tmp_path):
    file = tmp_path / "trace"
    file.write_text(f"{record(5, 16)}\n")
    with pytest.raises(ConfigError, match=r"mooncake \(timestamps in ms\) or timed_trace \(in s\)"):
        detect(file)


def test_detection_reads_only_the_head_of_a_large_file(tmp_path):
    file = tmp_path / "trace"
    file.write_text("arrival_s,input_tokens,output_tokens\n" + "0,1,1\n" * 50_000 + "é" * 50_000)
    assert detect(file) == "table"


def test_bundled_workloads_are_found_by_name():
    assert list(bundled_workloads()) == sorted(bundled_workloads())
    assert detect("chat-1k") == "table"
    table = from_file("chat-1k").requests(0)
    assert len(table) == 1000
    assert table.notes == ()
    with pytest.raises(ConfigError, match=r"chat-2k: no such file \(bundled workloads: chat-1k"):
        from_file("chat-2k")


def test_chat_1k_is_what_its_script_makes():
    file = bundled_workloads()["chat-1k"]
    assert gzip.decompress(file.read_bytes()).decode() == trace_csv()


def test_chat_1k_is_shaped_like_production_chat():
    table = from_file("chat-1k").requests(0)
    assert abs(len(table) / table.duration_s - 5.6) < 0.4
    gaps = np.diff(table.arrival_ns)
    assert abs(gaps.std() / gaps.mean() - 1.03) < 0.08
    inputs, outputs = table.prompt_tokens, table.output_tokens
    np.testing.assert_allclose(np.percentile(inputs, [50, 90]), [1030, 4000], rtol=0.02)
    np.testing.assert_allclose(np.percentile(outputs, [50, 90, 99]), [130, 430, 610], rtol=0.02)
    assert abs(inputs.mean() - 1200) < 30
    assert abs(outputs.mean() - 210) < 10
    assert abs(np.corrcoef(inputs, outputs)[0, 1]) < 0.08


TABLE = RequestTable(
    arrival_ns=np.array([0, 1, 2, 4, 8]) * 10**9,
    prompt_tokens=np.array([10, 20, 30, 40, 50]),
    output_tokens=np.array([1, 2, 3, 4, 5]),
    priority=np.array([5, 4, 3, 2, 1]),
    hash_ids=np.arange(100, 110),
    hash_offsets=np.array([0, 1, 3, 5, 7, 10]),
    hash_block_tokens=16,
)


def test_doing_nothing_changes_nothing():
    same = transform(TABLE)
    assert same.arrival_ns.tolist() == TABLE.arrival_ns.tolist()
    assert same.notes == ()


def test_a_window_keeps_the_offset_of_its_first_arrival():
    part = transform(TABLE, start_s=0.5, end_s=8)
    assert part.arrival_ns.tolist() == [500_000_000, 1_500_000_000, 3_500_000_000]
    assert part.prompt_tokens.tolist() == [20, 30, 40]
    assert part.priority is not None
    assert part.hash_ids is not None
    assert part.hash_offsets is not None
    assert part.priority.tolist() == [4, 3, 2]
    assert part.hash_ids.tolist() == [101, 102, 103, 104, 105, 106]
    assert part.hash_offsets.tolist() == [0, 2, 4, 6]
    assert part.notes == ("window from 0.5 s to 8 s",)


def test_rate_and_head_apply_after_the_window():
    part = transform(TABLE, start_s=1, rate_scale=4, max_requests=2)
    assert part.arrival_ns.tolist() == [0, 250_000_000]
    assert part.output_tokens.tolist() == [2, 3]
    assert part.notes == ("window from 1 s to inf s", "arrival rate times 4", "first 2 requests")


@given(st.floats(0.01, 100), st.integers(0, 2**32))
def test_scaling_a_table_is_drawing_it_at_that_rate(scale, seed):
    table = Synthetic(num_prompts=40, request_rate=5, burstiness=0.5).requests(seed)
    drawn = Synthetic(num_prompts=40, request_rate=5 * scale, burstiness=0.5).requests(seed)
    scaled = transform(table, rate_scale=scale)
    assert np.abs(scaled.arrival_ns - drawn.arrival_ns).max() <= 1 + 1 / scale
    assert (scaled.prompt_tokens == drawn.prompt_tokens).all()


def test_cutting_sessions_renumbers_parents():
    load = {"process": "constant", "rate": "1 /s"}
    table = Sessions(num_sessions=4, arrivals=load, turns=3, think_time="1 s").requests(0)
    part = transform(table, start_s=2, max_requests=5)
    assert part.parent is not None
    assert part.session is not None
    assert part.delay_ns is not None
    assert part.session.tolist() == [1, 1, 1, 2, 2]
    assert part.parent.tolist() == [-1, 0, 1, -1, 3]
    assert len(part.delay_ns) == 5


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"rate_scale": 0}, "rate_scale must be a finite number > 0 (got 0)"),
        ({"rate_scale": math.nan}, "rate_scale must be a finite number > 0 (got nan)"),
        ({"rate_scale": 1e-12}, "rate_scale must keep arrivals below 9e+09 s"),
        ({"start_s": -1}, "start_s must be a finite number >= 0 and <= 9e+09 (got -1)"),
        ({"start_s": 2, "end_s": 2}, "end_s must be a number > 2 (got 2)"),
        ({"max_requests": -1}, "max_requests must be an int >= 0 (got -1)"),
        ({"start_s": 9}, "workload: no requests from 9 s to inf s (the last arrives at 8 s)"),
    ],
)
def test_transform_refuses(options, expected):
    with pytest.raises(ConfigError) as caught:
        transform(TABLE, **options)
    assert str(caught.value) == expected


def test_files_may_be_given_as_text(tmp_path):
    file: Path = tmp_path / "a.csv"
    file.write_text(FORMATS["azure"])
    assert len(Azure(file=str(file)).requests(0)) == 1
