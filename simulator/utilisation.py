"""FLOPs and bytes of every segment as GPU-seconds at peak, and the MFU and MBU they add up to.

Counted are the matrices every token passes, its routed experts, attention, and the LM head of
sampled tokens; read are the weights once an iteration (of the routed experts, those that are
expected to be hit) and the KV cache of decoding sequences. What an implementation does beyond that
(padding, replicated KV heads, activations, re-reading context in chunked prefill) is not useful
work and lowers MFU and MBU. Each op is measured against the peak of the arithmetic it runs in.

The log keeps sums over sequences, so windowed attention takes the mean context of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator import params
from simulator.costs.beyond import share_beyond
from simulator.costs.roofline import layout_of
from simulator.experiment import Experiment
from simulator.placement import replicas_that_fit
from simulator.segments import SegmentTable
from simulator.spec import WEIGHT_FORMATS, GpuSpec, LayerSpec, ModelSpec
from simulator.work import attention_work

Floats = NDArray[np.float64]
Kinds = list[tuple[LayerSpec, int]]  # layer kinds and how many layers are of each


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentWork:
    """Useful work of each segment on one attention rank, all its GPUs together; [num_segments]."""

    flops: Floats
    memory_bytes: Floats
    compute_s: Floats  # GPU-seconds at peak FLOP/s
    memory_s: Floats  # GPU-seconds at peak bytes/s


def replica_gpus(experiment: Experiment) -> list[GpuSpec]:
    """The GPU of each replica: node groups are filled in order."""
    plan, groups = experiment.plan, experiment.cluster.groups
    gpus = [group.gpu for group in groups for _ in range(replicas_that_fit(plan, group))]
    return (gpus + [groups[-1].gpu] * plan.dp)[: plan.dp]


def extrapolated_share(experiment: Experiment, segments: SegmentTable) -> float:
    """Share of the priced time beyond the measured sizes; of several GPUs, the largest."""
    settings, groups = experiment.settings, experiment.cluster.groups
    if not len(segments):
        return 0.0
    names = np.array([gpu.name for gpu in replica_gpus(experiment)])[segments.replica]
    shares = []
    for group in {group.gpu.name: group for group in groups}.values():
        chosen = names == group.gpu.name
        if chosen.any():
            load = {k: v[chosen].astype(np.float64) for k, v in segments.columns.items()}
            layout = layout_of(experiment.model, experiment.plan, group, settings)
            shares.append(share_beyond(layout, load))
    return max(shares, default=0.0)


def segment_work(experiment: Experiment, segments: SegmentTable) -> SegmentWork:
    """Work of all segments of a run."""
    model = experiment.model
    kinds = [(model.layer_kinds[kind], num) for kind, num in model.kind_counts().items()]
    dense_flops, expert_flops = _linear_flops(model, kinds, segments)
    attention_flops, kv_bytes = _attention(model, kinds, segments)
    width = model.embedding_size or model.hidden_size
    head = model.vocab_size * width  # a tied head computes, and reads, its matrix all the same
    columns = segments.columns
    # Rows of the LM head: a verified draft has one whether or not it is accepted.
    rows = np.maximum(columns["sampled"], columns["num_decode"] + columns["draft_tokens"])
    head_flops = 2.0 * head * rows * columns["iterations"]
    head_bytes = params.PLAIN_BYTES * head * np.minimum(rows, 1)
    weight_bytes = _weight_bytes(model, kinds, segments, experiment.plan.attention_dp)
    memory_bytes = (weight_bytes + head_bytes) * columns["iterations"] + kv_bytes
    compute_s = (
        dense_flops / _peaks(experiment, segments, model.weight_format)
        + expert_flops / _peaks(experiment, segments, model.expert_weight_format)
        + (attention_flops + head_flops) / _peaks(experiment, segments, "bf16")
    )
    bandwidth = np.array([gpu.memory_bytes_per_s for gpu in replica_gpus(experiment)])
    return SegmentWork(
        flops=dense_flops + expert_flops + attention_flops + head_flops,
        memory_bytes=memory_bytes,
        compute_s=compute_s,
        memory_s=memory_bytes / bandwidth[segments.replica],
    )


def mfu_mbu(experiment: Experiment, work: SegmentWork, duration_s: float) -> dict[str, float]:
    """Shares of the plan's peak FLOP/s and bytes/s that useful work took over `duration_s`."""
    gpu_s = experiment.plan.num_gpus * duration_s
    names = {"mfu": work.compute_s, "mbu": work.memory_s}
    return {k: float(v.sum()) / gpu_s if gpu_s > 0 else float("nan") for k, v in names.items()}


def _peaks(experiment: Experiment, segments: SegmentTable, weight_format: str) -> Floats:
    number_format = WEIGHT_FORMATS[weight_format]
    rates = [gpu.compute_flops_per_s(number_format) for gpu in replica_gpus(experiment)]
    return np.array(rates)[segments.replica]


def _tokens(segments: SegmentTable) -> Floats:
    """Tokens of one iteration of each segment."""
    columns = segments.columns
    tokens = columns["num_decode"] + columns["draft_tokens"] + columns["prefill_tokens"]
    return tokens.astype(np.float64)


def _linear_flops(model: ModelSpec, kinds: Kinds, segments: SegmentTable) -> tuple[Floats, Floats]:
    """FLOPs of everything but attention and LM head: dense, and of routed experts."""
    active = sum(num * params.active_layer_params(layer, model) for layer, num in kinds)
    routed = sum(
        num * layer.ffn.experts_per_token * params.expert_params(layer, model)
        for layer, num in kinds
    )
    tokens = _tokens(segments) * segments.columns["iterations"]
    return 2.0 * (active - routed) * tokens, 2.0 * routed * tokens


def _weight_bytes(
    model: ModelSpec, kinds: Kinds, segments: SegmentTable, attention_dp: int
) -> Floats:
    """Layer weights an iteration reads, as one rank's share.

    Attention ranks that iterate together each hold the dense weights, and share the experts: of E
    experts, T tokens of k experts each hit E (1 - (1 - k/E)^T) in expectation.
    """
    tokens = _tokens(segments)
    total = np.zeros(len(segments))
    for layer, num in kinds:
        num_experts, k = layer.ffn.num_experts, layer.ffn.experts_per_token
        expert = params.expert_params(layer, model) * params.bytes_per_param(
            model.expert_weight_format
        ) + params.PLAIN_BYTES * params.expert_bias_params(layer, model)
        total += num * (params.layer_weight_bytes(layer, model) - num_experts * expert)
        if num_experts:
            hit = num_experts * (1.0 - (1.0 - k / num_experts) ** (tokens * attention_dp))
            total += num * expert * hit / attention_dp
    return np.where(tokens > 0, total, 0.0)


def _attention(model: ModelSpec, kinds: Kinds, segments: SegmentTable) -> tuple[Floats, Floats]:
    """FLOPs of attention, and KV bytes its decodes read, of whole segments."""
    columns = segments.columns
    flops, kv_bytes = np.zeros(len(segments)), np.zeros(len(segments))
    for layer, num in kinds:
        work = attention_work(layer.attention, model.kv_format, tp=1)
        pairs = columns["prefill_pairs"].astype(np.float64)
        if work.window:
            pairs = np.minimum(pairs, columns["prefill_tokens"] * float(work.window))
        context = context_tokens(segments, work.window)
        flops += num * work.decode_flops_per_token * context
        flops += num * work.prefill_flops_per_pair * pairs * columns["iterations"]
        kv_bytes += num * work.kv_bytes_per_token * context
    return flops, kv_bytes


def context_tokens(segments: SegmentTable, window: int = 0) -> Floats:
    """Context tokens the decodes of each whole segment read, at most `window` of each sequence.

    A sequence's context grows by one an iteration until it fills the window: g iterations give
    g c + g (g - 1) / 2, the rest give the window.
    """
    columns = segments.columns
    iterations = columns["iterations"].astype(np.float64)
    num_decode = columns["num_decode"]
    first = columns["decode_kv_tokens"] / np.maximum(num_decode, 1)
    if not window:
        return num_decode * (iterations * first + iterations * (iterations - 1) / 2)
    growing = np.clip(np.ceil(window - first), 0, iterations)
    seen: Floats = growing * first + growing * (growing - 1) / 2 + (iterations - growing) * window
    total: Floats = num_decode * seen
    return total
