"""Every op with a physical form, and a table's rows as the points its form prices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from simulator.costs.form_attention import DECODE, PREFILL
from simulator.costs.form_base import (
    Array,
    FormBounds,
    OpForm,
    Parameter,
    Parameters,
    Points,
    p_norm,
)
from simulator.costs.form_gemm import GEMM, MOE
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


def _all_reduce_bounds(x: Points, gpu: GpuSpec) -> FormBounds:
    wire = x["payload_bytes"] / gpu.gpu_link.bytes_per_s
    return FormBounds(compute_s=wire, memory_s=0.0 * wire, moved_bytes=x["payload_bytes"])


def _all_reduce_time(p: Parameters, x: Points, gpu: GpuSpec) -> Array:
    """The fastest of one-shot, two-shot and in-switch; see `simulator.costs.collectives`.

    Traffic a GPU receives: (g-1) payload, 2 (g-1)/g payload, and payload. Launches on
    the host, of calls outside a CUDA graph, hide behind the kernels once these are longer.
    """
    wire, gpus = x["payload_bytes"] / gpu.gpu_link.bytes_per_s, x["num_gpus"]
    first = p["one_shot_s"] + p["peer_s"] * (gpus - 2.0) + (gpus - 1.0) * wire / p["one_shot"]
    second = p["two_shot_s"] + 2.0 * (gpus - 1.0) / gpus * wire / p["two_shot"]
    share = np.where(gpus > 2, p["switch"] * np.power(gpus / 4.0, p["wider"] - 1.0), p["pair"])
    third = p["switch_s"] + wire / np.minimum(share, 1.0)
    return p_norm(np.minimum(np.minimum(first, second), third), p["host_s"] + 0.0 * wire, 8.0)


def _all_reduce_features(x: Points, gpu: GpuSpec) -> list[Array]:
    return [np.log2(x["payload_bytes"]), 3.0 * np.log2(x["num_gpus"])]


ALL_REDUCE = OpForm(
    inputs=("num_gpus", "payload_bytes"),
    parameters={
        # Starts: what A100's and B200's tables have in common, so that Hopper is held out.
        "one_shot_s": Parameter(start=5.7e-6, low=1e-6, high=3e-5),
        "peer_s": Parameter(start=1.2e-7, low=1e-9, high=5e-6),
        "one_shot": Parameter(start=0.5, low=0.05, high=1.0),
        "two_shot_s": Parameter(start=1.5e-5, low=1e-6, high=5e-5),
        "two_shot": Parameter(start=0.58, low=0.05, high=1.0),
        "switch_s": Parameter(start=6.6e-5, low=2e-6, high=3e-4),
        "switch": Parameter(start=0.5, low=0.05, high=1.0),
        "wider": Parameter(start=0.9, low=0.7, high=1.6),
        "pair": Parameter(start=0.66, low=0.05, high=1.0),
        "host_s": Parameter(start=6e-6, low=1e-7, high=1e-4),
    },
    time=_all_reduce_time,
    features=_all_reduce_features,
    bounds=_all_reduce_bounds,
)
FORMS: Mapping[str, OpForm] = {
    "gemm": GEMM,
    "prefill_attention": PREFILL,
    "decode_attention": DECODE,
    "moe": MOE,
    "all_reduce": ALL_REDUCE,
}


def points_of(op: str, rows: Mapping[str, Any], gpu: GpuSpec) -> dict[str, Array]:
    """Rows of a table as points: sizes as they are, labels as the numbers the form needs."""
    points = {name: np.asarray(rows[name], dtype=np.float64) for name in FORMS[op].inputs}
    if op in ("gemm", "moe"):
        points |= weight_points(np.asarray(rows["format"], dtype=object), gpu)
    elif op != "all_reduce":
        points["kv_bits"] = _bits(np.asarray(rows["kv_format"], dtype=object))
    if op == "prefill_attention":
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
