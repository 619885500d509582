"""int8 W8A8: C[M, N] = scale_a[M] * scale_b[N] * (A[M, K] @ B[N, K]^T), int32 accumulation.

Scales per tensor ([1]) or per token [M] and per channel [N]; the kernels are `gemm.py`'s. Each
product is exact: |sum| <= 127^2 K stays inside int32 up to K = 133,000.
"""

from __future__ import annotations

import torch

from kernels.cases import Case
from kernels.compile import AotJob
from kernels.configs import Config
from kernels.gemm import SHAPES, gemm_jobs, scaled_gemm
from kernels.reference_linear import quantize_reference, scaled_reference


def gemm_int8(
    a: torch.Tensor,
    b: torch.Tensor,
    scale_a: torch.Tensor,
    scale_b: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
    arrivals: torch.Tensor | None = None,
    config: Config | None = None,
) -> torch.Tensor:
    """A [M, K] and B [N, K] int8, scales fp32; `arrivals` as in `scaled_gemm`."""
    return scaled_gemm(
        a, b, op="gemm_int8", out_dtype=out_dtype, scale_a=scale_a, scale_b=scale_b,
        scales="row_col", bias=bias, residual=residual, arrivals=arrivals, config=config,
    )  # fmt: skip


def _cublas(a, b, scale_a, scale_b, _):
    return (torch._int_mm(a, b.T) * scale_a[:, None] * scale_b[None, :]).to(torch.bfloat16)


def gemm_int8_case(*, m: int, n: int, k: int) -> Case:
    """One int8 GEMM by row and channel; torch's `_int_mm` needs m > 16."""

    def make(device: torch.device, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        a = torch.randn(m, k, device=device, generator=generator)
        b = torch.randn(n, k, device=device, generator=generator) / k**0.5
        (qa, sa), (qb, sb) = (quantize_reference(t, k, torch.int8) for t in (a, b))
        arrivals = torch.zeros(4096, device=device, dtype=torch.int32)
        return qa, qb, sa.view(-1), sb.view(-1), arrivals

    return Case(
        op="gemm", shape={"m": m, "n": n, "k": k}, dtype="int8", flops=2 * m * n * k,
        bytes=m * k + n * k + 2 * m * n, make_inputs=make, tolerance=2e-2,
        reference=lambda a, b, sa, sb, _: scaled_reference(a, b, sa, sb).to(torch.bfloat16),
        providers={
            "headway": lambda a, b, sa, sb, arrivals: gemm_int8(a, b, sa, sb, arrivals=arrivals),
            "cublas": _cublas,
        },
    )  # fmt: skip


def benchmark_cases() -> list[Case]:
    """The dense grid."""
    return [gemm_int8_case(m=m, n=n, k=k) for m, n, k in SHAPES if k % 16 == 0]


def aot_jobs(target: int) -> list[AotJob]:
    """Every configuration of the table on one chip."""
    return gemm_jobs("gemm_int8", target, "i8", "bf16", "row_col")
