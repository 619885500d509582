"""Time of collectives by algorithm and topology. Bytes are per-GPU payload.

Lower bound of every algorithm: the bytes a GPU must send over its slowest link / link bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from simulator.spec import GpuSpec, LinkSpec
from simulator.work import Collective, Tokens

# All-reduce of vLLM's custom kernels in a CUDA graph over NVLink (csrc/custom_all_reduce.cuh),
# fitted to H200: 4.7 / 6.6 / 14 / 87 us at 1 KB / 64 KB / 1 MB / 16 MB on 8 GPUs and
# 4.4 / 4.8 / 8.4 / 77 us on 2 GPUs, within 15 % at 64 KB and 6 % elsewhere.
ONE_SHOT_S = 4.4e-6
ONE_SHOT_PEER_S = 0.05e-6  # per GPU beyond the second
ONE_SHOT_SHARE = 0.52  # of the link
TWO_SHOT_S = 8.8e-6
TWO_SHOT_SHARE = 0.83
# In-switch reduction (NVLink SHARP) for large messages: bus bandwidth 470 GB/s at 1 GiB.
SWITCH_S = 25e-6
SWITCH_SHARE = 0.60
# NCCL 2.29 rings: 16.8 / 26 / 122 us at 1 KB / 1 MB / 16 MB on 8 H200 (14 steps).
RING_S = 8.4e-6
RING_STEP_S = 0.6e-6
RING_SHARE = 0.62
# Point to point: aiconfigurator charges 10 us a message; the share is an assumption.
P2P_SHARE = 0.80
NETWORK_SHARE = 0.80  # of inter_node bandwidth inside a collective; assumption


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveTime:
    """Seconds, and the least seconds the chosen algorithm's traffic takes on the link."""

    time_s: Tokens
    bound_s: Tokens


def has_peer_links(link: LinkSpec) -> bool:
    """NVLink or Infinity Fabric: peers load and store each other's memory directly."""
    return link.name.lower().startswith(("nvlink", "infinity"))


def local_link(gpu: GpuSpec, num_gpus: int) -> LinkSpec:
    """The link of a GPU to `num_gpus - 1` peers of its node.

    Infinity Fabric is a mesh without a switch: a group uses only the links among its members.
    """
    link = gpu.gpu_link
    if not link.name.lower().startswith("infinity"):
        return link
    share = (num_gpus - 1) / max(1, gpu.gpus_per_node - 1)
    return replace(link, bytes_per_s=link.bytes_per_s * min(1.0, share))


def collective_time(op: Collective, tokens: Tokens, gpu: GpuSpec) -> CollectiveTime:
    """Time of a collective over tokens; zero where there is nobody to talk to."""
    payload = op.bytes_per_token * tokens
    if op.num_gpus == 1:
        return CollectiveTime(time_s=0.0 * payload, bound_s=0.0 * payload)
    if op.kind == "p2p":
        return point_to_point(payload, local_link(gpu, 2) if op.local_gpus > 1 else gpu.inter_node)
    if op.kind == "all_reduce":
        return all_reduce(payload, op.num_gpus, op.local_gpus, gpu)
    if op.kind == "all_to_all":
        return all_to_all(payload, op.num_gpus, op.local_gpus, gpu)
    return gather(payload, op.num_gpus, op.local_gpus, gpu)


def all_reduce(payload: Tokens, num_gpus: int, local_gpus: int, gpu: GpuSpec) -> CollectiveTime:
    """All-reduce; over several nodes: reduce-scatter inside, all-reduce across, gather inside.

    The hierarchical form is NCCL's and Horovod's (arXiv 1802.05799): a GPU moves
    2 (g-1)/g * payload inside its node and 2 (m-1)/m * payload / g across m nodes.
    """
    if num_gpus <= local_gpus:
        return _local_all_reduce(payload, num_gpus, gpu)
    nodes = num_gpus // local_gpus
    inside = gather(payload, local_gpus, local_gpus, gpu)
    across = _ring(payload / local_gpus, nodes, gpu.inter_node, passes=2, share=NETWORK_SHARE)
    return CollectiveTime(
        time_s=2 * inside.time_s + across.time_s, bound_s=2 * inside.bound_s + across.bound_s
    )


def _local_all_reduce(payload: Tokens, num_gpus: int, gpu: GpuSpec) -> CollectiveTime:
    """The fastest of one-shot, two-shot, in-switch and ring.

    Traffic a GPU receives: one-shot (g-1) * payload, two-shot and ring 2 (g-1)/g * payload,
    in-switch payload. vLLM uses one-shot only on 2 GPUs.
    """
    link, peers = local_link(gpu, num_gpus), num_gpus - 1
    ring = _ring(payload, num_gpus, link, passes=2, share=RING_SHARE)
    if not has_peer_links(link):
        return ring
    wire = payload / link.bytes_per_s
    one_shot = ONE_SHOT_S + ONE_SHOT_PEER_S * (num_gpus - 2) + peers * wire / ONE_SHOT_SHARE
    if num_gpus == 2:
        return CollectiveTime(time_s=one_shot, bound_s=wire)
    times = [one_shot, TWO_SHOT_S + 2 * peers / num_gpus * wire / TWO_SHOT_SHARE]
    bounds = [peers * wire, 2 * peers / num_gpus * wire]
    if gpu.family.lower().startswith(("hopper", "blackwell")):
        times.append(SWITCH_S + wire / SWITCH_SHARE)
        bounds.append(wire)
    choice = np.argmin(times, axis=0)[None]
    return CollectiveTime(
        time_s=np.take_along_axis(np.array(times), choice, 0)[0],
        bound_s=np.take_along_axis(np.array(bounds), choice, 0)[0],
    )


def gather(payload: Tokens, num_gpus: int, local_gpus: int, gpu: GpuSpec) -> CollectiveTime:
    """All-gather or reduce-scatter of a whole tensor of `payload` bytes: one ring pass.

    Over several nodes the network carries each node's share once, (m-1)/m * payload / g a GPU.
    """
    if num_gpus <= local_gpus:
        return _ring(payload, num_gpus, local_link(gpu, num_gpus), passes=1, share=RING_SHARE)
    nodes = num_gpus // local_gpus
    inside = _ring(payload, local_gpus, local_link(gpu, local_gpus), passes=1, share=RING_SHARE)
    across = _ring(payload / local_gpus, nodes, gpu.inter_node, passes=1, share=NETWORK_SHARE)
    return CollectiveTime(
        time_s=inside.time_s + across.time_s, bound_s=inside.bound_s + across.bound_s
    )


def all_to_all(payload: Tokens, num_gpus: int, local_gpus: int, gpu: GpuSpec) -> CollectiveTime:
    """Each GPU sends payload/g to every other; links inside and across nodes work together."""
    inside = (local_gpus - 1) / num_gpus * payload / gpu.gpu_link.bytes_per_s
    across = (num_gpus - local_gpus) / num_gpus * payload / gpu.inter_node.bytes_per_s
    bound = np.maximum(inside, across)
    latency = RING_S + RING_STEP_S * (num_gpus - 1)
    if num_gpus > local_gpus:
        latency += gpu.inter_node.latency_s
    busiest = np.maximum(inside / RING_SHARE, across / NETWORK_SHARE)
    return CollectiveTime(time_s=latency + busiest, bound_s=bound)


def point_to_point(payload: Tokens, link: LinkSpec) -> CollectiveTime:
    """One message over one link: latency + bytes / (share * bandwidth)."""
    wire = payload / link.bytes_per_s
    return CollectiveTime(time_s=max(link.latency_s, 10e-6) + wire / P2P_SHARE, bound_s=wire)


def _ring(
    payload: Tokens, num_gpus: int, link: LinkSpec, *, passes: int, share: float
) -> CollectiveTime:
    """Ring of g GPUs: passes * (g-1) steps of payload/g (Patarasuk and Yuan 2009)."""
    if num_gpus == 1:
        return CollectiveTime(time_s=0.0 * payload, bound_s=0.0 * payload)
    steps = passes * (num_gpus - 1)
    wire = steps / num_gpus * payload / link.bytes_per_s
    # NVLink's step is the fitted one; elsewhere a hop of the link, software included.
    step = RING_STEP_S if has_peer_links(link) else max(RING_STEP_S, link.latency_s)
    latency = RING_S + steps * step
    return CollectiveTime(time_s=latency + wire / share, bound_s=wire)
