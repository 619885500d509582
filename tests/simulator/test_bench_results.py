"""Result files of load generators, read back: files that the real tools wrote, and broken ones."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.bench_results import LATENCIES, BenchResult, read_bench, read_benches
from simulator.errors import ConfigError

FILES = Path(__file__).parent / "bench_files"
MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def document(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FILES / name).read_text())
    return found


def written(folder: Path, *results: object, name: str = "run.json") -> Path:
    path = folder / name
    path.write_text("\n".join(json.dumps(result) for result in results))
    return path


def load(result: BenchResult) -> tuple[object, ...]:
    return result.request_rate_per_s, result.burstiness, result.max_concurrency


def test_vllm_in_detail() -> None:
    result, raw = read_bench(FILES / "vllm_detailed.json"), document("vllm_detailed.json")
    assert ("vllm", "vllm", MODEL) == (result.tool, result.engine, result.model)
    assert (12, 0, 851, 319) == (
        result.completed,
        result.failed,
        result.total_input_tokens,
        result.total_output_tokens,
    )
    assert (4.0, 1.0, None) == load(result)
    assert raw["mean_ttft_ms"] / 1e3 == result.latency_s("ttft", "mean")
    assert raw["median_tpot_ms"] / 1e3 == result.latency_s("tpot", "p50")
    assert raw["p99_itl_ms"] / 1e3 == result.latency_s("itl", "p99")
    assert None is result.latency_s("itl", "p90")  # not asked for
    assert result.input_tokens is not None
    assert raw["input_lens"] == result.input_tokens.tolist()
    assert result.sent_s is not None
    assert np.diff(raw["start_times"]) == pytest.approx(np.diff(result.sent_s))


def test_vllm_states_no_end_to_end_latency_by_default_but_its_values() -> None:
    result, raw = read_bench(FILES / "vllm_closed.json"), document("vllm_closed.json")
    assert "mean_e2el_ms" not in raw
    assert np.mean(raw["latencies"]) == pytest.approx(result.latency_s("e2e", "mean"))
    assert np.percentile(raw["latencies"], 99) == pytest.approx(result.latency_s("e2e", "p99"))
    assert (math.inf, 1.0, 4) == load(result)
    assert None is result.input_tokens
    assert None is result.sent_s


def test_failed_requests_are_no_part_of_the_arrays(tmp_path: Path) -> None:
    raw = document("vllm_detailed.json")
    raw["errors"][3], raw["output_lens"][3], raw["failed"] = "gone", 0, 1
    result = read_bench(written(tmp_path, raw))
    assert result.output_tokens is not None
    assert (11, 1) == (len(result.output_tokens), result.failed)
    assert 0 not in result.output_tokens


def test_sglang_appends_runs_to_one_file() -> None:
    opened, closed = read_benches(FILES / "sglang.jsonl")
    assert ("sglang-1", "sglang-2") == (opened.name, closed.name)
    assert ("sglang", "vllm", None) == (opened.tool, opened.engine, opened.model)
    assert (4.0, 1.0, None) == load(opened)
    assert (math.inf, 1.0, 4) == load(closed)
    assert 21.269653916836734e-3 == opened.latency_s("ttft", "mean")
    assert opened.latency_s("e2e", "p99") == pytest.approx(168.5821925491109e-3)
    # Not stated: how many failed, of a run without details.
    assert (0, None) == (opened.failed, closed.failed)
    with pytest.raises(ConfigError, match=r"expected one run \(got 2: sglang-1, sglang-2"):
        read_bench(FILES / "sglang.jsonl")


def test_the_summary_of_a_sweep_of_vllm_is_a_list_of_runs(tmp_path: Path) -> None:
    raw = [document("vllm_closed.json"), document("vllm_closed.json") | {"max_concurrency": 8}]
    found = read_benches(written(tmp_path, raw, name="summary.json"))
    assert [("summary-1", 4), ("summary-2", 8)] == [(r.name, r.max_concurrency) for r in found]


def test_a_client_that_did_not_stream_measured_no_tpot(tmp_path: Path) -> None:
    raw = document("vllm_detailed.json")
    result = read_bench(written(tmp_path, raw | {"mean_tpot_ms": -1e-6, "median_tpot_ms": 0.0}))
    assert (None, None) == (result.latency_s("tpot", "mean"), result.latency_s("tpot", "p50"))
    assert result.latency_s("tpot", "p99") is not None


def test_sglang_servers_say_what_they_are(tmp_path: Path) -> None:
    raw = json.loads((FILES / "sglang.jsonl").read_text().splitlines()[0])
    server = {"model_path": MODEL, "tp_size": 2, "version": "0.5.23"}
    result = read_bench(written(tmp_path, raw | {"backend": "sglang-oai", "server_info": server}))
    assert ("sglang", "0.5.23", 2, MODEL) == (
        result.engine,
        result.engine_version,
        result.tp,
        result.model,
    )


@pytest.mark.parametrize("name", ["guidellm_poisson.json", "guidellm_0.3.json"])
def test_guidellm_in_both_of_its_structures(name: str) -> None:
    result = read_bench(FILES / name)
    requests = document(name)["benchmarks"][0]["requests"]["successful"]
    assert ("guidellm", MODEL, None, 12) == (
        result.tool,
        result.model,
        result.engine,
        result.completed,
    )
    assert (4.0, 1.0, None) == load(result)
    # Its latency is in seconds, its other times are not.
    e2e = [request["request_latency"] for request in requests]
    assert np.mean(e2e) == pytest.approx(result.latency_s("e2e", "mean"))
    ttft = [request["time_to_first_token_ms"] / 1e3 for request in requests]
    assert np.mean(ttft) == pytest.approx(result.latency_s("ttft", "mean"))
    assert result.output_tokens is not None
    assert sum(r["output_tokens"] for r in requests) == result.total_output_tokens
    assert result.sent_s is not None
    assert 0 == result.sent_s[0] <= np.diff(result.sent_s).min()


def test_tpot_of_guidellm_is_not_what_it_calls_time_per_output_token() -> None:
    run = document("guidellm_poisson.json")["benchmarks"][0]
    result = read_bench(FILES / "guidellm_poisson.json")
    tokens = np.array([r["output_tokens"] for r in run["requests"]["successful"]])
    gaps_s = [r["inter_token_latency_ms"] / 1e3 for r in run["requests"]["successful"]]
    # vLLM's TPOT counts each request once, its ITL each gap.
    assert np.mean(gaps_s) == pytest.approx(result.latency_s("tpot", "mean"))
    assert np.average(gaps_s, weights=tokens - 1) == pytest.approx(result.latency_s("itl", "mean"))
    with_first = run["metrics"]["time_per_output_token_ms"]["successful"]["mean"] / 1e3
    assert with_first > 1.05 * (result.latency_s("tpot", "mean") or 0)
    assert {"mean"} == set(result.latencies_s["itl"])  # its percentiles are of neither


def test_a_sample_of_the_requests_is_not_taken_for_all(tmp_path: Path) -> None:
    raw = document("guidellm_poisson.json")
    del raw["benchmarks"][0]["requests"]["successful"][5:]
    result = read_bench(written(tmp_path, raw))
    assert (None, None, 12) == (
        result.input_tokens,
        result.latency_s("tpot", "mean"),
        result.completed,
    )
    assert result.latency_s("itl", "mean") is not None


def test_guidellm_sweeps_in_one_file() -> None:
    found = read_benches(FILES / "guidellm_concurrent.json")
    assert [(math.inf, None, 1), (math.inf, None, 4)] == [load(result) for result in found]
    assert ["guidellm_concurrent-1", "guidellm_concurrent-2"] == [r.name for r in found]


def test_aiperf_by_its_folder_its_summary_and_its_records(tmp_path: Path) -> None:
    folder = FILES / "aiperf_rate"
    result = read_bench(folder)
    raw = document("aiperf_rate/profile_export_aiperf.json")
    assert ("aiperf", "0.13.0", MODEL, 12, 0) == (
        result.tool,
        result.tool_version,
        result.model,
        result.completed,
        result.failed,
    )
    assert (4.0, 1.0, None) == load(result)
    # Its inter-token latency is a mean of a request, and so is TPOT.
    assert raw["inter_token_latency"]["avg"] / 1e3 == result.latency_s("tpot", "mean")
    assert raw["inter_chunk_latency"]["p90"] / 1e3 == result.latency_s("itl", "p90")
    alone = Path(shutil.copy(folder / "profile_export.jsonl", tmp_path))
    records = read_bench(alone)
    for metric in LATENCIES:
        for statistic in ("mean", "p50", "p99"):
            expected = result.latency_s(metric, statistic)
            assert expected == pytest.approx(records.latency_s(metric, statistic), rel=1e-6)
    assert result.duration_s == pytest.approx(records.duration_s, rel=1e-2)
    assert (None, None, None) == load(records)
    summary = Path(shutil.copy(folder / "profile_export_aiperf.json", tmp_path / "alone.json"))
    alone.unlink()
    assert None is read_bench(summary).input_tokens
    assert result.total_input_tokens == read_bench(summary).total_input_tokens == 1200


def test_aiperf_in_a_closed_loop_and_of_an_older_version(tmp_path: Path) -> None:
    assert (math.inf, None, 4) == load(read_bench(FILES / "aiperf_concurrency"))
    raw = document("aiperf_rate/profile_export_aiperf.json")
    raw["input_config"] = {
        "endpoint": {"model_names": [MODEL]},
        "loadgen": {"request_rate": 7.0, "request_rate_mode": "constant"},
    }
    result = read_bench(written(tmp_path, raw))
    assert (7.0, math.inf, None) == load(result)
    assert MODEL == result.model


def test_a_tokenizer_that_counts_otherwise_than_the_server_is_noted(tmp_path: Path) -> None:
    raw = document("aiperf_rate/profile_export_aiperf.json")
    assert () == read_bench(written(tmp_path, raw)).notes
    raw["total_usage_completion_tokens"] = {"unit": "tokens", "avg": 1000.0}
    notes = read_bench(written(tmp_path, raw)).notes
    assert ("the client counts 294 output tokens, the server 1000",) == notes


def test_one_emulated_server_looks_alike_to_every_tool() -> None:
    """The same Llama-3.1-8B on the same H100, hardly loaded: a token every 6.4 to 6.7 ms."""
    for path in FILES.iterdir():
        if path.suffix == ".md":
            continue
        for result in read_benches(path):
            assert result.latency_s("tpot", "mean") == pytest.approx(6.55e-3, rel=0.025), path
            assert result.latency_s("itl", "mean") == pytest.approx(6.55e-3, rel=0.025), path


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ('{"a": 1}\n{"b"\n', "line 2: not valid JSON"),
        ("[]", "got no JSON object"),
        ("3", "got no JSON object"),
        ("[3]", "got no JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"kind": "search"}', "expected a result of `vllm bench serve`, SGLang's"),
        ('{"completed": 3, "mean_ttft_ms": "fast"}', "mean_ttft_ms: expected a number"),
        ('{"completed": 3, "mean_ttft_ms": -3}', "mean_ttft_ms: expected a number >= 0"),
        ('{"completed": 3.5, "mean_ttft_ms": 3}', "completed: expected a whole number"),
        ('{"completed": true, "mean_ttft_ms": 3}', "completed: expected a number"),
        (
            '{"completed": 3, "mean_ttft_ms": 3, "input_lens": [1, 2], "output_lens": [1]}',
            "output_tokens: expected 2 entries",
        ),
        ('{"benchmarks": []}', "expected at least one run"),
        ('{"benchmarks": [{}]}', "KeyError: 'metrics'"),
        ('{"benchmarks": [3]}', "TypeError"),
        ('{"request_latency": {"unit": "fortnights", "avg": 3}}', "unit: expected one of ns, us"),
        ('{"metadata": {}, "metrics": {}}', "expected at least one completed request"),
    ],
)
def test_what_is_no_such_result_is_refused(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"bad\.json") as error:
        read_benches(path)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.json: cannot be read"):
        read_benches(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="expected a folder with profile_export_aiperf"):
        read_benches(tmp_path)
