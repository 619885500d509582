"""Engine settings a user does not state: those the engine profile serves with on the GPU."""

from __future__ import annotations

from typing import Any

from simulator.errors import ConfigError
from simulator.profiles import DEFAULT_PROFILE, load_profile
from simulator.spec import EngineSettings, GpuSpec


def default_settings(
    gpu: GpuSpec,
    *,
    profile: str = DEFAULT_PROFILE,
    max_num_batched_tokens: int = 0,
    max_num_seqs: int = 0,
    **others: Any,
) -> EngineSettings:
    """Settings the profile's engine would serve with on this GPU; 0 = default.

    `others` are EngineSettings fields. A token budget stated alone lowers the default number of
    sequences to it, as vLLM does.
    """
    engine = load_profile(profile)
    default_tokens, default_seqs = engine.server_limits(gpu)
    tokens = max_num_batched_tokens or default_tokens
    seqs = max_num_seqs or min(default_seqs, tokens)
    if tokens < seqs:
        raise ConfigError(
            f"engine.max_num_batched_tokens: expected an int >= max_num_seqs = {seqs}, "
            f"as every decoding sequence takes one token (got {tokens})"
        )
    values = {
        "gpu_memory_utilization": engine.gpu_memory_utilization,
        "prefix_caching": engine.prefix_caching,
        "block_tokens": engine.block_tokens,
        "async_scheduling": engine.async_scheduling,
        "reserve_graphs": engine.reserve_graphs,
        "largest_graph": engine.largest_graph,
        **others,
        "host_overhead": {**engine.host, **others.get("host_overhead", {})},
    }
    return EngineSettings(
        max_num_batched_tokens=tokens, max_num_seqs=seqs, profile=engine.name, **values
    )
