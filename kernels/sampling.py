"""Sampling epilogue: the next token of each sequence from its logits, without a softmax.

Gumbel-max: argmax(logits / T + g) with g = -log(-log(u)) draws from softmax(logits / T); T = 0 is
the plain argmax. Two passes: each row is cut into parts so that one sequence still fills the chip,
then the parts' winners meet. Ties go to the lowest token id, whatever the number of parts. The
uniform of (row, token) is Philox(seed, row * V + token): reproducible, independent of the tiling.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.cases import DTYPES, Case
from kernels.compile import AotJob
from kernels.reference_linear import sample_reference

PART = 4096  # tokens of the vocabulary per program of the first pass


@triton.jit
def sample_parts_kernel(
    logits,  # [B, V], row stride stride_b
    temperature,  # [B] fp32
    best_score,  # [B, parts] fp32
    best_token,  # [B, parts] int32
    V,
    stride_b,
    seed,
    PART: tl.constexpr,
):
    """Grid (B, parts). The best score and token of one part of one row."""
    row = tl.program_id(0)
    token = tl.program_id(1) * PART + tl.arange(0, PART)
    mask = token < V
    at = logits + row.to(tl.int64) * stride_b + token
    score = tl.load(at, mask=mask, other=-float("inf")).to(tl.float32)
    heat = tl.load(temperature + row)
    if heat > 0:
        uniform = tl.rand(seed, row * V + token)
        score = score / heat - tl.log(-tl.log(tl.maximum(uniform, 1e-20)))
    score = tl.where(mask, score, -float("inf"))
    best = tl.max(score, axis=0)
    winner = tl.min(tl.where((score == best) & mask, token, V), axis=0)
    out = row * tl.num_programs(1) + tl.program_id(1)
    tl.store(best_score + out, best)
    tl.store(best_token + out, winner)


@triton.jit
def sample_join_kernel(
    best_score,  # [B, parts] fp32
    best_token,  # [B, parts] int32
    tokens,  # [B] int64
    parts,
    V,
    BLOCK: tl.constexpr,  # power of two >= parts
):
    """Grid (B,). The winner of a row's parts; the lowest token among equals."""
    row = tl.program_id(0)
    part = tl.arange(0, BLOCK)
    mask = part < parts
    score = tl.load(best_score + row * parts + part, mask=mask, other=-float("inf"))
    token = tl.load(best_token + row * parts + part, mask=mask, other=V)
    best = tl.max(score, axis=0)
    winner = tl.min(tl.where((score == best) & mask, token, V), axis=0)
    tl.store(tokens + row, tl.minimum(winner, V - 1).to(tl.int64))


def sample(logits: torch.Tensor, temperature: torch.Tensor, seed: int) -> torch.Tensor:
    """logits [B, V], temperature [B] fp32 (0: greedy) -> token ids [B] int64."""
    num_seqs, vocab = logits.shape
    if num_seqs * vocab >= 2**31 or logits.stride(1) != 1:
        raise ValueError("logits need contiguous rows and fewer than 2^31 elements")
    tokens = torch.empty(num_seqs, device=logits.device, dtype=torch.int64)
    if num_seqs == 0:
        return tokens
    parts = triton.cdiv(vocab, PART)
    scores = torch.empty((num_seqs, parts), device=logits.device, dtype=torch.float32)
    winners = torch.empty((num_seqs, parts), device=logits.device, dtype=torch.int32)
    sample_parts_kernel[(num_seqs, parts)](
        logits, temperature, scores, winners, vocab, logits.stride(0), seed, PART=PART, num_warps=8
    )
    sample_join_kernel[(num_seqs,)](
        scores, winners, tokens, parts, vocab, BLOCK=triton.next_power_of_2(parts), num_warps=1
    )
    return tokens


def sample_case(*, num_seqs: int, vocab_size: int, greedy: bool, dtype: str = "bf16") -> Case:
    """One token per sequence; torch takes the softmax and draws (or the argmax)."""
    kind = DTYPES[dtype]

    def make(device: torch.device, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        logits = torch.randn(num_seqs, vocab_size, device=device, generator=generator).to(kind)
        # One clear winner a row, or the check would turn on the last bit of a logarithm.
        logits[torch.arange(num_seqs, device=device), torch.arange(num_seqs, device=device)] = 60.0
        heat = torch.full((num_seqs,), 0.0 if greedy else 1.0, device=device)
        return logits, heat

    def by_torch(logits, _):
        if greedy:
            return logits.argmax(-1)
        return torch.multinomial(torch.softmax(logits.float(), -1), 1).view(-1)

    return Case(
        op="sample", dtype=dtype, flops=(1 if greedy else 60) * num_seqs * vocab_size,
        shape={"num_seqs": num_seqs, "vocab_size": vocab_size, "greedy": int(greedy)},
        bytes=num_seqs * vocab_size * kind.itemsize, make_inputs=make, tolerance=0.0,
        reference=lambda logits, heat: sample_reference(logits, heat, 7),
        providers={"headway": lambda logits, heat: sample(logits, heat, 7), "torch": by_torch},
    )  # fmt: skip


def benchmark_cases() -> list[Case]:
    """Llama-3's vocabulary at decode batch sizes."""
    return [
        sample_case(num_seqs=b, vocab_size=128256, greedy=greedy)
        for b in (1, 16, 64, 256)
        for greedy in (True, False)
    ]


def aot_jobs(target: int) -> list[AotJob]:
    """Both passes."""
    signature = {
        "logits": "*bf16", "temperature": "*fp32", "best_score": "*fp32", "best_token": "*i32",
        "V": "i32", "stride_b": "i32", "seed": "i32",
    }  # fmt: skip
    join = {"best_score": "*fp32", "best_token": "*i32", "tokens": "*i64", "V": "i32"}
    return [
        AotJob(
            kernel="kernels.sampling:sample_parts_kernel", target=target, config=f"part{PART}",
            signature=signature, constants={"PART": PART}, num_warps=8, divisible=("stride_b",),
        ),
        AotJob(
            kernel="kernels.sampling:sample_join_kernel", target=target, config="parts32",
            signature={**join, "parts": "i32"}, constants={"BLOCK": 32}, num_warps=1,
        ),
    ]  # fmt: skip
