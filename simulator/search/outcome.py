"""What a search found, as data: every plan considered, ranked, and what follows from that."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from simulator.search.candidates import Candidate, group_name
from simulator.search.command import serve_note
from simulator.search.objective import Metrics
from simulator.spec import Slo

SIMULATED, INFEASIBLE, PRUNED = "simulated", "infeasible", "pruned"
CRASHED, BUG, NOT_RUN = "crashed", "bug", "not run"

# Metrics repeated at the top of a plan's JSON, next to its rank.
HEADLINES = (
    *(
        f"{s}_{what}_ms"
        for what in ("ttft", "tpot", "itl", "e2el")
        for s in ("mean", "median", "p99")
    ),
    *("request_throughput", "output_throughput", "total_token_throughput", "request_goodput"),
    *("slo_attainment", "completed", "failed", "preemptions"),
    *("usd_per_million_output_tokens", "energy_j_per_output_token"),
)


@dataclass(slots=True, kw_only=True)
class PlanRecord:
    """One plan of the search, from its enumeration to its place in the ranking."""

    candidate: Candidate
    status: str
    reason: str = ""  # why it was not simulated, or how it failed
    metrics: Metrics = field(default_factory=dict)
    bound: float | None = None  # on the objective, where one was computed
    rank: int | None = None  # 1 = best; None where not simulated
    why: str = ""  # why it is not the best
    command: str = ""

    @property
    def label(self) -> str:
        return self.candidate.label

    def to_json(self) -> dict[str, Any]:
        candidate = self.candidate
        return {
            "rank": self.rank,
            "label": self.label,
            "plan": describe_plan(candidate),
            "feasible": self.status != INFEASIBLE,
            "status": self.status,
            "reason": self.reason,
            "why": self.why,
            "note": candidate.note,
            "bound": self.bound if self.bound is not None and math.isfinite(self.bound) else None,
            "command": self.command,
            **{key: self.metrics[key] for key in HEADLINES if key in self.metrics},
            "metrics": dict(self.metrics),
        }


def describe_plan(candidate: Candidate) -> dict[str, Any]:
    """The plan and its settings, flat."""
    plan, settings = candidate.plan, candidate.settings
    described: dict[str, Any] = {
        "tp": plan.tp,
        "pp": plan.pp,
        "dp": plan.dp,
        "ep": plan.ep,
        "attention_dp": plan.attention_dp,
        "num_gpus": plan.num_gpus,
        "groups": [group_name(group) for group in candidate.cluster.groups],
        "weight_format": candidate.model.weight_format,
        "kv_format": candidate.model.kv_format,
        "router": candidate.router_name,
    }
    if settings is not None:
        described |= {
            "max_num_batched_tokens": settings.max_num_batched_tokens,
            "max_num_seqs": settings.max_num_seqs,
            "gpu_memory_utilization": settings.gpu_memory_utilization,
        }
    return described


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOutcome:
    """A finished (or interrupted) search."""

    model: str
    cluster: str
    workload: str
    num_requests: int
    objective: str
    objective_statistic: str
    metric: str  # key of the objective in a plan's metrics
    slo: Slo
    records: tuple[PlanRecord, ...]  # best first, then those without a rank
    best: PlanRecord | None
    heuristic: PlanRecord | None
    speedup_over_heuristic: float | None  # how many times better; above 1 = the search pays
    pareto: tuple[PlanRecord, ...]  # slowest user first
    interrupted: bool = False
    num_simulations: int = 0
    num_from_store: int = 0
    wall_s: float = 0.0

    def count(self, *statuses: str) -> int:
        return sum(record.status in statuses for record in self.records)

    @property
    def bugs(self) -> list[PlanRecord]:
        """Plans that broke an invariant of the simulator: never expected, never to be hidden."""
        return [record for record in self.records if record.status == BUG]

    @property
    def command(self) -> str:
        """`vllm serve` line of the best plan."""
        return self.best.command if self.best else ""

    @property
    def command_note(self) -> str:
        """What the command leaves open: replicas, nodes, router."""
        return serve_note(self.best.candidate) if self.best else ""

    def to_json(self) -> dict[str, Any]:
        """JSON-safe: no NaN, no infinity. Only `wall_s` differs between equal searches."""
        return {
            "model": self.model,
            "cluster": self.cluster,
            "workload": self.workload,
            "num_requests": self.num_requests,
            "objective": self.objective,
            "objective_statistic": self.objective_statistic,
            "metric": self.metric,
            "counts": self.counts(),
            "best": self.best.to_json() if self.best else None,
            "heuristic": self.heuristic.to_json() if self.heuristic else None,
            "speedup_over_heuristic": self.speedup_over_heuristic,
            "pareto": [_pareto_point(record) for record in self.pareto],
            "command": self.command,
            "command_note": self.command_note,
            "interrupted": self.interrupted,
            "plans": [record.to_json() for record in self.records],
            "wall_s": self.wall_s,
        }

    def counts(self) -> dict[str, int]:
        return {
            "considered": len(self.records),
            "feasible": len(self.records) - self.count(INFEASIBLE),
            "simulated": self.count(SIMULATED),
            "infeasible": self.count(INFEASIBLE),
            "pruned": self.count(PRUNED),
            "crashed": self.count(CRASHED, BUG),
            "not_run": self.count(NOT_RUN),
        }


def _pareto_point(record: PlanRecord) -> dict[str, Any]:
    return {
        "label": record.label,
        "rank": record.rank,
        "output_tokens_per_s_per_user": record.metrics["output_tokens_per_s_per_user"],
        "output_tokens_per_s_per_gpu": record.metrics["output_tokens_per_s_per_gpu"],
    }
