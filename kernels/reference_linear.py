"""Naive torch truth for the linear, elementwise, sampling and copy kernels: fp32, no cleverness."""

from __future__ import annotations

import torch


def gemm_reference(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """A[M, K] @ B[N, K]^T + bias[N] + residual[M, N]."""
    c = a.float() @ b.float().T
    for extra in (bias, residual):
        c = c if extra is None else c + extra.float()
    return c.to(out_dtype or a.dtype)


def scaled_reference(
    a: torch.Tensor, b: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor
) -> torch.Tensor:
    """Dequantise, multiply: scales per tensor ([1]), or per row of A [M] and of B [N]; fp32."""
    exact = torch.float64 if a.dtype == torch.int8 else torch.float32
    c = (a.to(exact) @ b.to(exact).T).float()
    return c * scale_a.float().reshape(-1, 1) * scale_b.float().reshape(1, -1)


def block_scaled_reference(
    a: torch.Tensor, b: torch.Tensor, scale_a: torch.Tensor, scale_b: torch.Tensor
) -> torch.Tensor:
    """scale_a [M, K/128] over 1x128 of A, scale_b [N/128, K/128] over 128x128 of B; fp32."""
    n, k = b.shape
    a_full = a.float() * scale_a.repeat_interleave(128, 1)[:, :k]
    b_full = b.float() * scale_b.repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
    return a_full @ b_full.T


def quantize_reference(
    x: torch.Tensor, group: int, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric: scale[m, g] = max |x| over a group / largest value; q = x / scale."""
    m, k = x.shape
    groups = -(-k // group)
    padded = torch.zeros(m, groups * group, device=x.device)
    padded[:, :k] = x.float()
    largest = 127.0 if dtype == torch.int8 else torch.finfo(dtype).max
    parts = padded.view(m, groups, group)
    scale = parts.abs().amax(-1).clamp_min(1e-12) / largest
    q = (parts / scale[..., None]).view(m, -1)[:, :k].clamp(-largest, largest)
    return (q.round() if dtype == torch.int8 else q).to(dtype), scale


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """[N, K/2] bytes -> [N, K] values 0..15: in each 128, low nibbles first, then high nibbles."""
    n = packed.shape[0]
    bytes_ = packed.view(n, -1, 64)
    return torch.cat([bytes_ & 15, bytes_ >> 4], dim=2).reshape(n, -1)


def int4_reference(
    a: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
) -> torch.Tensor:
    """A[M, K] @ W[N, K]^T with W = (q - zero) * scale per 128 of K."""
    q = unpack_int4(packed).float()
    spread = [t.float().repeat_interleave(128, 1) for t in (scales, zeros)]
    return (a.float() @ ((q - spread[1]) * spread[0]).T).to(a.dtype)


def moe_reference(
    x: torch.Tensor,  # [T, H]
    gate_up: torch.Tensor,  # [E, 2F, H]
    down: torch.Tensor,  # [E, H, F]
    experts: torch.Tensor,  # [T, top_k]
    weights: torch.Tensor,  # [T, top_k]
) -> torch.Tensor:
    """Each token through its experts' gated feed-forward, weighted sum; [T, H]."""
    out = torch.zeros(x.shape, device=x.device)
    for t, slot in ((t, s) for t in range(x.shape[0]) for s in range(experts.shape[1])):
        e = int(experts[t, slot])
        h = (gate_up[e].float() @ x[t].float()).to(x.dtype)
        h = gated_reference(h[None], "silu")[0]
        out[t] += weights[t, slot].float() * (down[e].float() @ h.float())
    return out.to(x.dtype)


def grouped_reference(
    rows: torch.Tensor, weights: torch.Tensor, experts: torch.Tensor
) -> torch.Tensor:
    """rows [R, K] each times its own expert's [N, K]; experts [R]; [R, N]."""
    out = torch.empty(rows.shape[0], weights.shape[1], device=rows.device)
    for e in range(weights.shape[0]):
        mine = experts == e
        out[mine] = rows[mine].float() @ weights[e].float().T
    return out.to(rows.dtype)


def rmsnorm_reference(
    x: torch.Tensor, residual: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """h = x + residual, kept in x's dtype; (h / rms(h) * weight, h)."""
    h = x if residual is None else (x.float() + residual.float()).to(x.dtype)
    wide = h.float()
    norm = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (norm * weight.float()).to(x.dtype), h


def rope_reference(x: torch.Tensor, cos_sin: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotate the first R channels of [T, heads, D] in halves (GPT-NeoX); cos_sin [P, R] fp32."""
    half = cos_sin.shape[1] // 2
    cos, sin = cos_sin[positions][:, None, :half], cos_sin[positions][:, None, half:]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    turned = torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)
    return torch.cat([turned, x[..., 2 * half :]], -1)


def write_kv_reference(
    cache: torch.Tensor, values: torch.Tensor, slots: torch.Tensor, scale: float
) -> torch.Tensor:
    """cache [blocks, block_tokens, heads, D] with values[t] / scale at slot t; negative: none."""
    wide = values.float() / scale
    if cache.dtype == torch.int8:
        wide = wide.round().clamp(-128, 127)
    out = cache.clone().view(-1, *cache.shape[2:])
    kept = slots >= 0
    out[slots[kept]] = wide[kept].to(cache.dtype)
    return out.view(cache.shape)


def gated_reference(x: torch.Tensor, activation: str) -> torch.Tensor:
    """[T, 2F] -> act(first half) * second half."""
    gate, up = x.float().chunk(2, -1)
    silu = activation == "silu"
    act = torch.nn.functional.silu if silu else _gelu_tanh
    return (act(gate) * up).to(x.dtype)


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


def philox_uniform(seed: int, counters: torch.Tensor) -> torch.Tensor:
    """What tl.rand(seed, counter) returns: ten rounds of Philox 4x32, first word, in [0, 1)."""
    low = 0xFFFFFFFF
    c = [counters.to(torch.int64) & low, *(torch.zeros_like(counters, dtype=torch.int64),) * 3]
    keys = [seed & low, (seed >> 32) & low]
    for _ in range(10):
        highs, lows = zip(*(_multiply(c[i], m) for i, m in ((2, 0xCD9E8D57), (0, 0xD2511F53))),
                          strict=True)  # fmt: skip
        c = [highs[0] ^ c[1] ^ keys[0], lows[0], highs[1] ^ c[3] ^ keys[1], lows[1]]
        keys = [(keys[0] + 0x9E3779B9) & low, (keys[1] + 0xBB67AE85) & low]
    signed = torch.where(c[0] >= 2**31, c[0] - 2**32, c[0])
    return torch.where(signed < 0, -signed - 1, signed).float() * 4.6566127342e-10


def _multiply(x: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of a 32x32 product, within int64 (16 bits of x at a time)."""
    low_part = (x & 0xFFFF) * factor
    high_part = (x >> 16) * factor + (low_part >> 16)
    return (high_part >> 16) & 0xFFFFFFFF, ((high_part & 0xFFFF) << 16) | (low_part & 0xFFFF)


def sample_reference(logits: torch.Tensor, temperature: torch.Tensor, seed: int) -> torch.Tensor:
    """argmax of logits / T + Gumbel noise per row; temperature 0 is the plain argmax."""
    num_rows, vocab = logits.shape
    counters = torch.arange(num_rows * vocab, device=logits.device).view(num_rows, vocab)
    noise = -torch.log(-torch.log(philox_uniform(seed, counters).clamp_min(1e-20)))
    hot = temperature[:, None] > 0
    scores = logits.float() / torch.where(hot, temperature[:, None], 1.0)
    return torch.where(hot, scores + noise, scores).argmax(-1)


def copy_blocks_reference(
    source: torch.Tensor, target: torch.Tensor, pairs: torch.Tensor
) -> torch.Tensor:
    """target with target[to] = source[from] for each row (from, to) of pairs [P, 2]."""
    out = target.clone()
    out[pairs[:, 1].to(out.device)] = source[pairs[:, 0]].to(out.device)
    return out
