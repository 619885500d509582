"""What to search: the question, as frozen data. Its fields are the YAML keys of a search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from simulator.allocators import AllocatorPolicy
from simulator.errors import ConfigError, unknown_name
from simulator.request import RequestTable
from simulator.routers import LeastLoaded, RoundRobin, Router
from simulator.schedulers import Scheduler, VllmV1
from simulator.search.objective import (
    GOODPUT,
    GPUS,
    LATENCY_OBJECTIVES,
    OBJECTIVES,
    STATISTICS,
)
from simulator.spec import ClusterSpec, EngineSettings, ModelSpec, Slo

DEGREES = ("tp", "pp", "dp", "ep", "attention_dp")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpec:
    """Which plan serves this workload best on this cluster.

    An empty list of degrees means every degree that divides the cluster. With
    `scheduler_variants`, each plan is tried with the engine's default token budget and one other
    (2,048, or 8,192 where 2,048 is the default), and plans with several attention ranks behind
    round robin and behind vLLM's own balancer. Such variants are left out where their plan with
    defaults is `variants_within` times worse than the best: settings hardly make up for more.
    """

    model: ModelSpec
    cluster: ClusterSpec
    workload: RequestTable
    slo: Slo = field(default_factory=Slo)
    objective: str = "e2e"
    objective_statistic: str = "mean"  # of a latency objective
    tp: tuple[int, ...] = ()
    pp: tuple[int, ...] = ()
    dp: tuple[int, ...] = ()
    ep: tuple[int, ...] = ()
    attention_dp: tuple[int, ...] = ()
    weight_formats: tuple[str, ...] = ()  # () = as the model is stored
    kv_formats: tuple[str, ...] = ()
    max_num_batched_tokens: tuple[int, ...] = ()  # () = see scheduler_variants
    max_num_seqs: tuple[int, ...] = ()  # () = the engine's default
    scheduler_variants: bool = True
    routers: tuple[Router, ...] = ()  # () = see scheduler_variants
    scheduler: Scheduler = field(default_factory=VllmV1)
    allocator: AllocatorPolicy | None = None
    engine: Mapping[str, Any] = field(default_factory=dict)  # further EngineSettings of every plan
    use_all_gpus: bool | None = None  # None = for latency and goodput, unless dp is stated
    prune: bool | None = None  # None = of latency objectives, only variants of plans: see prunes
    variants_within: float = 1.5  # of latency, vary plans at most this factor from the best
    seed: int = 0
    jobs: int = 0  # processes; 0 = all cores
    horizon_s: float = float("inf")  # simulated time after which a run is cut

    def __post_init__(self) -> None:
        for name in (*DEGREES, "max_num_batched_tokens", "max_num_seqs"):
            bad = [value for value in getattr(self, name) if value < 1]
            if bad:
                raise ConfigError(f"search.{name}: expected ints >= 1 (got {bad[0]})")
        settings = {part.name for part in fields(EngineSettings)}
        for name in self.engine:
            if name not in settings:
                raise unknown_name("engine setting", name, settings)
        if not self.variants_within >= 1:
            raise ConfigError(
                f"search.variants_within: expected a number >= 1 (got {self.variants_within})"
            )
        if self.jobs < 0:
            raise ConfigError(f"search.jobs: expected an int >= 0 (got {self.jobs})")
        self._check_objective()

    def _check_objective(self) -> None:
        if self.objective not in OBJECTIVES:
            raise unknown_name("objective", self.objective, OBJECTIVES)
        if self.objective_statistic not in STATISTICS:
            raise unknown_name("statistic", self.objective_statistic, STATISTICS)
        if self.objective in (GOODPUT, GPUS) and not self.slo.is_set:
            raise ConfigError(f"search.objective: '{self.objective}' needs an slo to hold")
        if self.objective == GOODPUT and not self._has_rate:
            raise ConfigError(
                "search.objective: 'goodput' scales arrival times, so the workload needs at least "
                "two arrival times and no closed loop"
            )

    @property
    def _has_rate(self) -> bool:
        return self.workload.is_open_loop and self.workload.duration_s > 0

    @property
    def fills_cluster(self) -> bool:
        """Whether a plan must use every GPU of the groups it runs on."""
        if self.use_all_gpus is not None:
            return self.use_all_gpus
        return self.objective in (*LATENCY_OBJECTIVES, GOODPUT) and not self.dp

    def prunes(self, is_variant: bool) -> bool:
        """Whether a plan that cannot win may go unsimulated.

        Of latency objectives every plan is simulated with default settings, so that the table
        compares them all; only further settings and routers are pruned.
        """
        if self.prune is None:
            return is_variant or self.objective not in LATENCY_OBJECTIVES
        return self.prune

    @property
    def candidate_routers(self) -> tuple[Router, ...]:
        if self.routers:
            return self.routers
        return (RoundRobin(), LeastLoaded()) if self.scheduler_variants else (RoundRobin(),)

    @property
    def offered_rate_per_s(self) -> float:
        """Mean arrival rate of the workload as given."""
        return (len(self.workload) - 1) / self.workload.duration_s
