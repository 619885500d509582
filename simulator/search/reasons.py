"""Why a plan is not the best one, in one short line, from its metrics and the winner's."""

from __future__ import annotations

from typing import Any

from simulator.search.objective import GOODPUT, OBJECTIVES, holds_slo, value_of
from simulator.search.outcome import PlanRecord
from simulator.search.spec import SearchSpec

TIE = 1.01  # closer than this is a tie


def why_not(spec: SearchSpec, record: PlanRecord, best: PlanRecord) -> str:
    """The reason, most serious first; `best` is the top of the ranking."""
    metrics = record.metrics
    unserved = int(metrics.get("failed") or 0)
    if unserved:
        return f"rejects {unserved:,} requests: longer than its KV memory or context"
    if metrics.get("unfinished"):
        return f"{int(metrics['unfinished']):,} requests unfinished at the horizon"
    goal = OBJECTIVES[spec.objective]
    if goal.under_slo and not holds_slo(metrics, spec.slo):
        return f"SLO {_share(metrics)}: {_missed_target(metrics)}"
    ratio = _ratio(spec, record, best)
    if ratio is not None and ratio < TIE:
        return "a tie" if ratio <= 1.0005 else f"within {ratio - 1:.1%} of the best"
    if spec.objective == GOODPUT:
        return _rate_reason(record, best)
    if goal.under_slo:
        return f"{record.candidate.plan.num_gpus} GPUs, {_busy(metrics)} busy"
    return _latency_reason(record, best)


def _ratio(spec: SearchSpec, record: PlanRecord, best: PlanRecord) -> float | None:
    """How many times worse than the best; above 1 = worse."""
    mine, other = (
        value_of(r.metrics, spec.objective, spec.objective_statistic) for r in (record, best)
    )
    if OBJECTIVES[spec.objective].larger_is_better:
        mine, other = other, mine
    return mine / other if other > 0 else None


def _latency_reason(record: PlanRecord, best: PlanRecord) -> str:
    """Name the part of E2E that the plan loses most on, and its likely cause."""
    mine, other = record.metrics, best.metrics
    if _preempted_share(mine) > 0.02 and _preempted_share(mine) > 2 * _preempted_share(other):
        return f"KV memory full: {int(mine['preemptions']):,} preemptions"
    parts = {
        name: _number(mine, f"mean_{name}_s") - _number(other, f"mean_{name}_s")
        for name in ("queueing", "prefill", "decode", "preempted")
    }
    worst = max(parts, key=lambda name: parts[name])
    if worst == "decode":
        return f"TPOT {_times(mine, other, 'mean_tpot_ms')}: {_decode_cause(record, best)}"
    ttft = f"TTFT {_times(mine, other, 'mean_ttft_ms')}"
    if worst == "queueing":
        return f"prefill queueing: {ttft}"
    if worst == "preempted":
        return f"KV memory full: {int(mine['preemptions']):,} preemptions"
    return f"slower prefill: {ttft}"


def _decode_cause(record: PlanRecord, best: PlanRecord) -> str:
    """What differs from the winner that makes an iteration longer."""
    mine, other = record.candidate, best.candidate
    if mine.plan.pp > other.plan.pp:
        return "pipeline stages read weights in turn"
    if mine.plan.gpus_per_stage < other.plan.gpus_per_stage:
        return f"{mine.plan.gpus_per_stage} GPUs read each layer, not {other.plan.gpus_per_stage}"
    if mine.plan.tp > other.plan.tp:
        node = max(group.gpus_per_node for group in mine.cluster.groups)
        where = " across nodes" if mine.plan.gpus_per_stage > node else ""
        return f"all-reduce over {mine.plan.tp} GPUs{where}"
    if mine.plan.attention_dp > other.plan.attention_dp:
        return "all-to-all of experts"
    if mine.plan.ep != other.plan.ep:
        return "uneven load of experts" if mine.plan.ep > 1 else "experts in thin slices"
    if mine.plan.dp < other.plan.dp:
        return "fewer replicas, larger batches"
    budget, best_budget = (
        plan.settings.max_num_batched_tokens if plan.settings else 0 for plan in (mine, other)
    )
    if budget != best_budget:
        return f"prompts in chunks of {budget:,} tokens, not {best_budget:,}"
    return "uneven load" if mine.router_name != other.router_name else "longer iterations"


def _rate_reason(record: PlanRecord, best: PlanRecord) -> str:
    """Where the attainment goes first as the rate rises."""
    rate = _number(record.metrics, "goodput_rate_per_s")
    if rate == 0:
        return f"misses {_missed_target(record.metrics)} at any rate"
    if _preempted_share(record.metrics) > 0.02:
        return f"holds {rate:.3g}/s, KV memory full there"
    return f"holds {rate:.3g}/s, then {_missed_target(record.metrics)}"


def _missed_target(metrics: Any) -> str:
    """The SLO target with the least attainment."""
    shares = {
        name.upper(): metrics.get(f"slo_attainment_{name}") for name in ("ttft", "tpot", "e2e")
    }
    known = {name: share for name, share in shares.items() if share is not None}
    return min(known, key=lambda name: known[name]) if known else "SLO"


def _share(metrics: Any) -> str:
    return f"{float(metrics.get('slo_attainment') or 0.0):.1%}"


def _busy(metrics: Any) -> str:
    return f"{float(metrics.get('busy_share') or 0.0):.0%}"


def _preempted_share(metrics: Any) -> float:
    return _number(metrics, "preempted_requests") / max(1.0, _number(metrics, "completed"))


def _times(mine: Any, other: Any, key: str) -> str:
    divisor = _number(other, key)
    if divisor <= 0:
        return "longer"
    ratio = _number(mine, key) / divisor
    return f"{ratio:.2f}x" if ratio < 1.095 else f"{ratio:.2g}x"


def _number(metrics: Any, key: str) -> float:
    return float(metrics.get(key) or 0.0)
