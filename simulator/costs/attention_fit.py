"""Measured attention as the affine forms the engine adds up.

The engine needs decode at a fixed number of sequences affine in their KV tokens, and prefill linear
in tokens and query-key pairs. These are relative least-squares fits to the tables over the lengths
that serving meets; what they lose against the curve is about what the curve loses against the
measurements.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from simulator.costs.form_base import Array
from simulator.costs.tables import CostTables
from simulator.spec import KV_FORMATS, GpuSpec
from simulator.work import AttentionWork

SEQS: Array = np.unique(np.rint(2.0 ** np.arange(0.0, 11.1, 0.5)))
CONTEXTS: Array = 2.0 ** np.arange(7.0, 15.1)  # tokens of each sequence
MOST_KV = 2.0**22  # tokens of a batch: more than memory holds
CHUNKS: Array = 2.0 ** np.arange(5.0, 14.1, 0.5)
PROMPTS: Array = np.array([1.0, 2.0, 4.0, 8.0])  # chunks of one iteration
MOST_NEW = 16384.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodeFit:
    """base(B) + per_token * KV tokens of the batch, seconds."""

    seqs: Array
    base_s: Array  # at `seqs`
    per_token_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefillFit:
    """base + per_token * tokens + per_pair * query-key pairs, seconds."""

    base_s: float
    per_token_s: float
    per_pair_s: float


def head_points(work: AttentionWork, size: int) -> dict[str, Array]:
    """Inputs of attention that do not vary with the batch; the engine counts windows itself."""
    kv_format = KV_FORMATS[work.kv_format]
    head_dim = work.decode_flops_per_token / (4.0 * work.num_q_heads)
    values = {
        "num_q_heads": work.num_q_heads,
        "num_kv_heads": work.num_kv_heads,
        "head_dim": head_dim,
        "window": 0.0,
        "kv_bits": kv_format.bits,
    }
    return {name: np.full(size, float(value)) for name, value in values.items()}


def decode_grid() -> tuple[Array, Array]:
    """Sequences and the context of each, over the lengths that serving meets."""
    seqs, contexts = np.meshgrid(SEQS, CONTEXTS, indexing="ij")
    return seqs.ravel(), contexts.ravel()


def prefill_grid() -> tuple[Array, Array]:
    """Chunks of one iteration and the tokens of each."""
    prompts, chunks = (grid.ravel() for grid in np.meshgrid(PROMPTS, CHUNKS, indexing="ij"))
    fits = prompts * chunks <= MOST_NEW
    return prompts[fits], chunks[fits]


@lru_cache(maxsize=1024)
def fit_decode(work: AttentionWork, tables: CostTables) -> DecodeFit | None:
    """Decode of the paged kernels; None = no table."""
    curve = tables.curve("decode_attention")
    if curve is None:
        return None
    seqs, contexts = decode_grid()
    points = head_points(work, len(seqs)) | {"num_seqs": seqs, "kv_tokens": contexts}
    # A thread block serves one sequence and KV head: more KV heads than were measured are priced as
    # more sequences of fewer heads, with as many blocks and bytes.
    more = -(-work.num_kv_heads // curve.ranges["num_kv_heads"][1])
    if more > 1:
        points |= {name: points[name] / more for name in ("num_q_heads", "num_kv_heads")}
        points["num_seqs"] = seqs * more
    measured = tables.attention_s("decode_attention", points)
    if measured is None:
        return None
    return affine_decode(measured, measured, work, tables.gpu)


def affine_decode(seconds: Array, scale: Array, work: AttentionWork, gpu: GpuSpec) -> DecodeFit:
    """One slope for every batch, so that a price never falls as sequences join.

    Alternates between the base of each batch, given the slope, and the slope given the bases.
    `seconds` on `decode_grid`; a miss counts relative to `scale`.
    """
    shape = (len(SEQS), len(CONTEXTS))
    seqs, contexts = decode_grid()
    kv, times = (seqs * contexts).reshape(shape), seconds.reshape(shape)
    weight = np.where(kv <= MOST_KV, 1.0 / scale.reshape(shape) ** 2, 0.0)
    least = work.kv_bytes_per_token / gpu.memory_bytes_per_s
    slope, base = least, np.zeros(len(SEQS))
    for _ in range(30):
        base = np.maximum((weight * (times - slope * kv)).sum(1) / weight.sum(1), 0.0)
        rest = weight * kv * (times - base[:, None])
        slope = max(float(rest.sum() / (weight * kv * kv).sum()), least)
    return DecodeFit(seqs=SEQS, base_s=np.maximum.accumulate(base), per_token_s=slope)


@lru_cache(maxsize=1024)
def fit_prefill(work: AttentionWork, tables: CostTables) -> PrefillFit | None:
    """Prefill of the paged kernels; None = no table."""
    prompts, chunks = prefill_grid()
    points = head_points(work, len(chunks)) | {
        "num_seqs": prompts,
        "num_tokens": chunks,
        "context_tokens": np.zeros(len(chunks)),
        "compute_bits": np.full(len(chunks), 16.0),
    }
    measured = tables.attention_s("prefill_attention", points)
    return None if measured is None else affine_prefill(measured, measured, work, tables.gpu)


def affine_prefill(seconds: Array, scale: Array, work: AttentionWork, gpu: GpuSpec) -> PrefillFit:
    """Non-negative coefficients no faster than the roofline.

    `seconds` on `prefill_grid`; a miss counts relative to `scale`.
    """
    prompts, chunks = prefill_grid()
    new = prompts * chunks
    columns = np.stack([np.ones(len(new)), new, new * (chunks + 1.0) / 2.0], axis=1)
    moved = work.prefill_io_bytes_per_token + work.kv_bytes_per_token
    least = np.array(
        [
            0.0,
            moved / gpu.memory_bytes_per_s,
            work.prefill_flops_per_pair / gpu.flops_per_s["bf16"],
        ]
    )
    base, per_token, per_pair = least + _non_negative(
        columns / scale[:, None], (seconds - columns @ least) / scale
    )
    return PrefillFit(base_s=float(base), per_token_s=float(per_token), per_pair_s=float(per_pair))


def _non_negative(columns: Array, target: Array) -> Array:
    """Least squares with coefficients >= 0: the best of every subset of the few columns."""
    number = columns.shape[1]
    best, least = np.zeros(number), float(target @ target)
    for subset in range(1, 1 << number):
        chosen = [i for i in range(number) if subset >> i & 1]
        found = np.linalg.lstsq(columns[:, chosen], target, rcond=None)[0]
        miss = target - columns[:, chosen] @ found
        if (found >= 0).all() and float(miss @ miss) < least:
            best, least = np.zeros(number), float(miss @ miss)
            best[chosen] = found
    return best
