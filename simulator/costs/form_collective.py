"""Forms of collectives inside a node: the engines' own all-reduce, and NCCL's other kinds."""

from __future__ import annotations

import numpy as np

from simulator.costs.form_base import (
    Array,
    FormBounds,
    OpForm,
    Parameter,
    Parameters,
    Points,
    p_norm,
)
from simulator.spec import GpuSpec

# Payload at which the tables leave one-shot kernels, faster or not: 2 H200s in vLLM take 20.5 us at
# 4 MiB and 43 us at 8 MiB, 2 A100s 25 us and 90 us.
ONE_SHOT_LIMIT = 8.0 * 2**20


def _all_reduce_bounds(x: Points, gpu: GpuSpec) -> FormBounds:
    wire = x["payload_bytes"] / gpu.gpu_link.bytes_per_s
    return FormBounds(compute_s=wire, memory_s=0.0 * wire, moved_bytes=x["payload_bytes"])


def _all_reduce_time(p: Parameters, x: Points, gpu: GpuSpec) -> Array:
    """The fastest of one-shot, two-shot and in-switch; see `simulator.costs.collectives`.

    Traffic a GPU receives: (g-1) payload; payload if the switch sums or copies, 2 (g-1)/g payload
    if peers do, `peers` the mix of the two; and payload. Launches on the host, of calls outside a
    CUDA graph, hide behind the kernels once these are longer.
    """
    wire, gpus = x["payload_bytes"] / gpu.gpu_link.bytes_per_s, x["num_gpus"]
    first = p["one_shot_s"] + p["peer_s"] * (gpus - 2.0) + (gpus - 1.0) * wire / p["one_shot"]
    first = np.where(x["payload_bytes"] < ONE_SHOT_LIMIT, first, np.inf)
    traffic = np.power(2.0 * (gpus - 1.0) / gpus, p["peers"])
    second = p["two_shot_s"] + traffic * wire / p["two_shot"]
    share = np.where(gpus > 2, p["switch"] * np.power(gpus / 4.0, p["wider"] - 1.0), p["pair"])
    third = p["switch_s"] + wire / np.minimum(share, 1.0)
    return p_norm(np.minimum(np.minimum(first, second), third), p["host_s"] + 0.0 * wire, 8.0)


def _features(x: Points, gpu: GpuSpec) -> list[Array]:
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
        "peers": Parameter(start=0.8, low=0.05, high=1.2),
        "switch_s": Parameter(start=6.6e-5, low=2e-6, high=3e-4),
        "switch": Parameter(start=0.5, low=0.05, high=1.0),
        "wider": Parameter(start=0.9, low=0.7, high=1.6),
        "pair": Parameter(start=0.66, low=0.05, high=1.0),
        "host_s": Parameter(start=6e-6, low=1e-7, high=1e-4),
    },
    time=_all_reduce_time,
    features=_features,
    bounds=_all_reduce_bounds,
)


def _ring_wire(x: Points, gpu: GpuSpec) -> Array:
    """Seconds of what a GPU sends of a tensor of `payload_bytes`: (g-1)/g of it."""
    gpus = x["num_gpus"]
    wire: Array = (gpus - 1.0) / gpus * x["payload_bytes"] / gpu.gpu_link.bytes_per_s
    return wire


def _collective_bounds(x: Points, gpu: GpuSpec) -> FormBounds:
    wire = _ring_wire(x, gpu)
    return FormBounds(compute_s=wire, memory_s=0.0 * wire, moved_bytes=x["payload_bytes"])


def _collective_time(p: Parameters, x: Points, gpu: GpuSpec) -> Array:
    """The faster of NCCL's protocols: low latency (a flag with each word), and whole buffers."""
    wire, peers = _ring_wire(x, gpu), x["num_gpus"] - 1.0
    share = np.minimum(p["share"] * np.power(x["num_gpus"] / 4.0, p["wider"] - 1.0), 1.0)
    quick = p["low_latency_s"] + p["step_s"] * peers + wire / p["low_latency"]
    whole = p["simple_s"] + p["step_s"] * peers + wire / share
    time_s: Array = np.minimum(quick, whole)
    return time_s


COLLECTIVE = OpForm(
    inputs=("num_gpus", "payload_bytes"),
    parameters={
        "low_latency_s": Parameter(start=5e-6, low=1e-6, high=5e-5),
        "step_s": Parameter(start=8e-7, low=1e-8, high=1e-5),
        "low_latency": Parameter(start=0.2, low=0.01, high=1.0),
        "simple_s": Parameter(start=1.5e-5, low=1e-6, high=1e-4),
        "share": Parameter(start=0.7, low=0.05, high=1.0),
        "wider": Parameter(start=1.1, low=0.7, high=1.6),
    },
    time=_collective_time,
    features=_features,
    bounds=_collective_bounds,
)
