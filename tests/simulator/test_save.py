"""Files of results: the JSON of `vllm bench serve` 0.33, tables, and nothing half-written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simulator import save
from simulator.errors import ConfigError
from simulator.metrics import request_frame
from simulator.recorder import UNFINISHED, Result
from simulator.save import check_writable, save_requests, save_result
from tests.simulator.logs import by_hand, experiment, ints, summary_of

HEADER = [
    "date",
    "endpoint_type",
    "backend",
    "label",
    "model_id",
    "tokenizer_id",
    "num_prompts",
    "request_rate",
    "burstiness",
    "max_concurrency",
]
SCALARS = [
    "duration",
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "request_goodput",
    "output_throughput",
    "total_token_throughput",
    "rtfx",
    "max_output_tokens_per_s",
    "max_concurrent_requests",
]
LATENCIES = [
    f"{statistic}_{metric}_ms"
    for metric in ("ttft", "tpot", "itl", "e2el")
    for statistic in ("mean", "median", "std", "p99")
]
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


def test_json_has_every_key_of_vllm_bench_serve(tmp_path: Path) -> None:
    document = saved(tmp_path / "run.json", by_hand())
    assert [key for key in [*HEADER, *SCALARS, *LATENCIES] if key not in document] == []
    assert [key for key in ARRAYS if key in document] == []
    assert list(document)[: len(HEADER)] == HEADER


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
