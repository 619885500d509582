"""Rotary embedding of q and k, and the write of k and v into the paged KV cache, in one pass.

Rotation is in halves (GPT-NeoX, Llama): channel i pairs with i + R/2, R <= D channels rotate and
the rest pass through. KV formats and scales match the attention kernels: the cache holds the
model's type, e4m3 or int8; scales are none, one per KV head (given), or one per token and head
(measured here: the largest magnitude becomes the largest code).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kernels.cases import DTYPES, Case
from kernels.compile import AotJob
from kernels.reference_linear import rope_reference, write_kv_reference

NO_SCALES, HEAD_SCALES, TOKEN_SCALES = 0, 1, 2
BLOCK_HEADS = 8


@triton.jit
def encode(x, step, LARGEST: tl.constexpr, INTEGER: tl.constexpr):
    """x / step, clamped to the codes of the stored type (LARGEST 0: stored as it is)."""
    if LARGEST > 0:
        x = tl.minimum(tl.maximum(x / step, -LARGEST), LARGEST)
    if INTEGER:
        x = tl.where(x < 0, tl.ceil(x - 0.5), tl.floor(x + 0.5))
    return x


@triton.jit
def step_of(scale, head, at, largest_value, mask, SCALES: tl.constexpr, LARGEST: tl.constexpr):
    """The quantisation step of each head's vector; measured and stored for token scales."""
    step = largest_value * 0.0 + 1.0
    if SCALES == 1:
        step = tl.load(scale + head, mask=mask, other=1.0)
    if SCALES == 2:
        step = tl.maximum(largest_value, 1e-12) / LARGEST
        tl.store(scale + at, step, mask=mask)
    return step


@triton.jit
def rope_kv_kernel(
    q,  # [T, QH, D], token stride stride_qt; rotated in place
    k,  # [T, KH, D], token stride stride_kt
    v,  # [T, KH, D], token stride stride_vt
    cos_sin,  # [P, R] fp32: cos of R/2 angles, then sin
    positions,  # [T] int
    slots,  # [T] int: block * block_tokens + offset in the block; negative: not cached
    k_cache,  # [num_blocks, block_tokens, KH, D] contiguous
    v_cache,  # as k_cache
    k_scale,  # SCALES 1: [KH]; 2: [num_blocks, block_tokens, KH] (written); fp32
    v_scale,  # as k_scale
    stride_qt,
    stride_kt,
    stride_vt,
    QH: tl.constexpr,
    KH: tl.constexpr,
    D: tl.constexpr,
    R: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,  # power of two >= R / 2
    BLOCK_TAIL: tl.constexpr,  # power of two >= D - R
    BLOCK_D: tl.constexpr,  # power of two >= D
    SCALES: tl.constexpr,
    LARGEST: tl.constexpr,
    INTEGER: tl.constexpr,
):
    """Grid (T, groups of q heads + groups of kv heads)."""
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    Q_GROUPS: tl.constexpr = (QH + BLOCK_H - 1) // BLOCK_H
    HALF: tl.constexpr = R // 2
    is_q = group < Q_GROUPS
    head = tl.where(is_q, group, group - Q_GROUPS) * BLOCK_H + tl.arange(0, BLOCK_H)
    heads = tl.where(is_q, QH, KH)
    r = tl.arange(0, BLOCK_R)
    in_r = (head < heads)[:, None] & (r < HALF)[None, :]
    angle = cos_sin + tl.load(positions + token).to(tl.int64) * R + r
    cos = tl.load(angle, mask=r < HALF, other=0.0)[None, :]
    sin = tl.load(angle + HALF, mask=r < HALF, other=0.0)[None, :]
    source = head[:, None] * D + r[None, :]

    if is_q:
        at = q + token * stride_qt + source
        first = tl.load(at, mask=in_r, other=0.0).to(tl.float32)
        second = tl.load(at + HALF, mask=in_r, other=0.0).to(tl.float32)
        tl.store(at, (first * cos - second * sin).to(q.dtype.element_ty), mask=in_r)
        tl.store(at + HALF, (second * cos + first * sin).to(q.dtype.element_ty), mask=in_r)
    else:
        slot = tl.load(slots + token).to(tl.int64)
        if slot >= 0:
            in_h = head < KH
            at = k + token * stride_kt + source
            first = tl.load(at, mask=in_r, other=0.0).to(tl.float32)
            second = tl.load(at + HALF, mask=in_r, other=0.0).to(tl.float32)
            # The model's type first, as if k had been written out before it was cached.
            low = (first * cos - second * sin).to(k.dtype.element_ty).to(tl.float32)
            high = (second * cos + first * sin).to(k.dtype.element_ty).to(tl.float32)
            largest = tl.max(tl.maximum(tl.abs(low), tl.abs(high)), axis=1)
            t = R + tl.arange(0, BLOCK_TAIL)
            in_t = in_h[:, None] & (t < D)[None, :]
            at_tail = k + token * stride_kt + head[:, None] * D + t[None, :]
            if R < D:
                tail = tl.load(at_tail, mask=in_t, other=0.0).to(tl.float32)
                largest = tl.maximum(largest, tl.max(tl.abs(tail), axis=1))
            stored = k_cache.dtype.element_ty
            step = step_of(k_scale, head, slot * KH + head, largest, in_h, SCALES, LARGEST)[:, None]
            target = k_cache + (slot * KH + head)[:, None] * D
            tl.store(target + r[None, :], encode(low, step, LARGEST, INTEGER).to(stored), in_r)
            high = encode(high, step, LARGEST, INTEGER).to(stored)
            tl.store(target + HALF + r[None, :], high, in_r)
            if R < D:
                tail = encode(tail, step, LARGEST, INTEGER).to(stored)
                tl.store(target + t[None, :], tail, in_t)

            d = tl.arange(0, BLOCK_D)
            in_d = in_h[:, None] & (d < D)[None, :]
            at = v + token * stride_vt + head[:, None] * D + d[None, :]
            value = tl.load(at, mask=in_d, other=0.0).to(tl.float32)
            largest = tl.max(tl.abs(value), axis=1)
            step = step_of(v_scale, head, slot * KH + head, largest, in_h, SCALES, LARGEST)[:, None]
            target = v_cache + (slot * KH + head)[:, None] * D + d[None, :]
            tl.store(target, encode(value, step, LARGEST, INTEGER).to(stored), mask=in_d)


def rope_kv(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cos_sin: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    k_scale: torch.Tensor | None = None,
    v_scale: torch.Tensor | None = None,
) -> None:
    """Rotate q [T, QH, D] in place; rotate k and write k, v [T, KH, D] into the caches at `slots`.

    q, k, v may be views of one [T, (QH + 2 KH) D] projection. Scales: see `rope_kv_kernel`.
    """
    num_tokens, q_heads, head_dim = q.shape
    if any(t.stride(2) != 1 or t.stride(1) != head_dim for t in (q, k, v)):
        raise ValueError("q, k, v need contiguous [heads, head_dim] inside each token")
    if not (k_cache.is_contiguous() and v_cache.is_contiguous()):
        raise ValueError("KV caches must be contiguous")
    scales = NO_SCALES if k_scale is None else HEAD_SCALES if k_scale.ndim == 1 else TOKEN_SCALES
    if num_tokens == 0:
        return
    kv_heads, rotary = k.shape[1], cos_sin.shape[1]
    groups = triton.cdiv(q_heads, BLOCK_HEADS) + triton.cdiv(kv_heads, BLOCK_HEADS)
    rope_kv_kernel[(num_tokens, groups)](
        q, k, v, cos_sin, positions, slots, k_cache, v_cache,
        cos_sin if k_scale is None else k_scale, cos_sin if v_scale is None else v_scale,
        q.stride(0), k.stride(0), v.stride(0),
        **_shape_constants(q_heads, kv_heads, head_dim, rotary),
        SCALES=scales, LARGEST=_largest(k_cache.dtype), INTEGER=k_cache.dtype == torch.int8,
    )  # fmt: skip


def _shape_constants(q_heads: int, kv_heads: int, head_dim: int, rotary: int) -> dict[str, int]:
    return {
        "QH": q_heads, "KH": kv_heads, "D": head_dim, "R": rotary, "BLOCK_H": BLOCK_HEADS,
        "BLOCK_R": triton.next_power_of_2(rotary // 2),
        "BLOCK_TAIL": triton.next_power_of_2(max(head_dim - rotary, 1)),
        "BLOCK_D": triton.next_power_of_2(head_dim),
    }  # fmt: skip


def _largest(dtype: torch.dtype) -> float:
    return {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}.get(dtype, 0.0)


def cos_sin_cache(num_positions: int, rotary: int, base: float = 1e4) -> torch.Tensor:
    """[num_positions, rotary] fp32 on the CPU: cos of rotary/2 angles, then sin."""
    frequency = base ** (-torch.arange(0, rotary, 2, dtype=torch.float64) / rotary)
    angle = torch.arange(num_positions, dtype=torch.float64)[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], 1).float()


def rope_kv_case(
    *, num_tokens: int, num_q_heads: int, num_kv_heads: int, head_dim: int,
    block_tokens: int = 16, dtype: str = "bf16",
) -> Case:  # fmt: skip
    """Tokens scattered over a cache of twice their number."""
    kind = DTYPES[dtype]
    width = (num_q_heads + 2 * num_kv_heads) * head_dim

    def make(device: torch.device, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        qkv = torch.randn(num_tokens, width, device=device, generator=generator).to(kind)
        blocks = -(-2 * num_tokens // block_tokens)
        order = torch.randperm(blocks * block_tokens, device=device, generator=generator)
        caches = torch.zeros(
            2, blocks, block_tokens, num_kv_heads, head_dim, device=device, dtype=kind
        )
        positions = torch.arange(num_tokens, device=device, dtype=torch.int32)
        table = cos_sin_cache(num_tokens, head_dim).to(device)
        return qkv, table, positions, order[:num_tokens], caches[0], caches[1]

    def split(qkv: torch.Tensor) -> tuple[torch.Tensor, ...]:
        heads = qkv.view(num_tokens, -1, head_dim)
        return tuple(torch.split(heads, [num_q_heads, num_kv_heads, num_kv_heads], 1))

    def ours(qkv, table, positions, slots, k_cache, v_cache):
        q, k, v = split(qkv)
        rope_kv(q, k, v, table, positions, slots, k_cache, v_cache)
        return q, k_cache, v_cache

    def by_torch(qkv, table, positions, slots, k_cache, v_cache):
        q, k, v = split(qkv)
        k = rope_reference(k, table, positions.long())
        caches = (write_kv_reference(c, x, slots, 1.0) for c, x in ((k_cache, k), (v_cache, v)))
        return rope_reference(q, table, positions.long()), *caches

    return Case(
        op="rope_kv", dtype=dtype, make_inputs=make, reference=by_torch, tolerance=2e-2,
        shape={
            "num_tokens": num_tokens, "num_q_heads": num_q_heads, "num_kv_heads": num_kv_heads,
            "head_dim": head_dim, "block_tokens": block_tokens,
        },
        flops=3 * num_tokens * (num_q_heads + num_kv_heads) * head_dim, mutates=(0, 4, 5),
        bytes=2 * num_tokens * (width * kind.itemsize + 2 * head_dim),
        providers={"headway": ours},
    )  # fmt: skip


def benchmark_cases() -> list[Case]:
    """Llama-3.1-8B heads from one token to a prefill chunk."""
    return [
        rope_kv_case(num_tokens=t, num_q_heads=32, num_kv_heads=8, head_dim=128)
        for t in (1, 16, 256, 2048, 8192)
    ]


def aot_jobs(target: int) -> list[AotJob]:
    """Plain, e4m3 and int8 caches; full and partial rotation; each kind of scale."""
    variants = [("bf16", 128, 128, 0), ("bf16", 96, 64, 0), ("i8", 128, 128, 2)]
    variants += [("fp8e4nv", 128, 128, 1)] if target >= 90 else []
    largest = {"bf16": 0.0, "i8": 127.0, "fp8e4nv": 448.0}
    signature = {
        **dict.fromkeys(("q", "k", "v"), "*bf16"), "cos_sin": "*fp32", "positions": "*i32",
        "slots": "*i64", "k_scale": "*fp32", "v_scale": "*fp32",
        **dict.fromkeys(("stride_qt", "stride_kt", "stride_vt"), "i32"),
    }  # fmt: skip
    return [
        AotJob(
            kernel="kernels.rope_kv:rope_kv_kernel", target=target,
            config=f"d{head_dim}-r{rotary}-{stored}-scales{scales}",
            signature={**signature, "k_cache": f"*{stored}", "v_cache": f"*{stored}"},
            constants={
                **_shape_constants(32, 8, head_dim, rotary), "SCALES": scales,
                "LARGEST": largest[stored], "INTEGER": stored == "i8",
            },
            divisible=("stride_qt", "stride_kt", "stride_vt"),
        )
        for stored, head_dim, rotary, scales in variants
    ]  # fmt: skip
