"""The profiler's machinery, with an injected timer and clock: order, resuming, budget, refusals.

No time in this file is a measurement.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from calibration import tables
from calibration.__main__ import (
    DeviceLost,
    Store,
    grid_hash,
    main,
    run,
    write_meta,
    write_tiles,
)
from calibration.columns import SCHEMAS
from calibration.measure import Made, Rejected, Timing, Trial, summarise
from calibration.provenance import as_yaml
from calibration.suites import SUITES, Point, grid, point, round_robin, tune_grid
from calibration.system import Device, ceilings

DEVICE = Device(
    name="NVIDIA H200", capability=90, num_sms=132, memory_bytes=150 * 10**9, l2_bytes=60 << 20,
    driver="575.1", clocks="clocks.sm 1980 MHz", torch="2.11", triton="3.6", cuda="13.0",
)  # fmt: skip


class StatedTimer:
    """Not a clock: a trial's first call returns the seconds that it is said to take."""

    def __init__(self, usable: bool = True) -> None:
        self.asked: list[tuple[str, str]] = []
        self._usable = usable

    def time(self, trial: Trial, l2: str) -> Timing:
        self.asked.append((trial.kernel, l2))
        return summarise([float(str(trial.calls[0]()))] * 5, graph=trial.graph)

    def usable(self) -> bool:
        return self._usable


def said(seconds: float) -> Trial:
    return Trial(kernel="ours", calls=[lambda: seconds])


def gemms(*tokens: int) -> list[Point]:
    return [point("gemm", "dense", m=m, n=64, k=32) for m in tokens]


def make(wanted: Point) -> Made:
    m = dict(wanted.arguments)["m"]
    shape = {"format": "bf16", "num_tokens": m, "out_size": 64, "in_size": 32}
    return shape, [said(m * 1e-6), Rejected("other", f"differs at {m}")]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_row_states_kernel_shape_times_and_how(tmp_path: Path) -> None:
    run(gemms(4), make, StatedTimer(), Store(tmp_path), budget_s=1)
    assert rows(tmp_path / "gemm.csv") == [{
        "op": "gemm", "kernel": "ours", "format": "bf16", "num_tokens": "4", "out_size": "64",
        "in_size": "32", "time_s": "4e-06", "p20_s": "4e-06", "p80_s": "4e-06",
        "num_replays": "5", "graph": "1", "l2": "cold", "config": "",
        "point": "gemm: dense m=4 n=64 k=32 cold 0",
    }]  # fmt: skip


def test_a_refused_kernel_has_a_line_and_no_number(tmp_path: Path) -> None:
    done = run(gemms(4, 8), make, StatedTimer(), Store(tmp_path), budget_s=1)
    assert (2, 2, 2) == (done.points, done.rows, done.rejected)
    assert ["differs at 4", "differs at 8"] == [
        r["reason"] for r in rows(tmp_path / "rejected.csv")
    ]


def test_a_second_run_measures_only_what_is_missing(tmp_path: Path) -> None:
    run(gemms(1, 2), make, StatedTimer(), Store(tmp_path), budget_s=1)
    timer = StatedTimer()
    done = run(gemms(1, 2, 3), make, timer, Store(tmp_path), budget_s=1)
    assert (1, 1) == (done.points, len(timer.asked))
    assert ["1", "2", "3"] == [row["num_tokens"] for row in rows(tmp_path / "gemm.csv")]


def test_a_line_cut_short_is_measured_again(tmp_path: Path) -> None:
    run(gemms(1, 2), make, StatedTimer(), Store(tmp_path), budget_s=1)
    for name in ("gemm.csv", "rejected.csv"):
        path = tmp_path / name
        path.write_text(path.read_text()[:-8])
    run(gemms(1, 2), make, StatedTimer(), Store(tmp_path), budget_s=1)
    assert ["1", "2"] == [row["num_tokens"] for row in rows(tmp_path / "gemm.csv")]


def test_the_budget_ends_a_run_between_points(tmp_path: Path) -> None:
    ticks = iter(range(100))
    done = run(
        gemms(*range(1, 9)), make, StatedTimer(), Store(tmp_path), budget_s=4,
        clock=lambda: float(next(ticks)),
    )  # fmt: skip
    assert (3, 5) == (done.points, done.left)


def test_a_point_that_cannot_be_prepared_is_rejected_once(tmp_path: Path) -> None:
    def fails(wanted: Point) -> Made:
        raise MemoryError("too\nlarge")

    done = run(gemms(1), fails, StatedTimer(), Store(tmp_path), budget_s=1)
    assert 1 == done.rejected
    assert "MemoryError: too large" == rows(tmp_path / "rejected.csv")[0]["reason"]
    assert 0 == run(gemms(1), fails, StatedTimer(), Store(tmp_path), budget_s=1).points


def test_a_lost_device_ends_the_run_with_its_point_rejected(tmp_path: Path) -> None:
    with pytest.raises(DeviceLost, match="m=1"):
        run(gemms(1, 2), make, StatedTimer(usable=False), Store(tmp_path), budget_s=1)
    assert {gemms(1)[0].key} == Store(tmp_path).finished


def test_a_sum_of_parts_stands_next_to_the_whole(tmp_path: Path) -> None:
    def layer(wanted: Point) -> Made:
        def trials() -> Iterator[Trial | Rejected]:
            yield replace(said(2e-6), kernel="norm", weight=2, l2="warm")
            yield replace(said(3e-6), kernel="out", weight=1)
            yield replace(said(6e-6), kernel="layer")

        return {"model": "toy"}, trials()

    timer = StatedTimer()
    run([point("layer", "layer", model="toy")], layer, timer, Store(tmp_path), budget_s=1)
    found = {row["kernel"]: (row["time_s"], row["l2"]) for row in rows(tmp_path / "layer.csv")}
    assert ("7e-06", "cold") == found["sum"]
    assert ("2e-06", "warm") == found["norm"]
    assert [("norm", "warm"), ("out", "cold"), ("layer", "cold")] == timer.asked


def test_statistics_are_of_the_samples() -> None:
    found = summarise([5.0, 1.0, 3.0, 2.0, 4.0, 6.0], graph=False)
    assert (3.5, 2.0, 5.0, 6) == (found.median_s, found.p20_s, found.p80_s, found.num_replays)
    with pytest.raises(ValueError, match="below what this method resolves"):
        summarise([-1e-6, -2e-6, 1e-7], graph=True)


def test_lanes_take_turns_and_any_prefix_covers_them() -> None:
    many = [point("a", "x", i=i) for i in range(5)] + [point("b", "y", i=0), point("c", "z", i=0)]
    order = round_robin(many)
    assert sorted(many, key=str) == sorted(order, key=str)
    assert ["a", "b", "c", "a", "a", "a", "a"] == [p.table for p in order]


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_names_each_point_once_and_covers_every_op(suite: str) -> None:
    points = [*ceilings(suite), *grid(suite)]
    assert len(points) == len({p.key for p in points})
    imported = {"all_reduce", "collective", "mla_decode_block", "mla_prefill_block"}  # not timed
    assert set(SCHEMAS) - imported <= {p.table for p in points[: 60 + len(ceilings(suite))]}


def test_the_tables_are_read_back_with_their_provenance(tmp_path: Path) -> None:
    store, points = Store(tmp_path), gemms(16, 2, 128)
    run(points, make, StatedTimer(), store, budget_s=1)
    write_meta(store, DEVICE, "smoke", points)
    found = tables.read_tables(tmp_path, gpu="h200-sxm")
    assert [16, 2, 128] == list(found.ops["gemm"]["num_tokens"])
    assert tables.grid_hash("gemm", found.ops["gemm"]) == grid_hash("gemm", store.rows("gemm"))
    assert {"gemm other": "3 points, first: differs at 16"} == dict(found.refused)


def test_meta_is_yaml() -> None:
    values = {"a": {"b": 1, "c d": "x: y # z"}, "e": {}, "f": 'quote " and \\'}
    assert values == yaml.safe_load(as_yaml(values))


def test_tuned_tiles_are_listed_fastest_first(tmp_path: Path) -> None:
    def both(wanted: Point) -> Made:
        return {"m": 1}, [replace(said(t), kernel=c) for c, t in (("slow", 2e-6), ("fast", 1e-6))]

    store = Store(tmp_path)
    run([point("tune_gemm", "tune_dense", m=1)], both, StatedTimer(), store, budget_s=1)
    text = yaml.safe_load(write_tiles(store, 90).read_text())
    [times] = text["gemm"].values()
    assert ["fast", "slow"] == [entry["config"] for entry in times]


def test_profiling_needs_no_package_of_the_simulator() -> None:
    code = "import sys, calibration.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in done.stdout.split()}
    assert set() == loaded & {"pandas", "yaml", "pydantic", "typer", "simpy", "scipy", "simulator"}


def test_list_counts_the_grid_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    assert 0 == main(["profile", "--suite", "core", "--tune", "--list"])
    lines = capsys.readouterr().out.splitlines()
    total = len(tune_grid()) + len(ceilings("core")) + len(grid("core"))
    assert f"{total} total" == lines[-1].strip()


def test_without_a_gpu_nothing_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert 2 == main(["profile", "--suite", "smoke", "--out", str(tmp_path / "new")])
    assert "profile: no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
