"""Multi-head latent attention from measurements of DeepSeek-V3's whole attention block.

The engine prices projections, rope and norms with the other token-wise ops. Attention is what the
measured block takes beyond these, so that an iteration adds up to the measurement. The rest knows
neither hidden size nor rank of the queries, so it serves every model with the same latent and
heads (V2, V2-Lite, Kimi K2).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from simulator.catalog import load_model
from simulator.costs.attention_fit import (
    DecodeFit,
    PrefillFit,
    affine_decode,
    affine_prefill,
    decode_grid,
    prefill_grid,
)
from simulator.costs.form_base import Array, Points
from simulator.costs.forms import weight_points
from simulator.costs.ops import Machine, op_time
from simulator.sharding import LayerWork, layer_work
from simulator.spec import KV_FORMATS, ParallelPlan
from simulator.work import AttentionWork

MEASURED = "deepseek-v3"
INSIDE = ("q_kv_a_proj", "qk_norm", "q_b_proj", "k_up", "rope", "kv_write", "v_up", "out_proj")


def fit_mla_decode(work: AttentionWork, machine: Machine) -> DecodeFit | None:
    """Decode beyond the projections; None = not measured."""
    seqs, contexts = decode_grid()
    block = _block_s("mla_decode_block", work, machine, {"num_seqs": seqs, "kv_tokens": contexts})
    if block is None:
        return None
    rest = block - _projections_s(work, seqs, machine)
    return affine_decode(rest, block, work, machine.gpu)


def fit_mla_prefill(work: AttentionWork, machine: Machine) -> PrefillFit | None:
    """Prefill beyond the projections; None = not measured."""
    prompts, chunks = prefill_grid()
    block = _block_s(
        "mla_prefill_block", work, machine, {"num_seqs": prompts, "num_tokens": chunks}
    )
    if block is None:
        return None
    rest = block - _projections_s(work, prompts * chunks, machine)
    return affine_prefill(rest, block, work, machine.gpu)


def _block_s(op: str, work: AttentionWork, machine: Machine, sizes: Points) -> Array | None:
    """Seconds of DeepSeek-V3's block with as many heads, its weights in bf16."""
    measured = _measured_layer(work.num_q_heads, work.kv_format)
    if machine.tables is None or measured is None or measured.attention != work:
        return None
    number = len(sizes["num_seqs"])
    points = {**sizes, **weight_points(np.full(number, "bf16", dtype=object), machine.gpu)}
    points["num_q_heads"] = np.full(number, float(work.num_q_heads))
    points["kv_bits"] = np.full(number, float(KV_FORMATS[work.kv_format].bits))
    return machine.tables.attention_s(op, points)


def _projections_s(work: AttentionWork, tokens: Array, machine: Machine) -> Array:
    """Seconds of the same block's token-wise ops, as the engine prices them."""
    measured = _measured_layer(work.num_q_heads, work.kv_format)
    total = np.zeros_like(tokens)
    for op in measured.linear if measured else ():
        if op.name in INSIDE:
            total += op_time(op, tokens, machine)
    return total


@lru_cache(maxsize=64)
def _measured_layer(num_q_heads: int, kv_format: str) -> LayerWork | None:
    """A layer of the measured model on a GPU with so many of its heads; None = no such split."""
    model = load_model(MEASURED, weight_format="bf16", kv_format=kv_format)
    layer = model.layer_kinds[0]
    if layer.attention.num_q_heads % num_q_heads:
        return None
    plan = ParallelPlan(tp=layer.attention.num_q_heads // num_q_heads)
    return layer_work(layer, model, plan, gpus_per_node=plan.tp)
