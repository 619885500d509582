"""One experiment, fully resolved: everything `engine.simulate` needs and nothing about files."""

from __future__ import annotations

from dataclasses import dataclass, field

from simulator.allocators import AllocatorPolicy
from simulator.request import RequestTable
from simulator.routers import RoundRobin, Router
from simulator.schedulers import Scheduler, VllmV1
from simulator.spec import ClusterSpec, EngineSettings, ModelSpec, ParallelPlan, Slo
from simulator.speculation import Speculation


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A model on a cluster under a plan, serving a workload."""

    model: ModelSpec
    cluster: ClusterSpec
    plan: ParallelPlan
    settings: EngineSettings
    workload: RequestTable
    scheduler: Scheduler = field(default_factory=VllmV1)
    router: Router = field(default_factory=RoundRobin)
    speculation: Speculation | None = None
    allocator: AllocatorPolicy | None = None  # None = paged, with a prefix cache if that can help
    slo: Slo = field(default_factory=Slo)
    name: str = "experiment"
    seed: int = 0
    horizon_s: float = float("inf")  # simulated time after which the run is cut
    coalesce: bool = True  # False = one iteration at a time, the reference path
