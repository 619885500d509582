from __future__ import annotations

import io
import itertools
import shlex

import numpy as np
import pytest
from rich.console import Console

from simulator.catalog import load_model
from simulator.report.search_table import figure, pareto_text, print_outcome
from simulator.search import run_search
from simulator.search.candidates import Candidate, candidates
from simulator.search.command import serve_command, serve_note
from simulator.search.deploy import deploy
from simulator.search.outcome import PlanRecord
from simulator.search.rank import is_answer, pareto, ranked, speedup
from simulator.search.reasons import why_not
from simulator.spec import ParallelPlan, Slo
from tests.simulator.search_support import record, small_search

PER_USER, PER_GPU = "output_tokens_per_s_per_user", "output_tokens_per_s_per_gpu"
TP8 = ParallelPlan(tp=8)
ONE = ParallelPlan()


def point(per_user: float | None, per_gpu: float | None, number: int = 1) -> PlanRecord:
    return record(
        ParallelPlan(dp=number),
        output_tokens_per_s_per_user=per_user,
        output_tokens_per_s_per_gpu=per_gpu,
    )


def test_pareto_is_what_no_other_plan_beats_in_both() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = rng.integers(1, 8, (12, 2)).astype(float).tolist()
        records = [point(x, y, i + 1) for i, (x, y) in enumerate(values)]
        found = {(r.metrics[PER_USER], r.metrics[PER_GPU]) for r in pareto(records)}
        best = {
            (x, y)
            for x, y in map(tuple, values)
            if not any(a >= x and b >= y and (a, b) != (x, y) for a, b in values)
        }
        assert found == best


def test_pareto_leaves_out_plans_without_a_speed_and_runs_from_slow_users_to_fast() -> None:
    found = pareto([point(None, 5), point(30, 1), point(10, 4), point(20, 2)])
    assert [r.metrics[PER_USER] for r in found] == [10, 20, 30]


def test_plans_that_serve_everything_come_before_faster_ones_that_do_not() -> None:
    spec = small_search()
    full = record(ONE, mean_e2el_ms=900.0, failed=0)
    partial = record(TP8, mean_e2el_ms=100.0, failed=3)
    assert ranked(spec, [partial, full]) == [full, partial]
    assert "rejects 3 requests" in why_not(spec, partial, full)


def test_cheaper_plans_that_miss_the_slos_come_last() -> None:
    spec = small_search(objective="cost", slo=Slo(ttft_s=1.0))
    dear = record(TP8, usd_per_million_output_tokens=9.0, slo_attainment=1.0)
    cheap = record(
        ONE, usd_per_million_output_tokens=1.0, slo_attainment=0.7, slo_attainment_ttft=0.7
    )
    assert ranked(spec, [cheap, dear]) == [dear, cheap]
    assert why_not(spec, cheap, dear) == "SLO 70.0%: TTFT"
    assert is_answer(spec, dear)
    assert not is_answer(spec, cheap)
    assert speedup(spec, dear, cheap) is None


def test_undefined_objectives_come_last() -> None:
    spec = small_search(objective="tpot")
    known, unknown = record(TP8, mean_tpot_ms=20.0), record(ONE, mean_tpot_ms=None)
    assert ranked(spec, [unknown, known]) == [known, unknown]
    assert not is_answer(spec, unknown)


def test_ties_go_to_fewer_gpus_then_to_the_simpler_plan() -> None:
    spec = small_search(objective="tpot")
    plans = [ParallelPlan(tp=2, pp=2), ParallelPlan(tp=4), ONE]
    records = [record(plan, mean_tpot_ms=5.0) for plan in plans]
    records.append(record(ONE, "2048-tok", mean_tpot_ms=5.0))
    for order in itertools.permutations(records):
        labels = [r.label for r in ranked(spec, order)]
        assert labels == ["tp1", "tp1 2048-tok", "tp4", "tp2-pp2"]


def timed(plan: ParallelPlan, **seconds: float) -> PlanRecord:
    parts = {"queueing": 0.0, "prefill": 0.1, "decode": 1.0, "preempted": 0.0} | seconds
    return record(
        plan,
        completed=100,
        mean_e2el_ms=1000 * sum(parts.values()),
        mean_ttft_ms=1000 * (parts["queueing"] + parts["prefill"]),
        mean_tpot_ms=1000 * parts["decode"] / 100,
        preemptions=40 if parts["preempted"] else 0,
        preempted_requests=30 if parts["preempted"] else 0,
        **{f"mean_{name}_s": value for name, value in parts.items()},
    )


@pytest.mark.parametrize(
    ("loser", "reason"),
    [
        (timed(TP8), "a tie"),
        (timed(TP8, decode=1.005), "within 0.5% of the best"),
        (timed(ParallelPlan(tp=4), queueing=0.31, decode=1.2), "prefill queueing: TTFT 4.1x"),
        (timed(ParallelPlan(tp=4), prefill=0.2), "slower prefill: TTFT 2x"),
        (timed(ParallelPlan(tp=4), preempted=0.5), "KV memory full: 40 preemptions"),
        (
            timed(ParallelPlan(tp=4, pp=2), decode=1.8),
            "TPOT 1.8x: pipeline stages read weights in turn",
        ),
        (timed(ParallelPlan(tp=4), decode=1.8), "TPOT 1.8x: 4 GPUs read each layer, not 8"),
        (timed(ParallelPlan(tp=16), decode=1.8), "TPOT 1.8x: all-reduce over 16 GPUs across nodes"),
    ],
)
def test_losers_say_what_they_lose_on(loser: PlanRecord, reason: str) -> None:
    assert why_not(small_search(), loser, timed(TP8)) == reason


def the_plan(model: str, cluster: str, label: str, **changes: object) -> Candidate:
    spec = small_search(model, cluster, **changes)  # type: ignore[arg-type]
    (found,) = [c for c in candidates(spec) if c.label == label]
    return found


def test_the_command_states_the_plan_in_the_flags_of_vllm() -> None:
    plan = the_plan("deepseek-v3", "2x8xH200-SXM", "tp4-adp4-ep16")
    words = shlex.split(serve_command(plan, load_model("deepseek-v3")))
    assert words[:3] == ["vllm", "serve", "deepseek-ai/DeepSeek-V3"]
    flags = dict(itertools.pairwise(words[3:]))
    assert flags["--tensor-parallel-size"] == "4"
    assert flags["--data-parallel-size"] == "4"
    assert flags["--max-num-batched-tokens"] == "8192"
    assert flags["--max-num-seqs"] == "1024"
    assert flags["--gpu-memory-utilization"] == "0.92"
    assert "--enable-expert-parallel" in words
    assert "--pipeline-parallel-size" not in words
    assert "--quantization" not in words  # stored in fp8 already
    assert serve_note(plan) == "a replica spans 2 nodes"


def test_the_command_states_formats_and_settings_that_differ() -> None:
    plan = the_plan(
        "llama-3.1-8b",
        "4xH100-SXM",
        "tp2-dp2 fp8 kv-fp8 2048-tok",
        weight_formats=("fp8",),
        kv_formats=("fp8",),
        engine={"max_model_len": 4096, "prefix_caching": False},
    )
    words = shlex.split(serve_command(plan, load_model("llama-3.1-8b")))
    text = " ".join(words)
    assert "--quantization fp8" in text
    assert "--kv-cache-dtype fp8" in text
    assert "--max-model-len 4096" in text
    assert "--max-num-batched-tokens 2048" in text
    assert "--no-enable-prefix-caching" in text
    assert serve_note(plan) == "start 2 such servers, 2 GPUs each, behind a round_robin router"


def test_the_command_states_host_memory_in_gib() -> None:
    engine = {"kv_offload_bytes": 2.0**35}
    plan = the_plan("llama-3.1-8b", "4xH100-SXM", "tp2-dp2 2048-tok", engine=engine)
    text = serve_command(plan, load_model("llama-3.1-8b"))
    assert text.endswith(" --kv-offloading-size 32")
    note = "# simulated with 34.4 GB of host memory behind the prefix cache\n"
    assert note in deploy("sglang", plan, load_model("llama-3.1-8b"))


@pytest.mark.parametrize("width", [80, 100])
def test_the_printed_search_fits_the_console(width: int) -> None:
    outcome = run_search(small_search("llama-3.1-70b", slo=Slo(ttft_s=0.5)))
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_outcome(console, outcome)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    lines = [line for line in text.splitlines() if not line.startswith("vllm serve")]
    assert max(map(len, lines)) <= width
    assert outcome.command in text
    assert outcome.best is not None
    assert f"Best: {outcome.best.label}, mean E2E latency" in text
    assert "Heuristic" in text
    assert "infeasible: " in text
    assert "weights" in text


def test_a_search_without_an_answer_prints_why() -> None:
    outcome = run_search(small_search("llama-3.1-405b", "1xL4"))
    console = Console(file=io.StringIO(), width=80, color_system=None)
    print_outcome(console, outcome)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "No plan can serve this" in text
    assert "weights" in text
    assert pareto_text(outcome) == ""


def test_the_pareto_plot_marks_the_frontier() -> None:
    outcome = run_search(small_search(scheduler_variants=False))
    text = pareto_text(outcome)
    assert text.count("*") >= 1
    assert max(map(len, text.splitlines())) <= 80
    (axes,) = figure(outcome).axes
    assert axes.get_xlabel() == "output tokens/s a user sees"
