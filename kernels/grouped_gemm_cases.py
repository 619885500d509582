"""Benchmark cases and compile jobs of the grouped GEMM: balanced and skewed expert loads."""

from __future__ import annotations

import math

import torch

from kernels.cases import DTYPES, Case
from kernels.compile import AotJob
from kernels.configs import Config, configurations
from kernels.grouped_gemm import grouped_config, grouped_gemm, moe, route
from kernels.reference_linear import gated_reference, grouped_reference


def draw_experts(
    num_tokens: int, num_experts: int, top_k: int, skew: float, generator: torch.Generator
) -> torch.Tensor:
    """top_k different experts per token; popularity of expert e falls as (e + 1)^-skew. Skew 0 is
    dealt like cards, so that loads differ by one at most."""
    device = generator.device
    if skew == 0:
        pairs = torch.arange(num_tokens * top_k, device=device)
        return (pairs % num_experts).view(num_tokens, top_k)
    popularity = (torch.arange(num_experts, device=device) + 1.0) ** -skew
    return torch.multinomial(popularity.expand(num_tokens, -1), top_k, generator=generator)


def grouped_gemm_case(
    *, num_tokens: int, num_experts: int, top_k: int, n: int, k: int, skew: float = 0.0,
    dtype: str = "bf16",
) -> Case:  # fmt: skip
    """One expert matrix: [num_tokens, k] gathered into [num_tokens * top_k, n]."""
    kind = DTYPES[dtype]

    def make(device: torch.device, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        a = torch.randn(num_tokens, k, device=device, generator=generator).to(kind)
        b = torch.randn(num_experts, n, k, device=device, generator=generator) / k**0.5
        experts = draw_experts(num_tokens, num_experts, top_k, skew, generator)
        return a, b.to(kind), experts, torch.ones(num_tokens * top_k, device=device)

    def ours(a, b, experts, weights):
        chosen = grouped_config(a, num_experts, top_k, experts.numel())
        routing = route(experts, num_experts, chosen.BLOCK_M)
        return grouped_gemm(
            a, b, routing, top_k=top_k, gather=True, pair_weights=weights, config=chosen
        )

    def truth(a, b, experts, _):
        return grouped_reference(a.repeat_interleave(top_k, 0), b, experts.flatten())

    def by_torch(a, b, experts, _):
        flat = experts.flatten()
        order = torch.sort(flat, stable=True).indices
        ends = torch.bincount(flat, minlength=num_experts).cumsum(0).int()
        rows = torch._grouped_mm(a[order // top_k], b.transpose(1, 2), offs=ends)
        return torch.empty_like(rows).index_copy_(0, order, rows)

    pairs, used = num_tokens * top_k, min(num_experts, num_tokens * top_k)
    return Case(
        op="grouped_gemm", dtype=dtype, make_inputs=make, reference=truth, tolerance=2e-2,
        shape={
            "num_tokens": num_tokens, "num_experts": num_experts, "top_k": top_k, "n": n, "k": k,
            "skew": skew,
        },
        flops=2 * pairs * n * k,
        bytes=(used * n * k + num_tokens * k + pairs * n) * kind.itemsize,
        providers={"headway": ours, "torch": by_torch},
    )  # fmt: skip


def moe_case(
    *, num_tokens: int, num_experts: int, top_k: int, hidden_size: int, ffn_size: int,
    skew: float = 0.0, dtype: str = "bf16",
) -> Case:  # fmt: skip
    """A whole routed feed-forward with gated activation."""
    kind = DTYPES[dtype]

    def make(device: torch.device, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        def normal(*shape: int) -> torch.Tensor:
            x = torch.randn(*shape, device=device, generator=generator)
            return (x / math.sqrt(shape[-1])).to(kind)

        x = normal(num_tokens, hidden_size) * hidden_size**0.5
        gate_up = normal(num_experts, 2 * ffn_size, hidden_size)
        down = normal(num_experts, hidden_size, ffn_size)
        experts = draw_experts(num_tokens, num_experts, top_k, skew, generator)
        weights = torch.rand(num_tokens, top_k, device=device, generator=generator)
        return x, gate_up, down, experts, weights / weights.sum(1, keepdim=True)

    pairs, used = num_tokens * top_k, min(num_experts, num_tokens * top_k)
    matrix = hidden_size * ffn_size
    return Case(
        op="moe", dtype=dtype, make_inputs=make, reference=_by_expert, tolerance=3e-2,
        shape={
            "num_tokens": num_tokens, "num_experts": num_experts, "top_k": top_k,
            "hidden_size": hidden_size, "ffn_size": ffn_size, "skew": skew,
        },
        flops=6 * pairs * matrix,
        bytes=(3 * used * matrix + 2 * num_tokens * hidden_size) * kind.itemsize,
        providers={"headway": moe, "torch": _by_expert},
    )  # fmt: skip


def _by_expert(x, gate_up, down, experts, weights):
    """torch's loop over experts, in the model's dtype: the truth and the other provider."""
    out = torch.zeros(x.shape, device=x.device)
    for e in range(gate_up.shape[0]):
        token, slot = (experts == e).nonzero(as_tuple=True)
        h = gated_reference(torch.nn.functional.linear(x[token], gate_up[e]), "silu")
        y = torch.nn.functional.linear(h, down[e]).float() * weights[token, slot, None].float()
        out.index_add_(0, token, y)
    return out.to(x.dtype)


def benchmark_cases() -> list[Case]:
    """Mixtral-8x7B and Qwen3-30B-A3B shapes from decode to prefill, balanced and skewed."""
    models: tuple[dict[str, int], ...] = (
        {"num_experts": 8, "top_k": 2, "hidden_size": 4096, "ffn_size": 14336},
        {"num_experts": 128, "top_k": 8, "hidden_size": 2048, "ffn_size": 768},
    )
    return [
        moe_case(num_tokens=t, skew=skew, dtype="bf16", **model)
        for model in models
        for t in (1, 16, 128, 1024, 8192)
        for skew in (0.0, 1.0)
    ]


def aot_jobs(target: int) -> list[AotJob]:
    """Every configuration, gathering and scattering, bf16 and (from sm_90) scaled fp8."""
    return [
        _job(row, target, element, gather)
        for op, element in (("grouped_gemm", "bf16"), ("grouped_gemm_fp8", "fp8e4nv"))
        for row in configurations(op, target)
        for gather in (True, False)
    ]


def _job(row: Config, target: int, element: str, gather: bool) -> AotJob:
    scaled = element == "fp8e4nv"
    floats = dict.fromkeys(("scale_a", "scale_b", "pair_weights"), "*fp32")
    lists = dict.fromkeys(("order", "offsets", "tile_expert", "tile_row"), "*i32")
    sizes = dict.fromkeys(("E", "N", "K", "num_tiles"), "i32")
    return AotJob(
        kernel="kernels.grouped_gemm:grouped_gemm_kernel", target=target,
        config=f"{row.label}-{element}-{'gather' if gather else 'scatter'}",
        signature={
            "a": f"*{element}", "b": f"*{element}", "c": "*bf16", **floats, **lists, **sizes,
        },
        constants={
            "TOP_K": 2, "GATHER": gather, "SCATTER": not gather, "SCALED": scaled, "EVEN_K": True,
            **row.tiles("BLOCK_M", "BLOCK_N", "BLOCK_K", "GROUP_M"),
        },
        num_warps=row.num_warps, num_stages=row.num_stages, divisible=("N", "K"),
    )  # fmt: skip
