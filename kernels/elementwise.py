"""Memory-bound row operations: fused add + RMSNorm, and the gated activation."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.cases import DTYPES, Case
from kernels.compile import AotJob
from kernels.reference_linear import gated_reference, rmsnorm_reference


@triton.jit
def add_rmsnorm_kernel(
    x,  # [T, H], row stride stride_xt
    residual,  # [T, H] contiguous, read and written if ADD
    weight,  # [H]
    out,  # [T, H] contiguous
    H,
    stride_xt,
    eps,
    offset,  # added to the weight: 1 for Gemma, else 0
    ADD: tl.constexpr,
    BLOCK_H: tl.constexpr,  # power of two >= H
):
    """Grid (T,). residual += x; out = residual / rms(residual) * weight; sums in fp32."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_H)
    mask = column < H
    h = tl.load(x + row * stride_xt + column, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        at = residual + row * H + column
        h += tl.load(at, mask=mask, other=0.0).to(tl.float32)
        kept = h.to(residual.dtype.element_ty)
        tl.store(at, kept, mask=mask)
        h = kept.to(tl.float32)
    scale = tl.rsqrt(tl.sum(h * h, axis=0) / H + eps)
    w = tl.load(weight + column, mask=mask, other=0.0).to(tl.float32) + offset
    tl.store(out + row * H + column, (h * scale * w).to(out.dtype.element_ty), mask=mask)


def add_rmsnorm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    *,
    eps: float = 1e-6,
    weight_offset: float = 0.0,
) -> torch.Tensor:
    """x [T, H] -> normalised [T, H]; `residual` [T, H] is updated in place to x + residual."""
    num_tokens, hidden = x.shape
    if residual is not None and not residual.is_contiguous():
        raise ValueError("residual must be contiguous: it is updated in place")
    out = torch.empty((num_tokens, hidden), device=x.device, dtype=x.dtype)
    block = triton.next_power_of_2(hidden)
    if num_tokens:
        add_rmsnorm_kernel[(num_tokens,)](
            x, out if residual is None else residual, weight, out, hidden, x.stride(0), eps,
            weight_offset, ADD=residual is not None, BLOCK_H=block, num_warps=_row_warps(block),
        )  # fmt: skip
    return out


def _row_warps(block: int) -> int:
    """Eight to sixteen elements a thread: enough loads in flight, no spilling."""
    return min(max(block // 512, 1), 16)


@triton.jit
def gated_kernel(
    x,  # [T, 2F]: gate then up, row stride stride_xt
    out,  # [T, F] contiguous
    F,
    stride_xt,
    SILU: tl.constexpr,  # else GELU (tanh form)
    BLOCK_F: tl.constexpr,
):
    """Grid (T, tiles of F). out = act(gate) * up."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    mask = column < F
    gate = tl.load(x + row * stride_xt + column, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(x + row * stride_xt + F + column, mask=mask, other=0.0).to(tl.float32)
    inner = gate
    if not SILU:  # (1 + tanh(u)) / 2 = sigmoid(2u), with u = sqrt(2/pi) (g + 0.044715 g^3)
        inner = 1.5957691216057308 * (gate + 0.044715 * gate * gate * gate)
    value = gate * tl.sigmoid(tl.maximum(inner, -80.0)) * up  # exp stays finite
    tl.store(out + row * F + column, value.to(out.dtype.element_ty), mask=mask)


def gated_activation(x: torch.Tensor, activation: str) -> torch.Tensor:
    """x [T, 2F] -> act(x[:, :F]) * x[:, F:], `activation` "silu" or "gelu_tanh"."""
    if activation not in ("silu", "gelu_tanh"):
        raise ValueError(f"activation must be 'silu' or 'gelu_tanh' (got {activation!r})")
    num_tokens, ffn = x.shape[0], x.shape[1] // 2
    out = torch.empty((num_tokens, ffn), device=x.device, dtype=x.dtype)
    block = min(triton.next_power_of_2(ffn), 2048)
    if num_tokens:
        gated_kernel[(num_tokens, triton.cdiv(ffn, block))](
            x, out, ffn, x.stride(0), SILU=activation == "silu", BLOCK_F=block,
            num_warps=_row_warps(block),
        )  # fmt: skip
    return out


def rmsnorm_case(*, num_tokens: int, hidden_size: int, dtype: str = "bf16") -> Case:
    """Add + RMSNorm; torch runs the same two steps with its fused norm."""
    kind = DTYPES[dtype]

    def make(device: torch.device, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        x = torch.randn(3, num_tokens, hidden_size, device=device, generator=generator).to(kind)
        return x[0], x[1], x[2, 0].clone()

    def ours(x, residual, weight):
        return add_rmsnorm(x, residual, weight), residual

    def by_torch(x, residual, weight):
        residual += x
        return torch.nn.functional.rms_norm(residual, weight.shape, weight, 1e-6), residual

    return Case(
        op="add_rmsnorm", shape={"num_tokens": num_tokens, "hidden_size": hidden_size},
        dtype=dtype, flops=6 * num_tokens * hidden_size,
        bytes=(4 * num_tokens + 1) * hidden_size * kind.itemsize, make_inputs=make,
        reference=lambda x, r, w: rmsnorm_reference(x, r, w, 1e-6), tolerance=2e-2, mutates=(1,),
        providers={"headway": ours, "torch": by_torch},
    )  # fmt: skip


def gated_case(
    *, num_tokens: int, ffn_size: int, activation: str = "silu", dtype: str = "bf16"
) -> Case:
    """Gated activation of [num_tokens, 2 ffn_size]."""
    kind = DTYPES[dtype]

    def make(device: torch.device, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        x = torch.randn(num_tokens, 2 * ffn_size, device=device, generator=generator)
        return (x.to(kind),)

    def truth(x: torch.Tensor) -> torch.Tensor:
        return gated_reference(x, activation)

    return Case(
        op="gated_activation", dtype=dtype, make_inputs=make, tolerance=2e-2, reference=truth,
        shape={"num_tokens": num_tokens, "ffn_size": ffn_size, "activation": activation},
        flops=6 * num_tokens * ffn_size, bytes=3 * num_tokens * ffn_size * kind.itemsize,
        providers={"headway": lambda x: gated_activation(x, activation), "torch": truth},
    )  # fmt: skip


def benchmark_cases() -> list[Case]:
    """Llama-3.1-8B widths from one token to a prefill chunk."""
    tokens = (1, 16, 256, 2048, 8192)
    return [
        *(rmsnorm_case(num_tokens=t, hidden_size=4096) for t in tokens),
        *(gated_case(num_tokens=t, ffn_size=14336) for t in tokens),
    ]


def aot_jobs(target: int) -> list[AotJob]:
    """Both ops at the block sizes of hidden sizes up to 16,384."""
    jobs = []
    for block in (1024, 4096, 8192, 16384):
        signature = {
            **dict.fromkeys(("x", "residual", "weight", "out"), "*bf16"), "H": "i32",
            "stride_xt": "i32", "eps": "fp32", "offset": "fp32",
        }  # fmt: skip
        for add in (True, False):
            jobs.append(AotJob(
                kernel="kernels.elementwise:add_rmsnorm_kernel", target=target,
                config=f"h{block}-add{int(add)}", signature=signature,
                constants={"ADD": add, "BLOCK_H": block}, num_warps=_row_warps(block),
                divisible=("H", "stride_xt"),
            ))  # fmt: skip
    for silu in (True, False):
        jobs.append(AotJob(
            kernel="kernels.elementwise:gated_kernel", target=target,
            config="silu" if silu else "gelu_tanh",
            signature={"x": "*bf16", "out": "*bf16", "F": "i32", "stride_xt": "i32"},
            constants={"SILU": silu, "BLOCK_F": 2048}, num_warps=_row_warps(2048),
            divisible=("F", "stride_xt"),
        ))  # fmt: skip
    return jobs
