"""Files of results: the JSON of `vllm bench serve` 0.33, tables, and nothing half-written."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simulator import save
from simulator.bench_results import read_bench
from simulator.cli import run
from simulator.errors import ConfigError
from simulator.metrics import request_frame
from simulator.recorder import UNFINISHED, Result
from simulator.save import check_writable, save_requests, save_result
from tests.simulator.logs import by_hand, experiment, ints, summary_of

FILES = Path(__file__).parent / "bench_files"
# Keys whose type depends on the run or on an option (vllm/benchmarks/serve.py of 0.33.0): null
# without a label, a tokenizer, a limit or an SLO; "inf" for no rate.
OPTIONAL = {
    "label": {"str", "null"},
    "tokenizer_id": {"str", "null"},
    "max_concurrency": {"int", "null"},
    "request_goodput": {"float", "null"},
    "request_rate": {"float", "str"},
}
ARRAYS = [
    "input_lens",
    "output_lens",
    "ttfts",
    "itls",
    "latencies",
    "start_times",
    "queue_times",
    "generated_texts",
    "errors",
]


def saved(path: Path, result: Result, *, detailed: bool = False, **metadata: object) -> dict:  # type: ignore[type-arg]
    setup, summary = experiment(result.table), summary_of(result)
    save_result(path, setup, result, summary, detailed, metadata)
    document: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return document


def shape(value: object) -> str:
    """The type of a JSON value; of a list, the types in it, where it is not empty."""
    if isinstance(value, list):
        return f"list of {', '.join(sorted({shape(x) for x in value} - {'list of '}))}"
    return "null" if value is None else type(value).__name__


def misfits(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, object]:
    """Keys of theirs that mine lacks or has with another type of value."""
    found: dict[str, object] = {}
    for key, value in theirs.items():
        expected, got = shape(value), shape(mine[key]) if key in mine else "missing"
        if key in OPTIONAL:
            assert expected in OPTIONAL[key], key
            if got not in OPTIONAL[key]:
                found[key] = got
        elif expected != got:
            found[key] = (expected, got)
    return found


@pytest.mark.parametrize(
    ("file", "load", "detailed"),
    [
        ("vllm_detailed.json", "--request-rate 4", True),
        ("vllm_detailed.json", "--request-rate 0.5 --set workload.burstiness=2", True),
        ("vllm_detailed.json", "--horizon 1s --request-rate 4", True),
        ("vllm_closed.json", "--max-concurrency 4", False),
        ("vllm_closed.json", "--max-concurrency 4 --slo ttft=1s", False),
        ("vllm_closed.json", "--output-len 1", False),
    ],
)
def test_keys_and_types_are_those_of_a_file_that_vllm_0_33_wrote(
    file: str, load: str, detailed: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = json.loads((FILES / file).read_text())
    words = f"simulate --model llama-3.1-8b --cluster 1xH100-SXM --num-prompts 12 {load}"
    words += "" if "--output-len" in load else " --output-len 24"
    words += f" --save-result {tmp_path / 'mine.json'}" + " --save-detailed" * detailed
    assert 0 == run(words.split()), capsys.readouterr().err
    mine = json.loads((tmp_path / "mine.json").read_text())
    assert {} == misfits(mine, theirs)
    # Where it leaves arrays out, so do we: they may be long.
    lists = {key for key, value in mine.items() if isinstance(value, list)} - {"notes"}
    assert {key for key, value in theirs.items() if isinstance(value, list)} == lists
    assert time.strptime(mine["date"], "%Y%m%d-%H%M%S")


def test_a_type_that_differs_is_found() -> None:
    theirs = json.loads((FILES / "vllm_detailed.json").read_text())
    assert {} == misfits(theirs, theirs)
    changes = {"completed": 12.0, "date": None, "itls": [0.1], "request_rate": None}
    assert set(changes) == set(misfits(theirs | changes, theirs))
    assert {"rtfx"} == set(misfits({k: v for k, v in theirs.items() if k != "rtfx"}, theirs))


@pytest.mark.parametrize("detailed", [True, False])
def test_the_reader_of_vllms_results_reads_ours_back(detailed: bool, tmp_path: Path) -> None:
    summary = summary_of(by_hand())
    saved(tmp_path / "run.json", by_hand(), detailed=detailed)
    result = read_bench(tmp_path / "run.json")
    for metric, name in (("ttft", "ttft"), ("tpot", "tpot"), ("itl", "itl"), ("e2e", "e2el")):
        for statistic in ("mean", "p90", "p99"):
            stated = float(summary[f"{statistic}_{name}_ms"])  # type: ignore[arg-type]
            assert result.latency_s(metric, statistic) == pytest.approx(stated / 1e3)
    assert (2, 0, 14, 7) == (
        result.completed,
        result.failed,
        result.total_input_tokens,
        result.total_output_tokens,
    )
    if detailed:
        assert result.output_tokens is not None
        assert [3, 4] == result.output_tokens.tolist()


def test_the_load_is_stated_as_it_was_configured(tmp_path: Path) -> None:
    for number, (text, expected) in enumerate(
        (("request_rate: 6 /s", (6.0, 1.0)), ("burstiness: .inf, request_rate: 3 /s", (3.0, "inf")))
    ):
        file, out = tmp_path / f"{number}.yaml", tmp_path / f"{number}.json"
        load = f"{{kind: synthetic, num_prompts: 5, input_len: 9, output_len: 9, {text}}}"
        file.write_text(f"model: llama-3.1-8b\ncluster: 1xH100-SXM\nworkload: {load}\n")
        assert 0 == run(["simulate", str(file), "--save-result", str(out)])
        document = json.loads(out.read_text())
        assert expected == (document["request_rate"], document["burstiness"])


def test_detailed_arrays_are_seconds_of_each_request(tmp_path: Path) -> None:
    document = saved(tmp_path / "run.json", by_hand(), detailed=True)
    assert [key for key in ARRAYS if key not in document] == []
    assert document["input_lens"] == [8, 6]
    assert document["output_lens"] == [3, 4]
    assert document["ttfts"] == pytest.approx([0.010, 0.015])
    assert document["latencies"] == pytest.approx([0.030, 0.055])
    assert document["itls"] == [pytest.approx([0.01] * 2), pytest.approx([0.01, 0.02, 0.01])]
    assert document["start_times"] == pytest.approx([0.0, 0.005])
    assert document["queue_times"] == [0.0, 0.0]
    assert (document["generated_texts"], document["errors"]) == (["", ""], ["", ""])


def test_latency_of_a_request_is_its_first_token_and_all_its_gaps(tmp_path: Path) -> None:
    document = saved(tmp_path / "run.json", by_hand(), detailed=True)
    for ttft, gaps, latency in zip(
        document["ttfts"], document["itls"], document["latencies"], strict=True
    ):
        assert ttft + sum(gaps) == pytest.approx(latency)


def test_request_that_did_not_complete_is_zero_with_its_reason(tmp_path: Path) -> None:
    result = by_hand()
    result = replace(
        result,
        status=ints(0, UNFINISHED),
        finish_ns=ints(int(result.finish_ns[0]), -1),
    )
    document = saved(tmp_path / "run.json", result, detailed=True)
    assert (document["ttfts"][1], document["latencies"][1], document["itls"][1]) == (0.0, 0.0, [])
    assert document["output_lens"] == [3, 0]
    assert document["errors"] == ["", "unfinished"]


def test_request_rate_is_that_of_the_arrivals_or_inf(tmp_path: Path) -> None:
    assert saved(tmp_path / "run.json", by_hand())["request_rate"] == 1 / 0.005
    table = replace(by_hand().table, arrival_ns=ints(0, 0), max_concurrency=4)
    document = saved(tmp_path / "run.json", replace(by_hand(), table=table))
    assert (document["request_rate"], document["max_concurrency"]) == ("inf", 4)


def test_metadata_overrides_the_header_and_extends_it(tmp_path: Path) -> None:
    document = saved(tmp_path / "run.json", by_hand(), request_rate=150.0, region="eu")
    assert (document["request_rate"], document["region"]) == (150.0, "eu")


def test_two_writes_of_one_run_are_identical(tmp_path: Path) -> None:
    for name in ("a.json", "b.json"):
        saved(tmp_path / name, by_hand(), detailed=True)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_saved_requests_read_back_as_they_were(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"requests{suffix}"
    save_requests(path, by_hand())
    frame = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
    expected = request_frame(by_hand())
    assert list(frame.columns) == list(expected.columns)
    assert np.allclose(frame["ttft_s"], expected["ttft_s"])
    assert frame["status"].tolist() == ["completed"] * 2


def test_missing_folders_are_made(tmp_path: Path) -> None:
    save_requests(tmp_path / "a" / "b.csv", by_hand())
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.csv"]


@pytest.mark.parametrize("name", ["requests.xlsx", "requests", "requests.csv.zip"])
def test_unknown_suffix_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"requests.*ending in \.csv or \.parquet"):
        save_requests(tmp_path / name, by_hand())
    assert list(tmp_path.iterdir()) == []


def test_unwritable_path_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    for name in ("file/requests.csv", "folder.csv"):
        with pytest.raises(ConfigError, match=f"{name}: cannot be written"):
            save_requests(tmp_path / name, by_hand())
        with pytest.raises(ConfigError, match=f"{name}: cannot be written"):
            check_writable(tmp_path / name, (".csv",))


def test_writable_path_passes_the_check_and_stays_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "new.json", (".json",))
    (tmp_path / "old.json").write_text("kept")
    check_writable(tmp_path / "old.json", (".json",))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"old.json": "kept"}


def test_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "run.json", by_hand())
    before = (tmp_path / "run.json").read_bytes()

    def fail(document: object, file: object, **_: object) -> None:
        file.write("{half")  # type: ignore[attr-defined]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save.json, "dump", fail)
    with pytest.raises(ConfigError, match="No space left"):
        save_result(tmp_path / "run.json", experiment(by_hand().table), by_hand(), {}, False)
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("run.json", before)]
