"""What cannot be read is refused with one line that names file, line, expectation and value."""

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from simulator.errors import ConfigError
from simulator.workloads import Azure, LengthSet, Mooncake, ServeGen, Table, TimedTrace

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
GOOD = "2023-11-16 18:15:46.6805900,374,44"
TIME = "2023-11-16 18:15:46"


def refusal(workload) -> str:
    with pytest.raises(ConfigError) as caught:
        workload.requests(0)
    message = str(caught.value)
    assert "\n" not in message
    return message


def azure(tmp_path: Path, *lines: str, **options) -> Azure:
    file = tmp_path / "trace.csv"
    file.write_text("\n".join([HEADER, GOOD, *lines]))
    return Azure(file=file, **options)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"{TIME},5,abc", "GeneratedTokens must be an int >= 1 (got 'abc')"),
        (f"{TIME},5,0", "GeneratedTokens must be an int >= 1 (got '0')"),
        (f"{TIME},-5,7", "ContextTokens must be an int >= 1 (got '-5')"),
        (f"{TIME},nan,7", "ContextTokens must be an int >= 1 (got 'nan')"),
        (f"{TIME},inf,7", "ContextTokens must be an int >= 1 (got 'inf')"),
        (f"{TIME},5.0,7", "ContextTokens must be an int >= 1 (got '5.0')"),
        (f"{TIME},5_0,7", "ContextTokens must be an int >= 1 (got '5_0')"),
        (f"{TIME},,7", "ContextTokens must be an int >= 1 (got '')"),
        (f"{TIME},5,1000000001", "GeneratedTokens must be an int <= 1000000000 (got '1000000001')"),
        (
            f"{TIME},5,{'9' * 30}",
            f"GeneratedTokens must be an int <= 1000000000 (got '{'9' * 30}')",
        ),
        (f"{TIME},5", "expected 3 columns (got 2)"),
        (f"{TIME},5,6,7", "expected 3 columns (got 4)"),
        ("yesterday,5,6", "TIMESTAMP must be a time like 2023-11-16 18:15:46.6805900 (got 'yes"),
        ("2023-02-30 00:00:00,5,6", "TIMESTAMP must be a time like 2023-11-16 18:15:46.6805900"),
        ("9999-11-16 00:00:00,5,6", "TIMESTAMP must be a time like 2023-11-16 18:15:46.6805900"),
        ("NaT,5,6", "TIMESTAMP must be a time like 2023-11-16 18:15:46.6805900 (got 'NaT')"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, expected):
    assert refusal(azure(tmp_path, line)).startswith(f"trace.csv:3: {expected}")


def test_further_bad_lines_are_counted(tmp_path):
    message = refusal(azure(tmp_path, GOOD, f"{TIME},x,1", GOOD, "1,2", f"{TIME},y,y"))
    assert message == (
        "trace.csv:4: ContextTokens must be an int >= 1 (got 'x'); 2 further bad line(s) "
        "(skip_bad_lines: true leaves them out)"
    )


def test_bad_lines_can_be_skipped_and_are_noted(tmp_path):
    workload = azure(tmp_path, f"{TIME},x,1", "1,2", f"{TIME},8,9", skip_bad_lines=True)
    table = workload.requests(0)
    assert sorted(table.prompt_tokens.tolist()) == [8, 374]
    assert table.notes[0] == (
        "2 bad line(s) skipped, the first: trace.csv:3: ContextTokens must be an int >= 1 (got 'x')"
    )


def test_skipping_every_line_leaves_nothing(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text(f"{HEADER}\nx,1,1\n")
    assert "no requests left" in refusal(Azure(file=file, skip_bad_lines=True))


def test_files_that_are_not_traces(tmp_path):
    assert "no such file (bundled workloads: chat-1k" in refusal(Azure(file=tmp_path / "none"))
    assert "is a directory" in refusal(Azure(file=tmp_path))
    assert "is not a regular file" in refusal(Azure(file="/dev/null"))
    assert "no such file" in refusal(Azure(file="a\0b"))
    assert "is not usable" in refusal(Azure(file="~nobody-of-that-name/trace.csv"))
    file = tmp_path / "trace.csv"
    for data, expected in (
        (b"", "is empty"),
        (b"\n  \n", "is empty"),
        (HEADER.encode(), "has a header but no requests"),
        (b"a,b,c\n1,2,3\n", "trace.csv:1: no column TIMESTAMP, ContextTokens, GeneratedTokens in"),
        (f"{HEADER},ContextTokens\n".encode(), "a column name appears twice"),
        (f"{HEADER}\n{GOOD}\n\xff".encode("latin-1"), "trace.csv:3: is not UTF-8 text"),
        (f"{HEADER}\n{GOOD}".encode("utf-16"), "trace.csv:1: is not UTF-8 text"),
        (f'{HEADER}\n{GOOD}\n"{TIME},1,1\n'.encode(), "is not CSV"),
        (gzip.compress(f"{HEADER}\n{GOOD}\n".encode())[:-9], "damaged or truncated gzip"),
        (b"\x1f\x8bnothing", "damaged or truncated gzip"),
        (gzip.compress(b""), "is empty"),
    ):
        file.write_bytes(data)
        assert expected in refusal(Azure(file=file))


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e400", "later", "1e12", ""])
def test_table_refuses_arrival(tmp_path, value):
    file = tmp_path / "t.csv"
    file.write_text(f"arrival_s,input_tokens,output_tokens\n0,1,1\n{value},1,1\n")
    assert refusal(Table(file=file)).startswith(
        f"t.csv:3: arrival_s must be a finite number of seconds >= 0 (got '{value}')"
    )


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("1", "hash_ids must hold 2 ids, one for each 16 of 20 prompt tokens (got 1)"),
        ("1 2 3 4", "hash_ids must hold 2 ids, one for each 16 of 20 prompt tokens (got 4)"),
        ("1 x", "hash_ids must be ints separated by spaces or semicolons (got '1 x')"),
        ("1 99999999999999999999", "hash_ids must be 64-bit ints"),
        ("", "hash_ids must hold 2 ids, one for each 16 of 20 prompt tokens (got 0)"),
    ],
)
def test_table_refuses_hash_ids(tmp_path, cell, expected):
    file = tmp_path / "t.csv"
    file.write_text(f"arrival_s,input_tokens,output_tokens,hash_ids\n0,20,13,{cell}\n")
    assert refusal(Table(file=file)).startswith(f"t.csv:2: {expected}")


def test_parquet_that_cannot_be_used(tmp_path):
    file = tmp_path / "t.parquet"
    file.write_bytes(b"PAR1 and then nothing of the kind")
    assert "is not a readable Parquet file" in refusal(Table(file=file))
    columns = {"arrival_s": [0.0, 1.0], "input_tokens": [1, None]}
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    assert "no column output_tokens among" in refusal(Table(file=file))
    pyarrow.parquet.write_table(pyarrow.table(columns | {"output_tokens": [1, 1]}), file)
    message = refusal(Table(file=file))
    assert message.startswith("t.parquet:2: input_tokens must be an int >= 1 (got 'None')")
    empty = pyarrow.table({name: [] for name in ("arrival_s", "input_tokens", "output_tokens")})
    pyarrow.parquet.write_table(empty, file)
    assert "has columns but no requests" in refusal(Table(file=file))


RECORD = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [0, 1]}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("{", "must be a JSON object (got '{')"),
        ("[1]", "must be a JSON object (got '[1]')"),
        ("[" * 100_000, "must be a JSON object"),
        (json.dumps(RECORD | {"timestamp": -1}), "timestamp must be a finite number >= 0 (got -1)"),
        ('{"timestamp": NaN}', "timestamp must be a finite number >= 0 (got nan)"),
        ('{"timestamp": "0"}', "timestamp must be a finite number >= 0 (got '0')"),
        ('{"timestamp": true}', "timestamp must be a finite number >= 0 (got True)"),
        (json.dumps(RECORD | {"input_length": 0}), "input_length must be an int >= 1 (got 0)"),
        (json.dumps(RECORD | {"input_length": 1.5}), "input_length must be an int >= 1 (got 1.5)"),
        (
            json.dumps(RECORD | {"output_length": 10**12}),
            "output_length must be an int <= 10000000",
        ),
        (
            json.dumps({**RECORD, "output_length": None}),
            "output_length must be an int >= 1 (got No",
        ),
        (json.dumps(RECORD | {"hash_ids": [0]}), "hash_ids must hold 2 ids, one for each 512"),
        (json.dumps(RECORD | {"hash_ids": "0 1"}), "hash_ids must be a list of ints (got '0 1')"),
        (json.dumps(RECORD | {"hash_ids": [0, 2**64]}), "hash_ids must be 64-bit ints"),
        (json.dumps(RECORD | {"hash_ids": None}), "hash_ids must be in every line or in none"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path, line, expected):
    file = tmp_path / "m.jsonl"
    file.write_text(f"{json.dumps(RECORD)}\n{line}\n")
    assert refusal(Mooncake(file=file)).startswith(f"m.jsonl:2: {expected}")
    table = Mooncake(file=file, skip_bad_lines=True).requests(0)
    assert len(table) == 1
    assert table.notes[0].startswith("1 bad line(s) skipped")


def test_timed_trace_refuses_times_beyond_the_clock(tmp_path):
    file = tmp_path / "t.jsonl"
    lines = [{"timestamp": t, "input_length": 1, "output_length": 1} for t in (0, 1e300)]
    file.write_text("\n".join(map(json.dumps, lines)))
    assert "timestamp must stay below 9e+09 s" in refusal(TimedTrace(file=file))


def test_lengths_say_which_filter_or_row_is_missing(tmp_path):
    file = tmp_path / "l.csv"
    file.write_text("kind,input_tokens,output_tokens\na,1,1\nb,2,2\n")
    load = {"process": "burst"}
    workload = LengthSet(file=file, arrivals=load, num_requests=3, where={"kind": "c"})
    assert refusal(workload) == "l.csv: no row where {'kind': 'c'}"
    workload = LengthSet(file=file, arrivals=load, num_requests=3, where={"knd": "a"})
    assert "unknown workload.where key 'knd'; did you mean 'kind'?" in refusal(workload)
    workload = LengthSet(file=file, arrivals=load, num_requests=3, replacement=False)
    assert "3 requests need as many rows without replacement (got 2)" in refusal(workload)


def test_servegen_tables_are_checked(tmp_path):
    rates, lengths = tmp_path / "rates.csv", tmp_path / "lengths.csv"
    percentiles = "p1,p5,p10,p20,p30,p40,p50,p60,p70,p80,p90,p95,p99,p99.9"
    numbers = ",".join("7" * 14)

    def write(rate: str, field: str, quantiles: str) -> ServeGen:
        rates.write_text(f"client,window_start_s,rate_rps,cv,family,shape,scale_s\n{rate}\n")
        lengths.write_text(f"client,window_start_s,field,{percentiles}\n0,0,{field},{quantiles}\n")
        return ServeGen(rates=rates, lengths=lengths)

    good = "0,0,1,1,Gamma,1,1"
    message = refusal(write("0,0,1,1,Cauchy,1,1", "input_tokens", numbers))
    assert message.startswith("rates.csv:2: family must be Gamma or Weibull (got 'Cauchy')")
    message = refusal(write("0,0,1,1,Gamma,0,1", "input_tokens", numbers))
    assert message.startswith("rates.csv:2: shape must be > 0 (got 0)")
    message = refusal(write(good, "tokens", numbers))
    assert message.startswith("lengths.csv:2: field must be one of input_tokens, output_tokens")
    message = refusal(write(good, "input_tokens", f"8,{','.join('7' * 13)}"))
    assert message.startswith("lengths.csv:2: quantiles must not decrease")
    message = refusal(write(good, "input_tokens", numbers))
    assert message == "lengths.csv: no client has both input and output quantiles"
