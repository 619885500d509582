"""Attention in seconds: the coefficients of its affine forms, per layer and GPU."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from simulator.costs.attention_fit import DecodeFit, PrefillFit, fit_decode, fit_prefill
from simulator.costs.mla_fit import fit_mla_decode, fit_mla_prefill
from simulator.costs.ops import Machine
from simulator.spec import KV_FORMATS
from simulator.work import AttentionWork, Tokens

DECODE_TILE_TOKENS = 128  # KV tokens of one split of the decode kernel
MLA_HEADS_PER_TILE = 64  # query heads one thread block of FlashMLA serves


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionTime:
    """Coefficients of one layer, in seconds; see `AttentionCost` for the forms."""

    decode_base_s: Tokens  # [num_decode]
    decode_per_token_s: float
    decode_spread_s: Tokens  # [num_decode], a token short of the longest context
    prefill_base_s: float
    prefill_per_token_s: float
    prefill_per_pair_s: float
    prefill_per_context_token_s: float


def attention_time(work: AttentionWork, num_decode: Tokens, machine: Machine) -> AttentionTime:
    """Affine coefficients of decode and prefill attention, measured where there are tables."""
    formula = _formula(work, num_decode, machine)
    if machine.tables is None:
        times = _erring(formula, work, machine, (None, None))
        return _spread(times, work, num_decode, machine)
    if work.mla:
        decode, prefill = fit_mla_decode(work, machine), fit_mla_prefill(work, machine)
    else:
        decode, prefill = fit_decode(work, machine.tables), fit_prefill(work, machine.tables)
    if decode is not None:
        formula = replace(
            formula,
            decode_base_s=np.interp(num_decode, decode.seqs, decode.base_s),
            decode_per_token_s=decode.per_token_s,
        )
    if prefill is not None:
        softcap = machine.efficiency.softcap if work.softcap else 1.0
        formula = replace(
            formula,
            prefill_base_s=prefill.base_s,
            prefill_per_token_s=prefill.per_token_s,
            prefill_per_pair_s=prefill.per_pair_s * softcap,
        )
    times = _erring(formula, work, machine, (decode, prefill))
    return _spread(times, work, num_decode, machine)


def _spread(
    time: AttentionTime, work: AttentionWork, num_decode: Tokens, machine: Machine
) -> AttentionTime:
    """What unequal contexts cost: t_mean + alpha (t_max - t_mean).

    One thread block works on the KV of one sequence and KV head. While all of them fit on the GPU
    at once the longest decides (alpha = `decode_spread`); with more waves of blocks than one,
    short ones fill the gaps that long ones leave, so alpha falls as 1 / waves.
    """
    waves = num_decode * _tiles(work) / machine.gpu.num_sms
    alpha = machine.host.decode_spread / np.maximum(waves, 1.0)
    return replace(time, decode_spread_s=alpha * time.decode_per_token_s)


def _tiles(work: AttentionWork) -> float:
    """Thread blocks that share the KV of a sequence side by side."""
    return max(1.0, work.num_q_heads / MLA_HEADS_PER_TILE) if work.mla else work.num_kv_heads


def _erring(
    times: AttentionTime,
    work: AttentionWork,
    machine: Machine,
    measured: tuple[DecodeFit | None, PrefillFit | None],
) -> AttentionTime:
    """Times of this engine, off by the errors that are drawn; no less than the roofline's."""
    decode, prefill = machine.host.decode_kernels, machine.host.prefill_kernels
    if machine.error is not None:
        drawn = [
            machine.error.attention_factor(name, work, machine.tables if fit else None)
            for name, fit in zip(("decode_attention", "prefill_attention"), measured, strict=True)
        ]
        decode, prefill = decode * drawn[0], prefill * drawn[1]
    elif decode == prefill == 1.0:
        return times
    least_token_s = work.kv_bytes_per_token / machine.gpu.memory_bytes_per_s
    least_pair_s = work.prefill_flops_per_pair / machine.gpu.flops_per_s["bf16"]
    return replace(
        times,
        decode_base_s=decode * times.decode_base_s,
        decode_per_token_s=max(decode * times.decode_per_token_s, least_token_s),
        prefill_base_s=prefill * times.prefill_base_s,
        prefill_per_token_s=prefill * times.prefill_per_token_s,
        prefill_per_pair_s=max(prefill * times.prefill_per_pair_s, least_pair_s),
        prefill_per_context_token_s=prefill * times.prefill_per_context_token_s,
    )


def _formula(work: AttentionWork, num_decode: Tokens, machine: Machine) -> AttentionTime:
    """Affine coefficients from the shares of peak.

    Decode: t0 + c * B * tiles / SMs + tau * B + bytes / (e BW) * (1 + P0 / P), with
    P = tiles * KV tokens / 128. As bytes are proportional to P, P0 is a constant: the time of
    P0 * 128 / tiles tokens. Efficient from the first wave on; ragged lengths count by their sum.
    """
    shares, gpu = machine.efficiency, machine.gpu
    per_token = _decode_token_s(work, machine)
    tiles = _tiles(work)
    base = shares.decode_base_s + per_token * shares.decode_pages * DECODE_TILE_TOKENS / tiles
    wave = shares.decode_wave_s * tiles / gpu.num_sms
    peak = gpu.flops_per_s["bf16"]
    per_pair = work.prefill_flops_per_pair / (shares.prefill_compute * peak)
    if work.softcap:
        per_pair *= shares.softcap
    rate = shares.decode_memory * gpu.memory_bytes_per_s
    moved = (work.prefill_io_bytes_per_token + work.kv_bytes_per_token) / rate
    context = work.kv_bytes_per_token / rate
    context += work.context_flops_per_token / (shares.gemm_compute * peak)
    return AttentionTime(
        decode_base_s=base + (wave + shares.decode_seq_s) * num_decode,
        decode_per_token_s=per_token,
        decode_spread_s=np.zeros_like(num_decode),
        prefill_base_s=shares.prefill_base_s,
        prefill_per_token_s=max(shares.prefill_token_pairs * per_pair, moved),
        prefill_per_pair_s=per_pair,
        prefill_per_context_token_s=context,
    )


def _decode_token_s(work: AttentionWork, machine: Machine) -> float:
    """Seconds a context token: reading its KV, or the arithmetic on it where that is longer."""
    shares, gpu = machine.efficiency, machine.gpu
    memory_share = shares.mla_memory if work.mla else shares.decode_memory
    read = work.kv_bytes_per_token / (memory_share * gpu.memory_bytes_per_s)
    bits = KV_FORMATS[work.kv_format].bits
    if bits < 16:
        read *= max(1.0, shares.decode_quantised * 16 / bits)
    compute_share = shares.mla_compute if work.mla else shares.prefill_compute
    compute = work.decode_flops_per_token / (compute_share * gpu.flops_per_s["bf16"])
    return max(read, compute)
