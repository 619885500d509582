"""Results of other tools as measured runs.

The keys are those that SGLang's python/sglang/bench_serving.py writes (file of 2025-12, with
p90_e2e_latency_ms and max_concurrent_requests); values are made up, and consistent.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from simulator.errors import ConfigError
from simulator.validation.bench import row_of_result

LATENCIES = {
    f"{statistic}_{metric}_ms": value + step
    for metric, value in (("e2e_latency", 900.0), ("ttft", 40.0), ("tpot", 8.0), ("itl", 8.1))
    for step, statistic in enumerate(("mean", "median", "std", "p99"))
}
SGLANG = {
    "backend": "sglang-oai",
    "dataset_name": "random",
    "request_rate": 4.0,
    "max_concurrency": None,
    "sharegpt_output_len": None,
    "random_input_len": 512,
    "random_output_len": 128,
    "random_range_ratio": 1.0,
    "server_info": {},
    "duration": 25.0,
    "completed": 100,
    "total_input_tokens": 51_200,
    "total_input_text_tokens": 51_200,
    "total_input_vision_tokens": 0,
    "total_output_tokens": 12_800,
    "total_output_tokens_retokenized": 12_790,
    "request_throughput": 4.0,
    "input_throughput": 2048.0,
    "output_throughput": 512.0,
    "total_throughput": 2560.0,
    **LATENCIES,
    "p90_e2e_latency_ms": 902.0,
    "p95_itl_ms": 9.0,
    "concurrency": 3.6,
    "accept_length": None,
    "max_output_tokens_per_s": 700.0,
    "max_concurrent_requests": 9,
}
DEPLOYMENT = {"gpu": "H100-SXM", "model_hf": "meta-llama/Llama-3.1-8B"}


def written(folder: Path, *results: dict[str, object]) -> Path:
    path = folder / "run.jsonl"
    path.write_text("".join(json.dumps(result) + "\n" for result in results))
    return path


def test_a_line_of_sglang_is_a_run_with_its_load_and_latencies(tmp_path: Path) -> None:
    row = row_of_result(written(tmp_path, SGLANG), DEPLOYMENT, tmp_path)
    assert ("sglang", "gamma", "4.0") == tuple(
        row.text(name) for name in ("engine", "arrival_kind", "request_rate_rps")
    )
    assert (100, 512, 128) == tuple(
        row.number(name) for name in ("num_requests", "input_len_mean", "output_len_mean")
    )
    measured = row.measured()
    assert (40.0, 8.0, 900.0) == tuple(measured[f"{m}_mean"] for m in ("ttft", "tpot", "e2e"))
    assert (902.0, 903.0) == (measured["e2e_p90"], measured["e2e_p99"])


def test_a_closed_loop_against_vllm_by_the_same_tool(tmp_path: Path) -> None:
    closed = {**SGLANG, "backend": "vllm", "request_rate": math.inf, "max_concurrency": 8}
    row = row_of_result(written(tmp_path, closed), DEPLOYMENT, tmp_path)
    assert ("vllm", "closed", 8) == (
        row.text("engine"),
        row.text("arrival_kind"),
        row.number("max_concurrency"),
    )


@pytest.mark.parametrize(
    ("results", "words"),
    [
        ([SGLANG, SGLANG], "one result, one line \\(got 2 lines\\)"),
        ([{**SGLANG, "request_rate": "trace"}], "request_rate: expected a rate"),
        ([{"benchmarks": []}], "no mean_ttft_ms"),
    ],
)
def test_what_is_no_such_result_is_refused(
    results: list[dict[str, object]], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=words):
        row_of_result(written(tmp_path, *results), DEPLOYMENT, tmp_path)
