"""Policies that make no sense together, and why."""

from __future__ import annotations

from simulator.allocators import PrefixCaching, VAttention
from simulator.errors import ConfigError, InfeasiblePlan
from simulator.lane import Lane
from simulator.lanes import lane_maker
from simulator.routers.llumnix import Llumnix
from simulator.setup import Setup, policy_of, pool_of


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
        if drafts or isinstance(policy, VAttention):
            other = "speculation" if drafts else "allocator VAttention"
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
            f"pages ({names})"
        )
