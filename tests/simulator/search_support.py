"""Small searches the search tests share: seconds of simulated time, a handful of plans."""

from __future__ import annotations

from typing import Any

from simulator.catalog import load_model, parse_cluster
from simulator.request import RequestTable
from simulator.search import SearchSpec
from simulator.search.candidates import Candidate
from simulator.search.outcome import SIMULATED, PlanRecord
from simulator.spec import ParallelPlan
from tests.simulator.toys import toy_table


def small_table(num_requests: int = 40, rate: float = 4.0, **columns: Any) -> RequestTable:
    return toy_table(3, num_requests, rate=rate, most_prompt=900, most_output=60, **columns)


def small_search(
    model: str = "llama-3.1-8b", cluster: str = "4xH100-SXM", **changes: Any
) -> SearchSpec:
    """A search in this process; keywords are fields of `SearchSpec`."""
    fields: dict[str, Any] = {"workload": small_table(), "jobs": 1} | changes
    return SearchSpec(model=load_model(model), cluster=parse_cluster(cluster), **fields)


def record(plan: ParallelPlan, variant: str = "", **metrics: Any) -> PlanRecord:
    """A simulated plan with made-up metrics."""
    candidate = Candidate(
        plan=plan,
        cluster=parse_cluster("8xH100-SXM"),
        model=load_model("llama-3.1-8b"),
        variant=variant,
    )
    return PlanRecord(candidate=candidate, status=SIMULATED, metrics={"completed": 1} | metrics)
