"""Policies that make no sense together, and why."""

from __future__ import annotations

from simulator.allocators import Paged, PrefixCaching, VAttention
from simulator.errors import ConfigError, InfeasiblePlan
from simulator.experiment import Experiment
from simulator.lane import Lane
from simulator.lanes import lane_maker
from simulator.routers.llumnix import Llumnix
from simulator.setup import Setup, group_space, policy_of, pool_of


def refuse_clash(setup: Setup) -> None:
    """Policies that make no sense together.

    Raises:
        ConfigError: both are named, with what would go instead.
        InfeasiblePlan: the scheduler cannot run on such a plan.
    """
    clash = getattr(setup.scheduler, "clash", None)
    policy = policy_of(setup)
    reason = "" if clash is None else clash(policy)
    if reason:
        names = (type(setup.scheduler).__name__, type(policy).__name__)
        raise ConfigError(f"scheduler {names[0]} and allocator {names[1]} clash: {reason}")
    clash = getattr(setup.router, "clash", None)
    reason = "" if clash is None else clash(setup.scheduler, policy)
    if reason:
        names = (type(setup.router).__name__, type(setup.scheduler).__name__)
        raise ConfigError(
            f"router {names[0]}, scheduler {names[1]} and allocator {type(policy).__name__} "
            f"clash: {reason}"
        )
    if hasattr(setup.scheduler, "switch_space"):
        if any(kind.num_lanes > 1 for kind in setup.kinds):
            raise InfeasiblePlan(
                "scheduler fastswitch: expected plan.pp = 1, as one batch switches at a time "
                f"(got {setup.kinds[0].num_lanes})"
            )
        if isinstance(setup.router, Llumnix):
            raise ConfigError(
                "router Llumnix and scheduler FastSwitch clash: both move the same KV"
            )
    if any(kind.host is not None for kind in setup.kinds):
        _refuse_with_offload(setup)
    if isinstance(setup.router, Llumnix):
        drafts = any(kind.speculation is not None for kind in setup.kinds)
        by_name = isinstance(policy, VAttention) or getattr(policy, "knows_holders", False)
        if drafts or by_name:
            other = "speculation" if drafts else f"allocator {type(policy).__name__}"
            raise ConfigError(
                f"router Llumnix and {other} clash: only KV in pages of one kind can be moved"
            )
    if getattr(setup.router, "scale", False) and any(kind.num_ranks > 1 for kind in setup.kinds):
        raise ConfigError(
            "router.scale: expected plan.attention_dp = 1, as ranks that step together are started "
            f"and drained together (got {setup.kinds[0].num_ranks})"
        )


def _refuse_with_offload(setup: Setup) -> None:
    """Host memory stands behind vLLM V1's prefix cache of a model whose layers keep everything."""
    expected = ""
    if not getattr(setup.scheduler, "waits_for_loads", False):
        expected = f"scheduler vllm_v1 (got {type(setup.scheduler).__name__})"
    elif isinstance(setup.router, Llumnix):
        expected = "a router that moves no requests (got Llumnix)"
    elif setup.table.hash_ids is None:
        expected = f"a workload that names prefixes by hash_ids ({setup.table.name} does not)"
    elif not isinstance(policy_of(setup), PrefixCaching):
        name = type(policy_of(setup)).__name__
        expected = f"the allocator prefix_caching, and engine.prefix_caching: true (got {name})"
    elif any(kind.layout.windows for kind in setup.kinds):
        expected = "a model without attention windows"
    elif any(kind.speculation is not None for kind in setup.kinds):
        expected = "no speculation"
    if expected:
        raise ConfigError(f"engine.kv_offload: expected {expected}")


def refuse_with_speculation(setup: Setup, drafter: str) -> None:
    """Drafts need pages that no reservation holds, and answers that end one by one."""
    policy, scheduler = policy_of(setup), setup.scheduler
    if policy.reserved_pages(pool_of(setup, setup.kinds[0])) is not None:
        raise ConfigError(
            f"speculation with the {drafter} drafter needs pages on demand: allocator "
            f"{type(policy).__name__} gives each request a reservation of its own tokens"
        )
    if getattr(scheduler, "runs_to_completion", False):
        raise ConfigError(
            f"speculation with the {drafter} drafter needs answers that end one by one: "
            f"scheduler {type(scheduler).__name__} pads them to the longest"
        )
    if lane_maker(scheduler, policy, 1, 1.0, 1.0) is not Lane:
        names = f"scheduler {type(scheduler).__name__}, allocator {type(policy).__name__}"
        raise ConfigError(
            f"speculation with the {drafter} drafter needs a lane that neither swaps nor maps "
            f"pages, nor knows who holds them ({names})"
        )


def refuse_samples(setup: Setup) -> None:
    """What cannot serve requests with several answers (`workload.n`, `workload.beam_width`).

    Raises:
        ConfigError: both are named, with what would go instead.
    """
    scheduler, policy = type(setup.scheduler).__name__, policy_of(setup)
    if group_space(setup) is None:
        if setup.table.beams is not None:
            raise ConfigError(
                f"workload.beam_width and scheduler {scheduler} clash: vLLM has had no beam search "
                "in its engine since 0.6.3, and V1 none at all: scheduler vllm_v0"
            )
        if getattr(setup.scheduler, "takes", None) is not None:
            raise ConfigError(
                f"workload.n and scheduler {scheduler} clash: it counts requests, not samples"
            )
    elif not isinstance(policy, Paged) or policy.layout(setup.kinds[0].layout).windows:
        raise ConfigError(
            f"workload.n and allocator {type(policy).__name__} clash: sequences that fork under "
            f"scheduler {scheduler} share pages by counting references: allocator paged "
            "(with windows: kept for a model that has attention windows)"
        )
    elif any(kind.speculation is not None for kind in setup.kinds):
        raise ConfigError(
            f"workload.n and speculation clash under scheduler {scheduler}: of sequences that "
            "fork each would draft from a block that others hold"
        )
    if isinstance(setup.router, Llumnix):
        raise ConfigError(
            "workload.n and router Llumnix clash: it moves requests of one sequence only"
        )


def refuse_with_nano_batches(experiment: Experiment) -> None:
    """Prices of nano-batches are those of plain lanes, one token a decode.

    Raises:
        ConfigError: what does not go with them.
    """
    if experiment.speculation is not None:
        raise ConfigError("engine.nano_batches: not with speculation")
    if experiment.settings.kv_offload_bytes:
        raise ConfigError("engine.nano_batches: not with engine.kv_offload")
    scheduler, allocator = experiment.scheduler, experiment.allocator or Paged()
    names = f"scheduler {type(scheduler).__name__}, {type(allocator).__name__}"
    if lane_maker(scheduler, allocator, 1, 1.0, 1.0) is not Lane:
        raise ConfigError(
            "engine.nano_batches: expected a lane that neither swaps, pads nor maps pages "
            f"(got {names})"
        )
    if experiment.workload.samples_many and getattr(scheduler, "group_space", None) is not None:
        raise ConfigError(f"engine.nano_batches: not with answers that fork ({names})")
