"""fp8 (e4m3) W8A8: C[M, N] = (scale_a * A[M, K]) @ (scale_b * B[N, K])^T, out in bf16.

Two scalings share the kernels of `gemm.py` and `gemm_tma.py`:
- rows: scale_a [1] or [M] (per token), scale_b [1] or [N] (per channel), applied at the end;
- blocks: scale_a [M, K/128] over 1x128 of A, scale_b [N/128, K/128] over 128x128 of B (DeepSeek-V3
  2412.19437 section 3.3), applied to each 128 of K, which also promotes the accumulation to fp32.
"""

from __future__ import annotations

import torch

from kernels.cases import Case
from kernels.compile import AotJob
from kernels.configs import Config
from kernels.gemm import SHAPES, gemm_jobs, scaled_gemm
from kernels.reference_linear import (
    block_scaled_reference,
    quantize_reference,
    scaled_reference,
)

FP8 = torch.float8_e4m3fn


def gemm_fp8(
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
    """Per-tensor and per-row scales; `arrivals` as in `scaled_gemm`."""
    return scaled_gemm(
        a, b, op="gemm_fp8", out_dtype=out_dtype, scale_a=scale_a, scale_b=scale_b,
        scales="row_col", bias=bias, residual=residual, arrivals=arrivals, config=config,
    )  # fmt: skip


def gemm_fp8_block(
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
    """Block scales: a tile must lie inside one 128x128 block of B (checked)."""
    if config and (128 % config.BLOCK_N or 128 % config.BLOCK_K):
        raise ValueError(f"{config.label}: BLOCK_N and BLOCK_K must divide 128 for block scales")
    return scaled_gemm(
        a, b, op="gemm_fp8_block", out_dtype=out_dtype, scale_a=scale_a.contiguous(),
        scale_b=scale_b.contiguous(), scales="block", bias=bias, residual=residual,
        arrivals=arrivals, config=config,
    )  # fmt: skip


def quantize_blocks(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [N, K] -> (fp8 [N, K], scale [ceil(N/128), ceil(K/128)]); offline, in torch."""
    n, k = w.shape
    rows, columns = -(-n // 128), -(-k // 128)
    padded = torch.zeros(rows * 128, columns * 128, device=w.device)
    padded[:n, :k] = w.float()
    parts = padded.view(rows, 128, columns, 128)
    scale = parts.abs().amax((1, 3)).clamp_min(1e-12) / 448.0
    q = (parts / scale[:, None, :, None]).view(padded.shape)[:n, :k].contiguous()
    return q.to(FP8), scale


def _cublas_rows(a, b, scale_a, scale_b, _):
    if scale_a.numel() > 1:
        scale_a, scale_b = scale_a.view(-1, 1), scale_b.view(1, -1)
    return torch._scaled_mm(
        a, b.T, scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16, use_fast_accum=True
    )


def gemm_fp8_case(*, m: int, n: int, k: int, scales: str = "row") -> Case:
    """One fp8 GEMM; `scales` is "tensor", "row" or "block"."""

    def make(device: torch.device, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        a = torch.randn(m, k, device=device, generator=generator)
        b = torch.randn(n, k, device=device, generator=generator) / k**0.5
        arrivals = torch.zeros(4096, device=device, dtype=torch.int32)
        if scales == "block":
            (qa, sa), (qb, sb) = quantize_reference(a, 128, FP8), quantize_blocks(b)
            return qa, qb, sa, sb, arrivals
        if scales == "tensor":
            sizes = [(t.abs().amax() / 448.0).reshape(1) for t in (a, b)]
            return (a / sizes[0]).to(FP8), (b / sizes[1]).to(FP8), *sizes, arrivals
        (qa, sa), (qb, sb) = (quantize_reference(t, k, FP8) for t in (a, b))
        return qa, qb, sa.view(-1), sb.view(-1), arrivals

    ours = gemm_fp8_block if scales == "block" else gemm_fp8
    truth = block_scaled_reference if scales == "block" else scaled_reference
    providers = {"headway": lambda a, b, sa, sb, arrivals: ours(a, b, sa, sb, arrivals=arrivals)}
    if scales != "block":
        providers["cublas"] = _cublas_rows
    return Case(
        op="gemm" if scales == "row" else f"gemm_{scales}_scales",
        shape={"m": m, "n": n, "k": k}, dtype="fp8", flops=2 * m * n * k,
        bytes=m * k + n * k + 2 * m * n, make_inputs=make, tolerance=2e-2, capability=90,
        reference=lambda a, b, sa, sb, _: truth(a, b, sa, sb).to(torch.bfloat16),
        providers=providers,
    )  # fmt: skip


def benchmark_cases() -> list[Case]:
    """The dense grid, by row and by block."""
    return [
        gemm_fp8_case(m=m, n=n, k=k, scales=scales)
        for scales in ("row", "block")
        for m, n, k in SHAPES
        if k % 16 == 0
    ]


def aot_jobs(target: int) -> list[AotJob]:
    """Both scalings; none before sm_90."""
    return [
        *gemm_jobs("gemm_fp8", target, "fp8e4nv", "bf16", "row_col"),
        *gemm_jobs("gemm_fp8_block", target, "fp8e4nv", "bf16", "block"),
    ]
