"""Occupancy over time and the frames of a run, of logs made by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.errors import ConfigError
from simulator.metrics import iteration_frame, timeseries
from simulator.occupancy import kv_utilisation, step_series
from simulator.segments import segment_table
from tests.simulator.logs import MS, by_hand, ints, lane, numbers, one_token, summary_of


def test_occupancy_is_weighted_by_time() -> None:
    summary = summary_of(by_hand())
    found = numbers(summary, "mean_running", "max_running", "mean_waiting", "max_waiting")
    assert found == pytest.approx([60 / 60, 2, 25 / 60, 1])
    found = numbers(summary, "mean_kv_utilisation", "max_kv_utilisation", "busy_share")
    assert found == pytest.approx([9 / 24, 3 / 4, 1.0])


def test_blocks_grow_inside_a_run_and_are_free_while_idle() -> None:
    run_of_17 = {"iterations": 17, "num_decode": 2, "used_blocks": 2}
    ends = [MS * i for i in range(1, 18)]
    late = {"iterations": 1, "num_decode": 1, "used_blocks": 1}
    result = one_token(lanes=(lane([run_of_17, late], [0, 33 * MS], [*ends, 34 * MS]),))
    series, peak = kv_utilisation(replace(result, num_blocks=(8,)), segment_table(result))
    # 2 sequences x 16 further tokens = 4 blocks of 8 tokens more at the end of the run.
    assert series.time_ns.tolist() == [0, 17 * MS, 33 * MS, 34 * MS]
    assert series.values.tolist() == [4 / 8, 0.0, 1 / 8, 0.0]
    assert peak == 6 / 8


def test_changes_at_one_instant_never_show_in_between() -> None:
    series = step_series(ints(5, 5, 0, 9), ints(1, -1, 1, -1))
    assert list(zip(series.time_ns.tolist(), series.values.tolist(), strict=True)) == [
        (0, 1.0),
        (5, 1.0),
        (9, 0.0),
    ]
    assert series.mean(-9, 9) == 0.5


def test_timeseries_holds_means_and_rates_of_each_bucket() -> None:
    frame = timeseries(by_hand(), 0.025)
    assert frame["time_s"].tolist() == [0.0, 0.025, 0.050]
    assert frame["output_tokens_per_s"].tolist() == pytest.approx(
        [2 / 0.025 + 1 / 0.025, 2 / 0.025, 2 / 0.010]
    )
    assert frame["running"].tolist() == pytest.approx([40 / 25, 10 / 25, 10 / 10])
    with pytest.raises(ConfigError, match="bucket_s"):
        timeseries(by_hand(), 0.0)


def test_iteration_frame_has_one_row_an_iteration() -> None:
    row = {"iterations": 3, "num_decode": 2, "decode_kv_tokens": 20}
    result = one_token(
        lanes=(lane([row, {"num_decode": 1}], [5 * MS, 90 * MS], [x * MS for x in (6, 7, 8, 91)]),)
    )
    frame = iteration_frame(result)
    assert frame["decode_kv_tokens"].tolist() == [20, 22, 24, 0]
    assert frame["start_s"].tolist() == pytest.approx([0.005, 0.006, 0.007, 0.090])


def test_lanes_of_a_rank_sample_the_same_blocks() -> None:
    first = lane([{"used_blocks": 2}, {"used_blocks": 4}], [0, 20 * MS], [20 * MS, 40 * MS])
    second = lane([{"used_blocks": 6}], [10 * MS], [30 * MS], number=1)
    series, peak = kv_utilisation(
        one_token(lanes=(first, second), num_blocks=(8,)),
        segment_table(one_token(lanes=(first, second))),
    )
    assert series.time_ns.tolist() == [0, 10 * MS, 20 * MS, 40 * MS]
    assert series.values.tolist() == [2 / 8, 6 / 8, 4 / 8, 0.0]
    assert peak == 6 / 8


def test_ranks_share_nothing_and_weigh_by_their_blocks() -> None:
    lanes = (
        lane([{"used_blocks": 3}], [0], [20 * MS]),
        lane([{"used_blocks": 6}], [0], [10 * MS], replica=1, rank=1),
    )
    result = one_token(lanes=lanes, num_blocks=(6, 6))
    series, peak = kv_utilisation(result, segment_table(result))
    assert series.time_ns.tolist() == [0, 10 * MS, 20 * MS]
    assert series.values.tolist() == [9 / 12, 3 / 12, 0.0]
    assert peak == 1.0
