"""The columns of every table: one long CSV an op, a row a measured point, SI units.

Shapes are of one GPU. `time_s` is the time of one call, seconds. `kernel` names the code that ran;
it is not part of a point's identity unless two kernels were measured at the same point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TIME = "time_s"
KERNEL = "kernel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """Columns of one op's table, `kernel` and `time_s` apart."""

    labels: tuple[str, ...]  # text: formats and how it was launched
    sizes: tuple[str, ...]  # whole numbers >= 0

    @property
    def key(self) -> tuple[str, ...]:
        """What identifies a point."""
        return (*self.labels, *self.sizes)

    @property
    def columns(self) -> tuple[str, ...]:
        return (KERNEL, *self.key, TIME)


ATTENTION = ("num_q_heads", "num_kv_heads", "head_dim", "window")
SCHEMAS: Mapping[str, Schema] = {
    # [num_tokens, in_size] x [in_size, out_size]; quantisation of activations included.
    "gemm": Schema(labels=("format",), sizes=("num_tokens", "out_size", "in_size")),
    # Causal, `num_tokens` new tokens of each sequence after `context_tokens` cached ones.
    "prefill_attention": Schema(
        labels=("compute_format", "kv_format"),
        sizes=("num_seqs", "num_tokens", "context_tokens", *ATTENTION),
    ),
    # One new token of each sequence; `kv_tokens` of each, the new one included.
    "decode_attention": Schema(labels=("kv_format",), sizes=("num_seqs", "kv_tokens", *ATTENTION)),
    # A whole block of multi-head latent attention of DeepSeek-V3, projections included, on a GPU
    # with `num_q_heads` of its heads; prompts without a cached prefix.
    "mla_prefill_block": Schema(
        labels=("format", "kv_format"), sizes=("num_seqs", "num_tokens", "num_q_heads")
    ),
    "mla_decode_block": Schema(
        labels=("format", "kv_format"), sizes=("num_seqs", "kv_tokens", "num_q_heads")
    ),
    # Routed experts from sorted tokens to weighted sum, on one GPU: `local_experts` of
    # `num_experts`, each `ffn_size` wide on this GPU; tokens of the whole group. `skew_percent`:
    # 0 = balanced, else 100 x the exponent of the power law the router's load follows.
    "moe": Schema(
        labels=("format",),
        sizes=(
            *("num_tokens", "hidden_size", "ffn_size", "num_experts", "local_experts"),
            *("experts_per_token", "is_gated", "skew_percent"),
        ),
    ),
    # Sum over the GPUs of one node; `payload_bytes` of the whole tensor on each GPU.
    "all_reduce": Schema(labels=("launch",), sizes=("num_gpus", "payload_bytes")),
    # The other kinds (all_gather, reduce_scatter, all_to_all), a whole tensor of `payload_bytes`.
    "collective": Schema(labels=("kind",), sizes=("num_gpus", "payload_bytes")),
}
OPS = tuple(SCHEMAS)
