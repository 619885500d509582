"""The operations of a forward pass: our kernels, or their naive torch references.

Both write keys, values and residuals in place, as an engine does. `kernels` is reached through
`calibration.profile`, which alone knows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

from calibration.engine.inputs import Fields
from calibration.measure import torch_module
from calibration.profile import kernels as load

Tensor = Any
kernels = cache(load)  # asked for at every launch
MOST_TILES = 1 << 16  # counters of the split-K GEMM


class Operations(Protocol):
    """T tokens, QH and KH heads of D, B sequences; caches [blocks, block_tokens, KH, D]."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [T, K] times weight [N, K] transposed."""
        ...

    def norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        """RMS norm of residual + x, which `residual` becomes."""
        ...

    def rope(self, q: Tensor, k: Tensor, v: Tensor, angles: Tensor, at: Fields,
             caches: tuple[Tensor, Tensor]) -> Tensor:  # fmt: skip
        """q rotated, contiguous [T, QH, D]; k rotated and v into their slots of the caches."""
        ...

    def decodes(self, q: Tensor, caches: tuple[Tensor, Tensor], at: Fields, out: Tensor) -> None:
        """Attention of one token a sequence into out [B, QH, D]."""
        ...

    def chunks(self, q: Tensor, caches: tuple[Tensor, Tensor], at: Fields, longest: int,
               out: Tensor) -> None:  # fmt: skip
        """Causal attention of the chunks' tokens into out [T, QH, D]."""
        ...

    def gated(self, x: Tensor) -> Tensor:
        """[T, 2F] -> silu(first half) * second half."""
        ...

    def experts(self, x: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor,
                weights: Tensor) -> Tensor:  # fmt: skip
        """x [T, H] through its experts, weighted: chosen, weights [T, top_k]."""
        ...

    def sample(self, logits: Tensor) -> Tensor:
        """The likeliest token of each row."""
        ...


@dataclass(slots=True)
class KernelOperations:
    """Headway's Triton kernels; `gemm` "torch" leaves the dense GEMMs to cuBLAS."""

    device: Any
    gemm: str = "ours"
    _arrivals: Tensor = field(init=False)
    _cold: Tensor = field(init=False)

    def __post_init__(self) -> None:
        torch = torch_module()
        self._arrivals = torch.zeros(MOST_TILES, dtype=torch.int32, device=self.device)
        self._cold = torch.zeros(4096, device=self.device)

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.gemm == "torch":
            return torch_module().nn.functional.linear(x, weight)
        return kernels("gemm").gemm(x, weight, arrivals=self._arrivals)

    def norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        return kernels("elementwise").add_rmsnorm(x, residual, weight, eps=eps)

    def rope(self, q: Tensor, k: Tensor, v: Tensor, angles: Tensor, at: Fields,
             caches: tuple[Tensor, Tensor]) -> Tensor:  # fmt: skip
        kernels("rope_kv").rope_kv(q, k, v, angles, at.positions, at.slots, *caches)
        return q.contiguous()

    def decodes(self, q: Tensor, caches: tuple[Tensor, Tensor], at: Fields, out: Tensor) -> None:
        kernels("paged_attention").paged_attention(
            q[:, None], *caches, at.decode_table, at.decode_context, out=out[:, None]
        )

    def chunks(self, q: Tensor, caches: tuple[Tensor, Tensor], at: Fields, longest: int,
               out: Tensor) -> None:  # fmt: skip
        kernels("prefill_attention").prefill_attention(
            q, *caches, at.chunk_starts, at.chunk_context, block_table=at.chunk_table,
            max_chunk_tokens=longest, out=out,
        )  # fmt: skip

    def gated(self, x: Tensor) -> Tensor:
        return kernels("elementwise").gated_activation(x, "silu")

    def experts(self, x: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor,
                weights: Tensor) -> Tensor:  # fmt: skip
        return kernels("grouped_gemm").moe(x, gate_up, down, chosen, weights)

    def sample(self, logits: Tensor) -> Tensor:
        return kernels("sampling").sample(logits, self._cold[: len(logits)], 0)


class ReferenceOperations:
    """The references of the same kernels: for the CPU, and as the truth of the whole engine."""

    def linear(self, x: Tensor, weight: Tensor) -> Tensor:
        return kernels("reference_linear").gemm_reference(x, weight)

    def norm(self, x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
        norm, kept = kernels("reference_linear").rmsnorm_reference(x, residual, weight, eps)
        if residual is not None:
            residual.copy_(kept)
        return norm

    def rope(self, q: Tensor, k: Tensor, v: Tensor, angles: Tensor, at: Fields,
             caches: tuple[Tensor, Tensor]) -> Tensor:  # fmt: skip
        linear, slots, positions = kernels("reference_linear"), at.slots.long(), at.positions.long()
        rotated = linear.rope_reference(k, angles, positions)
        for kept, values in zip(caches, (rotated, v), strict=True):
            kept.copy_(linear.write_kv_reference(kept, values, slots, 1.0))
        return linear.rope_reference(q, angles, positions)

    def decodes(self, q: Tensor, caches: tuple[Tensor, Tensor], at: Fields, out: Tensor) -> None:
        reference = kernels("reference_attention").paged_attention_reference
        out.copy_(reference(q[:, None], *caches, at.decode_table, at.decode_context)[:, 0])

    def chunks(self, q: Tensor, caches: tuple[Tensor, Tensor], at: Fields, longest: int,
               out: Tensor) -> None:  # fmt: skip
        reference = kernels("reference_attention").prefill_attention_reference
        out.copy_(reference(q, *caches, at.chunk_starts, at.chunk_context,
                            block_table=at.chunk_table))  # fmt: skip

    def gated(self, x: Tensor) -> Tensor:
        return kernels("reference_linear").gated_reference(x, "silu")

    def experts(self, x: Tensor, gate_up: Tensor, down: Tensor, chosen: Tensor,
                weights: Tensor) -> Tensor:  # fmt: skip
        return kernels("reference_linear").moe_reference(x, gate_up, down, chosen, weights)

    def sample(self, logits: Tensor) -> Tensor:
        return logits.argmax(-1)
