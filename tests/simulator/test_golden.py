"""Five tiny experiments whose every request time is committed, in ns, and output byte for byte.

A change that moves a golden file explains why; `pytest --update-golden` rewrites them.
"""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.catalog import load_model, parse_cluster
from simulator.defaults import default_settings
from simulator.engine import simulate
from simulator.experiment import Experiment
from simulator.recorder import COMPLETED, Result
from simulator.request import RequestTable
from simulator.routers import LeastLoaded
from simulator.spec import ParallelPlan

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
COLUMNS = (
    "status",
    "target",
    "sent_ns",
    "scheduled_ns",
    "first_token_ns",
    "finish_ns",
    "cached_tokens",
    "preemptions",
)


def workload(seed: int, *, shared_tokens: int = 0, **columns: Any) -> RequestTable:
    """24 requests, some arriving together; the first `shared_tokens` of all prompts are alike."""
    rng = np.random.default_rng(seed)
    num = 24
    prompt = shared_tokens + rng.integers(1, 700, num)
    if shared_tokens:
        shared = shared_tokens // 16
        ids = [
            block if block < shared else 1000 * (i + 1) + block
            for i, tokens in enumerate(prompt.tolist())
            for block in range(-(-tokens // 16))
        ]
        columns["hash_ids"] = np.array(ids)
        columns["hash_offsets"] = np.concatenate([[0], np.cumsum(-(-prompt // 16))])
        columns["hash_block_tokens"] = 16
    return RequestTable(
        arrival_ns=np.sort(rng.integers(0, 40, num)) * 25_000_000,
        prompt_tokens=prompt,
        output_tokens=rng.integers(1, 60, num),
        **columns,
    )


def experiment(
    model: str,
    cluster: str,
    plan: ParallelPlan,
    table: RequestTable,
    *,
    engine: dict[str, int] | None = None,
    **changes: Any,
) -> Experiment:
    spec = parse_cluster(cluster)
    limits = {"max_num_batched_tokens": 1024, "max_num_seqs": 16} | (engine or {})
    return Experiment(
        model=load_model(model),
        cluster=spec,
        plan=plan,
        # Prices by formula: a new fit of the embedded cost tables is not a change of the engine.
        settings=default_settings(spec.groups[0].gpu, calibration="roofline", **limits),
        workload=table,
        **changes,
    )


def experiments() -> dict[str, Experiment]:
    return {
        "dense_tp": experiment(
            "llama-3.1-70b", "4xH100-SXM", ParallelPlan(tp=4), workload(1, shared_tokens=96)
        ),
        "pipeline": experiment(
            "llama-3.1-8b",
            "2xH100-SXM",
            ParallelPlan(pp=2),
            workload(2),
            engine={"num_blocks": 120},
        ),
        "replicas": experiment(
            "qwen3-8b",
            "3xA100-80-SXM",
            ParallelPlan(dp=3),
            workload(3, max_concurrency=16),
            engine={"num_blocks": 56},
            router=LeastLoaded(),
        ),
        "moe_attention_dp": experiment(
            "qwen3-30b-a3b", "2xH200-SXM", ParallelPlan(attention_dp=2, ep=2), workload(4)
        ),
        "windowed": experiment(
            "gpt-oss-20b", "1xH100-SXM", ParallelPlan(), workload(5), engine={"num_blocks": 900}
        ),
    }


NAMES = tuple(experiments())


def as_csv(result: Result) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("request", *COLUMNS))
    columns = [getattr(result, name).tolist() for name in COLUMNS]
    writer.writerows((i, *row) for i, row in enumerate(zip(*columns, strict=True)))
    return text.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_request_times_are_those_committed(name: str, update_golden: bool) -> None:
    path = GOLDEN / f"{name}.csv"
    actual = as_csv(simulate(experiments()[name]))
    if update_golden:
        path.write_text(actual)
    assert actual.splitlines() == path.read_text().splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_golden_experiments_run_the_same_one_iteration_at_a_time(name: str) -> None:
    chosen = experiments()[name]
    assert as_csv(simulate(replace(chosen, coalesce=False))) == as_csv(simulate(chosen))


def test_golden_experiments_preempt_hit_wait_and_complete() -> None:
    results = {name: simulate(each) for name, each in experiments().items()}
    assert all((result.status == COMPLETED).all() for result in results.values())
    assert results["dense_tp"].cached_tokens.sum() > 0
    assert results["pipeline"].preemptions.sum() > 0
    assert results["replicas"].preemptions.sum() > 0
    assert set(results["replicas"].target.tolist()) == {0, 1, 2}
    assert set(results["moe_attention_dp"].target.tolist()) == {0, 1}
    assert any((r.scheduled_ns > r.sent_ns).any() for r in results.values())


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.csv")} == set(NAMES)


def test_output_is_the_same_bytes_whatever_the_hash_seed() -> None:
    line = (
        "simulate --model llama-3.1-8b --cluster 2xH100-SXM --dp 2 --num-prompts 40 "
        "--input-len 300 --output-len 30 --request-rate 20 --router least_loaded --json"
    )
    outputs = []
    for seed in ("0", "4242"):
        done = subprocess.run(
            [sys.executable, "-m", "simulator", *line.split()],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        )
        assert done.stderr == b""
        outputs.append(done.stdout)
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith(b"{")
