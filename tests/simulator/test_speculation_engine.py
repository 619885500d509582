"""Speculation in the engine: closed forms, memory, prices, metrics, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from simulator.catalog import load_model, parse_cluster
from simulator.cli import app
from simulator.costs.compiled import TICK_BITS, to_ticks
from simulator.costs.roofline import compile_cost
from simulator.defaults import default_settings
from simulator.drafting import DraftPrices, speculation_kind
from simulator.engine import prepare, run, simulate
from simulator.errors import ConfigError, InfeasiblePlan
from simulator.experiment import Experiment
from simulator.memory import draft_kv_bytes, draft_weight_bytes, kv_capacity
from simulator.metrics import summarise
from simulator.ragged import RaggedSet
from simulator.request import RequestTable, Sequence
from simulator.spec import ParallelPlan
from simulator.speculation import (
    Confidence,
    Drafter,
    DraftModel,
    Eagle,
    Geometric,
    Kangaroo,
    NGram,
    NoSpeculation,
    SmartSpec,
    Speculation,
)
from simulator.speculation.lengths import expected_tokens
from tests.simulator.speculating import FREE, toy_draft, with_speculation
from tests.simulator.toys import toy_setup, toy_table
from tests.simulator.watch import flat_cost

CLUSTER = parse_cluster("1xH100-SXM")
GROUP = CLUSTER.groups[0]


def one_request(output_tokens: int) -> RequestTable:
    return RequestTable(
        arrival_ns=np.zeros(1, dtype=np.int64),
        prompt_tokens=np.array([10]),
        output_tokens=np.array([output_tokens]),
    )


def experiment(table: RequestTable, policy: Speculation | None, **changes: Any) -> Experiment:
    plain = Experiment(
        model=load_model("llama-3.1-8b"),
        cluster=CLUSTER,
        plan=ParallelPlan(),
        settings=default_settings(GROUP.gpu, max_num_seqs=64),
        workload=table,
        speculation=policy,
    )
    return replace(plain, **changes)


# --- closed forms -------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "iterations"), [(0.0, 1 + 100), (1.0, 1 + 20)])
def test_sure_drafts_give_k_plus_1_tokens_and_lost_ones_give_one(
    rate: float, iterations: int
) -> None:
    policy = Speculation(drafter=Eagle(), acceptance=Geometric(rate=rate))
    setup = toy_setup(one_request(101), cost=flat_cost(1_000_000))
    result = run(with_speculation(setup, policy))
    assert result.finish_ns[0] == iterations * 1_000_000
    assert result.lanes[0].segments["sampled"].sum() == 101


def test_an_iteration_costs_its_drafts_and_its_verification() -> None:
    """Three steps of one token, the verification of four: 1 ms flat, and the steps' prices."""
    policy = Speculation(drafter=Eagle(), num_speculative_tokens=3, acceptance=Geometric(rate=1.0))
    draft = toy_draft()
    setup = with_speculation(toy_setup(one_request(5), cost=flat_cost(1_000_000)), policy, draft)
    result = run(setup)
    prompt_ns, token_ns = result.first_token_ns[0], result.finish_ns[0]
    assert draft.attention is not None
    # The prompt passes the drafter too: 10 tokens, 55 query-key pairs.
    prompt = draft.linear[10] + draft.prompts(10, 55, 0)
    assert prompt_ns == ((1_000_000 << TICK_BITS) + prompt) >> TICK_BITS
    context = 11
    steps = draft.host[1] + sum(
        draft.linear[1]
        + draft.logits[1]
        + draft.attention.decode_base[1]
        + draft.attention.decode_per_token[1] * (context + step)
        for step in range(3)
    )
    assert token_ns == prompt_ns + (((1_000_000 << TICK_BITS) + steps) >> TICK_BITS)
    assert result.lanes[0].speculation is not None
    assert result.lanes[0].speculation["draft_ns"][1] == steps >> TICK_BITS


def test_the_mean_draft_in_the_engine_is_the_closed_form() -> None:
    policy = Speculation(drafter=Eagle(), num_speculative_tokens=5, acceptance=Geometric(rate=0.7))
    result = run(with_speculation(toy_setup(toy_table(0, 400, rate=50), num_pages=4000), policy))
    counts = result.lanes[0].accepted_at
    assert counts is not None
    mean = 1 + float((counts * np.arange(6)).sum()) / float(counts.sum())
    assert mean == pytest.approx(expected_tokens(0.7, 5), rel=0.02)


def test_the_same_request_meets_the_same_luck_whatever_the_load() -> None:
    """Common random numbers: deliveries of each request are alike at two arrival rates."""
    policy = Speculation(drafter=Eagle())
    deliveries = []
    for rate in (5.0, 200.0):
        table = replace(toy_table(0, 60), arrival_ns=(np.arange(60) * 1e9 / rate).astype(np.int64))
        result = run(with_speculation(toy_setup(table), policy))
        spans = result.spans
        length = spans["span_last"] - spans["span_first"] + 1
        deliveries.append(np.bincount(spans["span_request"], weights=length).tolist())
    assert deliveries[0] == deliveries[1]


def test_requests_near_the_end_of_memory_finish_without_drafts() -> None:
    """A request that fills the pool to the last token leaves no page for a draft."""
    setup = toy_setup(one_request(16 * 4 - 10 + 1), num_pages=4, cost=flat_cost(1_000_000))
    policy = Speculation(drafter=Eagle(), acceptance=Geometric(rate=0.5))
    result = run(with_speculation(setup, policy))
    assert result.completed.all()
    assert result.lanes[0].speculation is not None
    drafts = result.lanes[0].speculation["draft_tokens"]
    assert drafts[1] == 4
    assert drafts[-1] == 0


# --- the array sibling --------------------------------------------------------------------------


def test_outcomes_move_with_their_sequence() -> None:
    ragged = RaggedSet(toy_setup(one_request(1)).kinds[0].layout, (), has_limits=True)
    seqs = []
    for i in range(40):
        seq = Sequence(i, 10 + i, 200 + i)
        seq.generated_tokens = 1
        runs = np.full(200 + i, i, dtype=np.int8)
        ragged.add(seq, runs, runs)
        seqs.append(seq)
    for i in (3, 39, 0, 17):
        context, pages = ragged.remove(seqs[i])
        assert (context, pages) == (11 + i, -(-(10 + i) // 16))
    left = [seq.id for seq in ragged.seqs]
    assert sorted(left) == [i for i in range(40) if i not in (3, 39, 0, 17)]
    assert ragged.runs.take(ragged.state[1, :36]).tolist() == left
    assert ragged.limits is not None
    assert ragged.limits.take(ragged.state[1, :36] + 150).tolist() == left
    assert ragged.kv_tokens == sum(11 + i for i in left)


# --- memory and prices --------------------------------------------------------------------------


def test_a_drafter_takes_its_weights_and_its_kv() -> None:
    model, plan = load_model("llama-3.1-8b"), ParallelPlan()
    settings = default_settings(GROUP.gpu)
    plain = kv_capacity(model, plan, GROUP.gpu, settings)
    spec = DraftModel(model="llama-3.2-1b").draft(model)
    weights, kv = draft_weight_bytes(spec, plan), draft_kv_bytes(spec, plan)
    # Parameters of the checkpoint, tied embeddings once, but for the final norm.
    assert weights == (1_235_814_400 - 2048) * 2
    assert kv == 16 * 2 * 8 * 64 * 2
    drafted = kv_capacity(model, plan, GROUP.gpu, settings, draft=spec)
    assert drafted.kv_bytes == plain.kv_bytes - weights
    assert drafted.num_blocks == int((plain.kv_bytes - weights) // (plain.block_bytes + 16 * kv))


def test_heads_share_the_targets_vocabulary_and_layers() -> None:
    model, plan = load_model("llama-3.1-8b"), ParallelPlan()
    layer = 2 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096)
    eagle = Eagle().draft(model)
    assert draft_weight_bytes(eagle, plan) == layer + 2 * 8192 * 4096
    assert draft_kv_bytes(eagle, plan) == 2 * 8 * 128 * 2
    seven = load_model("llama-2-7b")
    kangaroo = Kangaroo().draft(seven)
    assert draft_weight_bytes(kangaroo, plan) == 2 * 4 * 4096**2
    assert draft_kv_bytes(kangaroo, plan) == 2 * 32 * 128 * 2
    assert draft_weight_bytes(NGram().draft(model), plan) == 0


def test_a_draft_model_that_tp_does_not_divide_runs_whole_on_each_gpu() -> None:
    model = load_model("llama-2-70b")
    spec = DraftModel(model="llama-160m").draft(model)
    alone = draft_weight_bytes(spec, ParallelPlan())
    assert draft_weight_bytes(spec, ParallelPlan(tp=8)) == alone
    assert draft_weight_bytes(spec, ParallelPlan(tp=4)) < alone / 3
    asked = DraftModel(model="llama-160m", tensor_parallel=2).draft(model)
    with pytest.raises(InfeasiblePlan, match=r"tensor_parallel 2 is neither 1 nor .* tp=4"):
        draft_weight_bytes(asked, ParallelPlan(tp=4))


def prices_of(drafter: Drafter, tokens: int = 4, num_seqs: int = 8) -> DraftPrices:
    acceptance: Any = Confidence() if drafter.needs_acceptance else Geometric()
    policy = Speculation(drafter=drafter, num_speculative_tokens=tokens, acceptance=acceptance)
    subject = experiment(one_request(1), policy)
    cost, _, kind = speculation_kind(subject, GROUP)
    ragged = RaggedSet(toy_setup(one_request(1)).kinds[0].layout, (), has_limits=False)
    for i in range(num_seqs):
        seq = Sequence(i, 511, 9)
        ragged.add(seq, np.zeros(9, dtype=np.int8), None)
    return DraftPrices(kind, cost, ragged)


def test_verifying_nothing_costs_a_plain_iteration() -> None:
    subject = experiment(one_request(1), None)
    plain = compile_cost(subject.model, subject.plan, GROUP, subject.settings)
    stage, attention = plain.stages[0], plain.stages[0].attention[0]
    expected = stage.linear[8] + plain.host[8] + plain.logits[8]
    expected += attention.decode_base[8] + attention.decode_per_token[8] * 8 * 512
    assert prices_of(NGram()).iteration(0, 8) == expected


def test_prices_rise_with_the_length_and_drafts_cost_what_they_run() -> None:
    for drafter in (Eagle(), NGram(), DraftModel(model="llama-3.2-1b"), Kangaroo()):
        prices = [prices_of(drafter).iteration(k, 8) for k in range(5)]
        assert prices == sorted(prices)
        assert prices[1] > prices[0]
    one, small = (
        [prices_of(DraftModel(model=name)).iteration(k, 8) for k in (3, 4)]
        for name in ("llama-3.2-1b", "llama-160m")
    )
    assert one[1] - one[0] > small[1] - small[0]


def test_an_eagle_step_reads_its_layer_and_the_targets_head() -> None:
    """At the peak bandwidth that takes 0.46 ms (SmartSpec's authors fit 0.45 ms on an H100)."""
    with_head, without = prices_of(Eagle(), num_seqs=1), prices_of(NGram(host_s=0.0), num_seqs=1)
    spent = [with_head.iteration(k, 1) - without.iteration(k, 1) for k in (3, 4)]
    step_s = (spent[1] - spent[0]) / to_ticks(1.0)
    model = load_model("llama-3.1-8b")
    moved = draft_weight_bytes(Eagle().draft(model), ParallelPlan()) + 2 * 128256 * 4096
    least_s = moved / GROUP.gpu.memory_bytes_per_s
    assert least_s == pytest.approx(0.46e-3, rel=0.02)
    assert least_s < step_s < 1.5 * least_s


def test_verification_reads_a_context_once_until_arithmetic_takes_longer() -> None:
    prices = prices_of(NGram(host_s=0.0), tokens=64)
    subject = experiment(one_request(1), Speculation(drafter=NGram(), num_speculative_tokens=64))
    cost, _, kind = speculation_kind(subject, GROUP)
    attention, stage = cost.stages[0].attention[0], cost.stages[0]
    kv = 8 * 512
    read = attention.decode_base[8] + attention.decode_per_token[8] * (kv + 8 * 4)
    assert prices.verification(stage, 4, 8 * 4) == read
    computed = attention.decode_base[8] + kind.pair_ticks[0] * kv * 65
    assert prices.verification(stage, 64, 0) == max(
        computed, attention.decode_base[8] + attention.decode_per_token[8] * kv
    )


# --- runs and metrics ---------------------------------------------------------------------------


def test_speculation_helps_a_light_load_and_its_summary_adds_up() -> None:
    table = toy_table(0, 60, rate=4)
    plain = experiment(table, None)
    policy = Speculation(drafter=Eagle(), acceptance=Geometric(rate=0.8))
    drafted = experiment(table, policy)
    results = [simulate(each) for each in (plain, drafted)]
    before, after = (summarise(e, r) for e, r in zip((plain, drafted), results, strict=True))
    assert after["mean_tpot_ms"] < 0.6 * before["mean_tpot_ms"]  # type: ignore[operator]
    assert "spec_decode_num_drafts" not in before
    drafts, tokens, accepted = (
        after[f"spec_decode_{name}"] for name in ("num_drafts", "draft_tokens", "accepted_tokens")
    )
    assert tokens == 4 * drafts  # type: ignore[operator]
    assert after["spec_decode_acceptance_rate"] == 100 * accepted / tokens  # type: ignore[operator]
    assert after["spec_decode_acceptance_length"] == 1 + accepted / drafts  # type: ignore[operator]
    rates = after["spec_decode_per_position_acceptance_rates"]
    assert sum(rates) * drafts == pytest.approx(accepted)  # type: ignore[arg-type, operator]
    shares = after["draft_time_share"] + after["verify_time_share"]  # type: ignore[operator]
    assert 0.5 < shares <= 1.0
    assert after["mean_speculative_tokens"] == 4.0
    assert after["total_output_tokens"] == int(table.output_tokens.sum())


def test_smartspec_drafts_less_the_more_requests_run() -> None:
    means = []
    for rate in (4, 400):
        policy = Speculation(
            drafter=Eagle(),
            num_speculative_tokens=7,
            acceptance=Geometric(rate=0.6),
            length=SmartSpec(),
        )
        subject = experiment(
            toy_table(0, 300, rate=rate),
            policy,
            settings=default_settings(GROUP.gpu, max_num_seqs=256),
        )
        summary = summarise(subject, simulate(subject))
        means.append(summary["mean_speculative_tokens"])
    assert means[0] > means[1] + 0.3  # type: ignore[operator]


def test_replicas_and_tensor_parallelism_speculate() -> None:
    subject = experiment(
        toy_table(0, 80),
        Speculation(drafter=DraftModel(model="llama-160m")),
        cluster=parse_cluster("4xH100-SXM"),
        plan=ParallelPlan(tp=2, dp=2),
    )
    result = simulate(subject)
    assert result.completed.all()
    assert {lane.replica for lane in result.lanes} == {0, 1}
    assert all(lane.accepted_at is not None and lane.accepted_at.sum() for lane in result.lanes)


# --- refusals -----------------------------------------------------------------------------------


def test_what_does_not_compose_is_named() -> None:
    policy = Speculation(drafter=Eagle())
    pipeline = experiment(
        one_request(1), policy, cluster=parse_cluster("2xH100-SXM"), plan=ParallelPlan(pp=2)
    )
    with pytest.raises(InfeasiblePlan, match=r"speculation with the eagle drafter .* pp=2"):
        prepare(pipeline)
    from simulator.allocators import ALLOCATORS

    buddy = experiment(one_request(1), policy, allocator=ALLOCATORS["buddy"]())
    with pytest.raises(ConfigError, match=r"speculation with the eagle .* allocator"):
        prepare(buddy)
    from simulator.schedulers import SCHEDULERS

    static = experiment(one_request(1), policy, scheduler=SCHEDULERS["static"]())
    with pytest.raises(ConfigError, match=r"speculation with the eagle .* scheduler Static"):
        prepare(static)
    switching = experiment(one_request(1), policy, scheduler=SCHEDULERS["fastswitch"]())
    with pytest.raises(ConfigError, match=r"speculation with the eagle .* FastSwitch"):
        prepare(switching)


BASE = ["simulate", "--model", "llama-3.1-8b", "--cluster", "1xH100-SXM", "--trace", "chat-1k",
        "--max-requests", "20"]  # fmt: skip


def test_flags_make_a_run_that_speculates() -> None:
    flags = ["--speculation", "ngram", "--num-speculative-tokens", "3", "--acceptance", "0.9"]
    done = CliRunner().invoke(app, [*BASE, *flags, "--draft-length", "smartspec", "--json"])
    assert done.exit_code == 0, done.output
    summary = json.loads(done.stdout)
    assert summary["spec_decode_acceptance_rate"] == pytest.approx(
        90 * (1 + 0.9 + 0.81) / 3, rel=0.1
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--speculation", "eagl"], "did you mean 'eagle'?"),
        (["--speculation", "draft_model"], "speculation.drafter.model: this key is required"),
        (["--acceptance", "0.5"], "speculation.drafter.kind: expected one of draft_model"),
        (["--speculation", "eagle", "--acceptance", "1.5"], "--acceptance: expected a number 0 to"),
        (["--speculation", "eagle", "--num-speculative-tokens", "0"], "expected an int >= 1"),
        (["--speculation", "kangaroo"], "needs acceptance kind confidence (got geometric)"),
        (["--speculation", "eagle", "--set", "speculation.depth=3"], "unknown key 'depth'"),
        (["--speculation", "draft_model", "--draft-model", "gpt-9"], "unknown model 'gpt-9'"),
    ],
)
def test_bad_input_is_one_clear_line(flags: list[str], message: str) -> None:
    done = CliRunner().invoke(app, [*BASE, *flags])
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_search_refuses_speculation(tmp_path: Path) -> None:
    file = tmp_path / "search.yaml"
    file.write_text(
        "model: llama-3.1-8b\ncluster: 1xH100-SXM\nworkload: chat-1k\n"
        "speculation: {drafter: eagle}\n"
    )
    done = CliRunner().invoke(app, ["search", str(file)])
    assert done.exit_code == 2
    assert "speculation: a search compares plans without speculation" in done.stderr


def test_an_unspeculating_lane_has_no_speculation_columns() -> None:
    result = run(toy_setup(toy_table(0, 5)))
    assert [lane.speculation for lane in result.lanes] == [None]
    never = Speculation(drafter=Eagle(), length=NoSpeculation())
    drafted = run(with_speculation(toy_setup(toy_table(0, 5)), never, FREE))
    assert drafted.lanes[0].speculation is not None
    assert drafted.lanes[0].speculation["drafts"].sum() == 0
