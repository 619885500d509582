"""Every op with a physical form, and a table's rows as the points its form prices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from simulator.costs.form_attention import DECODE, PREFILL
from simulator.costs.form_base import Array, OpForm
from simulator.costs.form_collective import ALL_REDUCE, COLLECTIVE
from simulator.costs.form_gemm import GEMM, MOE
from simulator.costs.form_mla import MLA_DECODE, MLA_PREFILL
from simulator.errors import unknown_name
from simulator.spec import KV_FORMATS, GpuSpec

# Bits a weight takes, scales included, and the arithmetic it is multiplied in.
WEIGHTS: Mapping[str, tuple[float, str]] = {
    "bf16": (16.0, "bf16"),
    "fp8": (8.0, "fp8"),
    "fp8_block": (8.0, "fp8"),
    "int8": (8.0, "int8"),
    "int8_wo": (8.0, "bf16"),
    "int4_g128": (4.0 + 20 / 128, "bf16"),
    "mxfp4": (4.25, "bf16"),
    "nvfp4": (4.5, "fp4"),
    "w4a8_mxfp4_mxfp8": (4.25, "fp8"),
}
FORMS: Mapping[str, OpForm] = {
    "gemm": GEMM,
    "prefill_attention": PREFILL,
    "decode_attention": DECODE,
    "mla_prefill_block": MLA_PREFILL,
    "mla_decode_block": MLA_DECODE,
    "moe": MOE,
    "all_reduce": ALL_REDUCE,
    "collective": COLLECTIVE,
}


def points_of(op: str, rows: Mapping[str, Any], gpu: GpuSpec) -> dict[str, Array]:
    """Rows of a table as points: sizes as they are, labels as the numbers the form needs."""
    points = {name: np.asarray(rows[name], dtype=np.float64) for name in FORMS[op].inputs}
    if "format" in rows:
        points |= weight_points(np.asarray(rows["format"], dtype=object), gpu)
    if "kv_format" in rows:
        points["kv_bits"] = _bits(np.asarray(rows["kv_format"], dtype=object))
    if "compute_format" in rows:
        points["compute_bits"] = _bits(np.asarray(rows["compute_format"], dtype=object))
    return points


def weight_points(formats: Any, gpu: GpuSpec) -> dict[str, Array]:
    """Bits and peak of each weight format; bf16's peak where the GPU lacks the arithmetic."""
    names, which = np.unique(formats.astype(str), return_inverse=True)
    for name in names:
        if name not in WEIGHTS:
            raise unknown_name("weight format", str(name), WEIGHTS)
    bits = np.array([WEIGHTS[str(name)][0] for name in names])
    bf16 = gpu.flops_per_s["bf16"]
    peaks = np.array([gpu.flops_per_s.get(WEIGHTS[str(name)][1], bf16) for name in names])
    return {"weight_bits": bits[which], "peak_flops": peaks[which]}


def _bits(formats: Any) -> Array:
    names, which = np.unique(formats.astype(str), return_inverse=True)
    for name in names:
        if name not in KV_FORMATS:
            raise unknown_name("KV format", str(name), KV_FORMATS)
    bits: Array = np.array([float(KV_FORMATS[str(name)].bits) for name in names])[which]
    return bits
