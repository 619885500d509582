"""MFU, MBU, energy and cost, counted on paper for a model of two small layers."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.segments import segment_table
from simulator.spec import FfnSpec, ParallelPlan
from simulator.utilisation import context_tokens, segment_work
from tests.simulator.logs import (
    LAYER,
    MODEL,
    MS,
    by_hand,
    experiment,
    lane,
    numbers,
    one_token,
    summary_of,
)


def test_utilisation_counts_matrices_attention_and_lm_head() -> None:
    # A layer has 12,288 + 24,576 + 128 parameters; 26 tokens, 7 sampled in 5 iterations, 35
    # context tokens read, 93 prefill pairs; attention is 4 x 4 heads x 16 a pair and layer.
    params, head, pair = 2 * 36_992, 64 * 100, 2 * 4 * 4 * 16
    flops = 2 * params * 26 + 2 * head * 7 + pair * (35 + 93)
    read = 2 * params * 6 + 2 * head * 5 + 2 * 128 * 35
    summary = summary_of(by_hand())
    assert numbers(summary, "mfu", "mbu") == pytest.approx([flops / 6e6, read / 6e6])


def test_energy_is_idle_power_and_a_busy_share_of_the_rest() -> None:
    result = by_hand()
    table = segment_table(result)
    work = segment_work(experiment(result.table), table)
    busiest = [max(c, m) for c, m in zip(work.compute_s, work.memory_s, strict=True)]
    assert max(busiest) > 0.010  # the toy GPU is overcommitted: the share of time stops at one
    active_s = sum(min(busy, 0.010) for busy in busiest)
    summary = summary_of(result)
    expected = 100 * 0.06 + 200 * active_s
    assert numbers(summary, "energy_j", "mean_power_w") == pytest.approx(
        [expected, expected / 0.06]
    )
    assert summary["energy_j_per_output_token"] == pytest.approx(expected / 7)


def test_cost_is_the_price_of_the_plans_gpus_over_the_run() -> None:
    summary = summary_of(by_hand(), plan=ParallelPlan(tp=2, dp=2))
    assert summary["usd_per_hour"] == pytest.approx(4 * 3.6)
    paid = 4 * 0.001 * 0.06
    found = numbers(summary, "usd_per_million_output_tokens", "usd_per_million_total_tokens")
    assert found == pytest.approx([paid / 7 * 1e6, paid / 21 * 1e6])
    assert summary["total_tokens_per_s_per_gpu"] == pytest.approx(21 / 0.06 / 4)


def test_mixture_reads_the_experts_it_is_expected_to_hit() -> None:
    ffn = FfnSpec(ffn_size=32, num_experts=8, experts_per_token=2)
    model = replace(MODEL, layer_kinds=(replace(LAYER, ffn=ffn),))
    result = by_hand()
    table = segment_table(result)
    work = segment_work(experiment(result.table, model=model), table)
    expert, dense = 2 * 3 * 64 * 32, 2 * (12_288 + 128 + 64 * 8)
    hit = 8 * (1 - (3 / 4) ** 8)  # first iteration: 8 tokens of 2 experts each
    assert work.memory_bytes[0] == pytest.approx(2 * (dense + expert * hit) + 2 * 6400)


def test_context_of_a_run_grows_until_the_window_is_full() -> None:
    row = {"iterations": 5, "num_decode": 2, "decode_kv_tokens": 20}
    result = one_token(lanes=(lane([row], [0], [10 * i * MS for i in range(1, 6)]),))
    table = segment_table(result)
    assert context_tokens(table).tolist() == [2 * (10 + 11 + 12 + 13 + 14)]
    assert context_tokens(table, 12).tolist() == [2 * (10 + 11 + 12 + 12 + 12)]
    assert context_tokens(table, 4).tolist() == [2 * 5 * 4]
