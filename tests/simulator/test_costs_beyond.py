"""How much of a run's time was priced beyond its tables: none, all, or the share of what is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulator.catalog import CONFIGS, load_model
from simulator.cli import run
from simulator.costs.beyond import share_beyond
from simulator.costs.roofline import Layout, layout_of
from simulator.recorder import SEGMENT_COLUMNS
from simulator.spec import EngineSettings, ParallelPlan

from .costs_support import node_group

SETTINGS = EngineSettings(
    max_num_batched_tokens=8192,
    max_num_seqs=256,
    calibration=str(CONFIGS / "calibrated" / "h200-sxm"),
    extrapolate=True,
)


def layout(tp: int = 1, **ranges: float) -> Layout:
    """Llama on H200 with curves whose largest measured sizes are those given."""
    found = layout_of(
        load_model("llama-3.1-8b"), ParallelPlan(tp=tp), node_group("H200-SXM", 8), SETTINGS
    )
    tables = found.machine.tables
    assert tables is not None
    curves = {
        key: replace(
            curve,
            ranges={n: (low, ranges.get(n, high)) for n, (low, high) in curve.ranges.items()},
        )
        for key, curve in tables.curves.items()
    }
    return replace(found, machine=replace(found.machine, tables=replace(tables, curves=curves)))


def load(**columns: list[int]) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    number = len(next(iter(columns.values())))
    zeros = {name: [0] * number for name in SEGMENT_COLUMNS}
    return {k: np.array(v, dtype=np.float64) for k, v in (zeros | columns).items()}


DECODE = load(iterations=[10], num_decode=[64], decode_kv_tokens=[64 * 1024], sampled=[64])
PREFILL = load(iterations=[1], num_prefill=[1], prefill_tokens=[4096], prefill_pairs=[4096 * 2048])


def test_nothing_is_beyond_what_was_measured() -> None:
    assert 0.0 == share_beyond(layout(tp=8), DECODE)
    assert 0.0 == share_beyond(layout(tp=8), PREFILL)


def test_an_lm_head_wider_than_any_measured_gemm_is_beyond() -> None:
    assert 0.02 < share_beyond(layout(), DECODE) < 0.06  # 128,256 outputs, 65,536 measured


def test_what_needs_no_table_is_never_beyond() -> None:
    share = share_beyond(layout(tp=2, num_tokens=1.0, num_seqs=1.0, payload_bytes=1.0), DECODE)
    assert 0.85 < share < 1.0  # norms and the like are left


def test_one_op_beyond_is_its_share_of_the_time() -> None:
    attention = share_beyond(layout(kv_tokens=512.0), DECODE)
    sums = share_beyond(layout(tp=8, payload_bytes=1024.0), DECODE)
    gemm = share_beyond(layout(in_size=1024.0), DECODE)
    assert 0.05 < attention < 0.5
    assert 0.05 < sums < 0.6
    assert 0.5 < gemm < 1.0
    assert gemm + attention < 1.0


def test_iterations_beyond_count_as_long_as_they_take() -> None:
    both = {k: np.concatenate([DECODE[k], PREFILL[k]]) for k in SEGMENT_COLUMNS}
    some = layout(tp=8, num_tokens=1024.0)
    alone = share_beyond(some, PREFILL)
    mixed = share_beyond(some, both)
    assert 0.0 == share_beyond(some, DECODE)
    assert 0.0 < mixed < alone < 1.0
    twice = {**both, "iterations": both["iterations"] * np.array([1.0, 1000.0])}
    assert mixed < share_beyond(some, twice) < alone


def test_a_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curves = json.loads((CONFIGS / "calibrated" / "h200-sxm" / "curves.json").read_text())
    for curve in curves["curves"]:
        if curve["op"] == "gemm":
            curve["ranges"]["in_size"][1] = 1024
    (tmp_path / "curves.json").write_text(json.dumps(curves))
    command = ["simulate", "--model", "llama-3.1-8b", "--cluster", "1xH200-SXM", "--num-prompts"]
    command += ["5", "--input-len", "100", "--output-len", "50", "--request-rate", "9", "--json"]
    command += ["--calibration", str(tmp_path)]
    assert 2 == run(command)
    assert "gemm bf16: in_size 4096 is more than twice" in capsys.readouterr().err
    assert 0 == run([*command, "--extrapolate"])
    stated = str(json.loads(capsys.readouterr().out)["cost_tables"])
    share = int(stated.split("; ")[-1].removesuffix(" % of the time beyond the measured sizes"))
    assert 80 < share < 100
