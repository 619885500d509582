"""Metrics of hand-made runs, worked out on paper; vLLM means `vllm bench serve` 0.33."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from simulator.engine import run
from simulator.itl import token_log
from simulator.metrics import request_frame, summarise, timeseries
from simulator.recorder import REJECTED, UNFINISHED, Result
from simulator.request import RequestTable
from simulator.spec import Slo
from tests.simulator.logs import (
    MS,
    by_hand,
    experiment,
    ints,
    lane,
    numbers,
    one_token,
    spans,
    summary_of,
)
from tests.simulator.toys import toy_setup, toy_table

VLLM_SCALARS = {
    "duration",
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "request_goodput",
    "output_throughput",
    "total_token_throughput",
    "max_output_tokens_per_s",
    "max_concurrent_requests",
    "rtfx",
}
VLLM_LATENCIES = {
    f"{statistic}_{metric}_ms"
    for statistic in ("mean", "median", "std", "p50", "p90", "p95", "p99")
    for metric in ("ttft", "tpot", "itl", "e2el")
}
OWN = {
    "input_throughput", "unfinished", "output_tokens_per_s_per_user", "slo_ttft_s", "slo_tpot_s",
    "slo_e2e_s", "slo_attainment_ttft", "slo_attainment_tpot", "slo_attainment_e2e",
    "slo_attainment", "slo_attainment_target", "slo_met", "iterations", "mean_num_seqs",
    "mean_num_tokens", "prefix_hit_rate", "preemptions", "preempted_requests",
    "mean_kv_utilisation", "max_kv_utilisation", "mean_running", "max_running", "mean_waiting",
    "max_waiting", "busy_share", "model", "gpu", "num_gpus", "plan", "cost_tables",
    "total_tokens_per_s_per_gpu", "output_tokens_per_s_per_gpu", "mfu", "mbu", "energy_j",
    "energy_j_per_output_token", "mean_power_w", "usd_per_hour", "usd_per_million_output_tokens",
    "usd_per_million_total_tokens", "notes",
}  # fmt: skip
SPLIT = {
    f"{statistic}_{part}_s"
    for statistic in ("mean", "median", "std", "p50", "p90", "p95", "p99")
    for part in ("queueing", "prefill", "decode", "preempted")
}


def test_summary_keys_are_those_of_vllm_bench_serve_and_our_own() -> None:
    assert set(summary_of(by_hand())) == VLLM_SCALARS | VLLM_LATENCIES | SPLIT | OWN


def test_latencies_follow_vllm_definitions_in_milliseconds() -> None:
    summary = summary_of(by_hand())
    means = numbers(summary, "mean_ttft_ms", "mean_tpot_ms", "mean_itl_ms", "mean_e2el_ms")
    assert means == pytest.approx([12.5, (10 + 40 / 3) / 2, 12.0, 42.5])
    medians = numbers(summary, "median_ttft_ms", "median_itl_ms", "p50_e2el_ms", "p99_itl_ms")
    assert medians == pytest.approx([12.5, 10.0, 42.5, np.percentile([10] * 4 + [20], 99)])
    assert numbers(summary, "std_ttft_ms", "std_itl_ms") == pytest.approx([2.5, 4.0])
    assert summary["output_tokens_per_s_per_user"] == pytest.approx(2000 / (10 + 40 / 3))


def test_rates_divide_by_first_send_to_last_finish() -> None:
    summary = summary_of(by_hand())
    rates = numbers(summary, "request_throughput", "input_throughput", "output_throughput")
    assert rates == pytest.approx([2 / 0.06, 14 / 0.06, 7 / 0.06])
    assert summary["total_token_throughput"] == pytest.approx(21 / 0.06)
    assert tuple(numbers(summary, "duration", "completed", "failed", "unfinished")) == (
        0.06,
        2,
        0,
        0,
    )


def test_end_to_end_time_splits_into_queueing_prefill_decode_and_preempted() -> None:
    summary = summary_of(by_hand())
    keys = [f"mean_{part}_s" for part in ("queueing", "prefill", "decode", "preempted")]
    assert numbers(summary, *keys) == pytest.approx([0.0025, 0.010, 0.020, 0.010])
    frame = request_frame(by_hand())
    parts = frame[["queueing_s", "prefill_s", "decode_s", "preempted_s"]].sum(axis=1)
    assert frame["e2e_s"].tolist() == pytest.approx(parts.tolist())


def test_iterations_are_averaged_with_their_counts() -> None:
    summary = summary_of(by_hand())
    assert (
        summary["iterations"],
        summary["mean_num_tokens"],
        summary["mean_num_seqs"],
    ) == (6, 26 / 6, 8 / 6)
    assert (
        summary["prefix_hit_rate"],
        summary["preemptions"],
        summary["preempted_requests"],
    ) == (3 / 14, 1, 1)


def test_goodput_counts_requests_that_meet_every_target() -> None:
    summary = summary_of(by_hand(), slo=Slo(ttft_s=0.012, e2e_s=1.0, attainment=0.5))
    assert summary["request_goodput"] == pytest.approx(1 / 0.06)
    assert (
        summary["slo_attainment_ttft"],
        summary["slo_attainment_e2e"],
        summary["slo_attainment_tpot"],
        summary["slo_attainment"],
        summary["slo_met"],
    ) == (0.5, 1.0, None, 0.5, True)


def test_without_targets_there_is_no_goodput() -> None:
    summary = summary_of(by_hand())
    keys = ("request_goodput", "slo_attainment", "slo_met", "slo_ttft_s")
    assert [summary[key] for key in keys] == [None] * 4


def test_one_token_request_has_no_tpot_but_meets_its_target_as_in_vllm() -> None:
    summary = summary_of(one_token(), slo=Slo(tpot_s=1e-9))
    keys = ("mean_tpot_ms", "p99_tpot_ms", "mean_itl_ms", "output_tokens_per_s_per_user")
    assert [summary[key] for key in keys] == [None] * 4
    assert (
        summary["slo_attainment"],
        summary["request_goodput"],
        summary["mean_ttft_ms"],
    ) == (1.0, 100.0, 10.0)
    assert math.isnan(request_frame(one_token())["tpot_s"][0])


def test_rejected_and_unfinished_requests_meet_no_target() -> None:
    result = by_hand()
    table = RequestTable(
        arrival_ns=ints(0, 5 * MS, 6 * MS),
        prompt_tokens=ints(8, 6, 9999),
        output_tokens=ints(3, 4, 1),
    )
    never = {"scheduled_ns": -1, "first_token_ns": -1, "finish_ns": -1, "target": -1}
    never |= {"sent_ns": 6 * MS, "status": REJECTED, "cached_tokens": 0, "preemptions": 0}
    columns = {name: np.append(getattr(result, name), value) for name, value in never.items()}
    columns["status"][1], columns["finish_ns"][1] = UNFINISHED, -1
    summary = summary_of(replace(result, table=table, **columns), slo=Slo(ttft_s=1.0))
    assert (summary["completed"], summary["failed"], summary["unfinished"]) == (1, 1, 1)
    assert summary["slo_attainment"] == 1 / 3
    assert (
        summary["duration"],
        summary["total_output_tokens"],
        summary["mean_e2el_ms"] - summary["mean_ttft_ms"] - summary["mean_tpot_ms"],
    ) == (0.06, 3, 10.0)


def test_run_without_a_completed_request_has_counts_and_no_latencies() -> None:
    result = one_token(
        status=ints(REJECTED),
        scheduled_ns=ints(-1),
        first_token_ns=ints(-1),
        finish_ns=ints(-1),
        target=ints(-1),
        lanes=(lane([], [], []),),
        spans=spans(),
        end_ns=0,
    )
    summary = summary_of(result, slo=Slo(ttft_s=1.0))
    assert (
        summary["completed"],
        summary["failed"],
        summary["slo_attainment"],
        summary["max_concurrent_requests"],
    ) == (0, 1, 0.0, 0)
    keys = ("mean_ttft_ms", "p99_e2el_ms", "request_throughput", "mean_num_seqs", "mfu")
    assert [summary[key] for key in keys] == [None] * 5
    json.dumps(summary, allow_nan=False)
    assert 1 == len(request_frame(result)) == len(timeseries(result, 1.0))


def test_client_queue_is_apart_from_end_to_end_time() -> None:
    table = replace(by_hand().table, max_concurrency=1)
    summary = summary_of(
        replace(by_hand(), table=replace(table, arrival_ns=ints(0, 2 * MS))),
    )
    found = numbers(summary, "mean_client_queue_time_ms", "mean_e2el_including_client_queue_ms")
    assert found == pytest.approx([1.5, 44.0])
    at_once = replace(table, arrival_ns=ints(0, 0))
    assert "mean_e2el_including_client_queue_ms" not in summary_of(
        replace(by_hand(), table=at_once)
    )


def test_next_turn_waits_at_the_client_only_once_it_may_be_sent() -> None:
    table = replace(by_hand().table, parent=ints(-1, 0), delay_ns=ints(0, 4 * MS))
    result = replace(by_hand(), table=table, sent_ns=ints(0, 36 * MS))
    assert request_frame(result)["client_queue_s"].tolist() == pytest.approx([0.0, 0.002])


def test_peaks_are_taken_in_whole_seconds_from_the_first_request() -> None:
    second = 1000 * MS
    result = by_hand()
    ends = [0.4, 0.9, 1.1, 1.2, 1.3, 2.5]
    line = replace(result.lanes[0], end_ns=ints(*(int(x * second) for x in ends)))
    columns = {"finish_ns": ints(int(1.1 * second), int(2.5 * second)), "sent_ns": ints(0, second)}
    result = replace(result, lanes=(line,), **columns)
    summary = summary_of(result)
    assert (summary["max_output_tokens_per_s"], summary["max_concurrent_requests"]) == (3.0, 2)


def test_a_simulated_run_is_consistent_with_its_metrics() -> None:
    result = run(toy_setup(toy_table(3, rate=200.0), num_pages=60))
    summary = summary_of(result)
    frame = request_frame(result)
    assert summary["preemptions"] > 0  # type: ignore[operator]
    log = token_log(result)
    assert log.tokens_per_iteration().sum() == summary["total_output_tokens"]
    gaps_ns, counts = log.gaps()
    decoding_s = (frame["finish_s"] - frame["first_token_s"]).sum()
    assert np.dot(gaps_ns, counts) / 1e9 == pytest.approx(decoding_s)
    series = timeseries(result, 0.5)
    assert series["kv_utilisation"].between(0, 1).all()
    parts = frame[["queueing_s", "prefill_s", "decode_s", "preempted_s"]].sum(axis=1)
    assert frame["e2e_s"].tolist() == pytest.approx(parts.tolist())


def big_run(num_requests: int, num_iterations: int) -> Result:
    """Requests of 100 tokens one after the other, two iterations apart, on one lane."""
    index = np.arange(num_requests)
    ends = np.arange(1, num_iterations + 1) * 10 * MS
    first = np.minimum(2 * index, num_iterations - 100)
    row = {"num_decode": 50, "decode_kv_tokens": 5000, "sampled": 50, "used_blocks": 9}
    line = lane([row] * num_iterations, (ends - 10 * MS).tolist(), ends.tolist())
    zeros = np.zeros(num_requests, dtype=np.int64)
    sent = ends[first] - 10 * MS
    columns = (index, zeros, first, first + 99)
    return Result(
        table=RequestTable(arrival_ns=sent, prompt_tokens=zeros + 100, output_tokens=zeros + 100),
        status=zeros,
        sent_ns=sent,
        scheduled_ns=sent,
        first_token_ns=ends[first],
        finish_ns=ends[first + 99],
        cached_tokens=zeros,
        preemptions=zeros,
        target=zeros,
        lanes=(line,),
        spans=dict(zip(spans().keys(), columns, strict=True)),
        num_blocks=(10,),
        block_tokens=16,
        end_ns=int(ends[-1]),
    )


def test_a_large_run_is_summarised_in_time() -> None:
    result = big_run(num_requests=100_000, num_iterations=200_000)
    setup = experiment(result.table, slo=Slo(ttft_s=1.0))
    started = time.process_time()
    summary = summarise(setup, result)
    assert time.process_time() - started < 1.5
    assert summary["total_output_tokens"] == 10_000_000


def test_importing_metrics_does_not_import_what_only_people_need() -> None:
    heavy = {"pandas", "matplotlib", "rich", "simpy"}
    code = f"import sys, simulator.metrics; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
