"""Engine settings a user does not state: the defaults of `vllm serve` 0.33 for each GPU class."""

from __future__ import annotations

from typing import Any

from simulator.errors import ConfigError
from simulator.spec import EngineSettings, GpuSpec

GIB = 2**30


def default_settings(
    gpu: GpuSpec, *, max_num_batched_tokens: int = 0, max_num_seqs: int = 0, **others: Any
) -> EngineSettings:
    """Settings vLLM would serve with on this GPU; 0 = default, `others` are EngineSettings fields.

    A token budget stated alone lowers the default number of sequences to it, as vLLM does.
    """
    default_tokens, default_seqs = _server_limits(gpu)
    tokens = max_num_batched_tokens or default_tokens
    seqs = max_num_seqs or min(default_seqs, tokens)
    if tokens < seqs:
        raise ConfigError(
            f"engine.max_num_batched_tokens: expected an int >= max_num_seqs = {seqs}, "
            f"as every decoding sequence takes one token (got {tokens})"
        )
    return EngineSettings(max_num_batched_tokens=tokens, max_num_seqs=seqs, **others)


def _server_limits(gpu: GpuSpec) -> tuple[int, int]:
    """Default (max_num_batched_tokens, max_num_seqs) of the server for this GPU class."""
    if gpu.memory_bytes >= 160 * GIB:
        return 16384, 1024
    if gpu.memory_bytes >= 70 * GIB and "a100" not in gpu.name.lower():
        return 8192, 1024
    return 2048, 256
