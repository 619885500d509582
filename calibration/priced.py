"""Points of a table at the price the engine would pay for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from simulator.costs.attention import attention_time
from simulator.costs.form_base import Array
from simulator.costs.ops import AROUND_EXPERTS, Machine, op_time
from simulator.spec import KV_FORMATS, WEIGHT_FORMATS, AttentionSpec
from simulator.work import AttentionWork, Collective, ExpertGemm, Gemm, attention_work

AS: Mapping[str, str] = {"fp8_block": "fp8"}  # the format a table's label is served in
Key = tuple[Any, ...]


def priced_s(op: str, rows: pd.DataFrame, machine: Machine) -> Array:
    """Seconds of each row; NaN where the engine would not ask for it in this form."""
    columns, price = PRICED[op]
    seconds = np.full(len(rows), np.nan)
    for key, places in rows.groupby(list(columns), sort=True).indices.items():
        found = price(key if isinstance(key, tuple) else (key,), rows.iloc[places], machine)
        if found is not None:
            seconds[places] = found
    return seconds


def _gemm(key: Key, rows: pd.DataFrame, machine: Machine) -> Array | None:
    label, out_size, in_size = key
    fmt = AS.get(label, label)
    if fmt not in WEIGHT_FORMATS:
        return None
    op = Gemm(name="gemm", in_size=int(in_size), out_size=int(out_size), format=fmt)
    return op_time(op, _floats(rows, "num_tokens"), machine)


def _experts(key: Key, rows: pd.DataFrame, machine: Machine) -> Array | None:
    """Both GEMMs and the passes around them; experts of one GPU, equally popular."""
    label, hidden, ffn, num, local, top, is_gated, skew = key
    fmt = AS.get(label, label)
    if fmt not in WEIGHT_FORMATS or local != num or skew or not is_gated:
        return None
    tokens = _floats(rows, "num_tokens")
    moved = 6.0 * ffn * top + 2.0 * hidden * (top + 1.0) + 16.0 * top
    rate = machine.efficiency.elementwise_memory * machine.gpu.memory_bytes_per_s
    seconds: Array = AROUND_EXPERTS * machine.gpu.launch_s + moved / rate * tokens
    for name, in_size, out_size in (("up", hidden, 2 * ffn), ("down", ffn, hidden)):
        op = ExpertGemm(
            name=name,
            in_size=int(in_size),
            out_size=int(out_size),
            format=fmt,
            num_experts=int(num),
            local_experts=int(local),
            experts_per_token=int(top),
        )
        seconds = seconds + op_time(op, tokens, machine)
    return seconds


def _all_reduce(key: Key, rows: pd.DataFrame, machine: Machine) -> Array | None:
    label, num_gpus = key
    if label != "graph":
        return None
    op = Collective(
        name="all_reduce",
        kind="all_reduce",
        bytes_per_token=1.0,
        num_gpus=int(num_gpus),
        local_gpus=int(num_gpus),
    )
    return op_time(op, _floats(rows, "payload_bytes"), machine)


def _decode(key: Key, rows: pd.DataFrame, machine: Machine) -> Array | None:
    work = _work(key)
    if work is None:
        return None
    seqs = _floats(rows, "num_seqs")
    times = attention_time(work, seqs, machine)
    return times.decode_base_s + times.decode_per_token_s * seqs * _floats(rows, "kv_tokens")


def _prefill(key: Key, rows: pd.DataFrame, machine: Machine) -> Array | None:
    *heads, compute = key
    work = _work(tuple(heads))
    if work is None or compute != "bf16":
        return None
    seqs, new = _floats(rows, "num_seqs"), _floats(rows, "num_tokens")
    times = attention_time(work, np.ones(1), machine)
    pairs = seqs * new * (new + 1.0) / 2.0
    linear = times.prefill_base_s + times.prefill_per_token_s * seqs * new
    return linear + times.prefill_per_pair_s * pairs


def _work(key: Key) -> AttentionWork | None:
    kv_format, q_heads, kv_heads, head_dim = key
    if kv_format not in KV_FORMATS:
        return None
    heads = AttentionSpec(
        num_q_heads=int(q_heads), num_kv_heads=int(kv_heads), head_dim=int(head_dim)
    )
    return attention_work(heads, str(kv_format), tp=1)


def _floats(rows: pd.DataFrame, column: str) -> Array:
    return rows[column].to_numpy(dtype=np.float64)


HEADS = ("kv_format", "num_q_heads", "num_kv_heads", "head_dim")
PRICED: Mapping[
    str, tuple[tuple[str, ...], Callable[[Key, pd.DataFrame, Machine], Array | None]]
] = {
    "gemm": (("format", "out_size", "in_size"), _gemm),
    "moe": (
        (
            *("format", "hidden_size", "ffn_size", "num_experts"),
            *("local_experts", "experts_per_token", "is_gated", "skew_percent"),
        ),
        _experts,
    ),
    "all_reduce": (("launch", "num_gpus"), _all_reduce),
    "decode_attention": (HEADS, _decode),
    "prefill_attention": ((*HEADS, "compute_format"), _prefill),
}
