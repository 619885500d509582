"""Prices of speculation: one draft step, and the attention of verification, in ticks.

A draft step is an iteration of the draft model on one token a sequence, priced by the same tables
as the target; the first step also computes what the target has just accepted, and prompts.
Verification is the target's own iteration with more tokens; its attention reads each context once
and computes every query-key pair, so it takes the longer of the two.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from simulator.costs.attention import attention_time
from simulator.costs.compiled import TICKS_PER_S, AttentionCost, CompiledCost, to_ticks
from simulator.costs.ops import Machine, machine_of, op_time
from simulator.costs.roofline import Layout, compile_cost, layout_of, stage_attention
from simulator.draft import DraftSpec, split_draft
from simulator.spec import EngineSettings, ModelSpec, NodeGroup, ParallelPlan
from simulator.work import Gemm, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftCost:
    """Prices of one lane's drafting; `linear` is empty where nothing runs on the GPU."""

    linear: list[int]  # [tokens] one step, attention and LM head excepted; [0] = 0
    attention: AttentionCost | None
    logits: list[int]  # [rows]
    host: list[int]  # [sequences with a draft], once a proposal; [0] = 0
    width: int  # tokens of a sequence in every step but the first
    passes_beyond: int

    def steps(self, steps: list[int]) -> tuple[int, int]:
        """Price of passes of so many sequences each, falling: fixed, and a token of mean context.

        The first pass's token-wise ops are apart, as it computes more than one token a sequence.
        """
        attention, linear, logits = self.attention, self.linear, self.logits
        if attention is None:
            return 0, 0
        last = len(steps) - self.passes_beyond
        fixed = slope = 0
        for step, num in enumerate(steps):
            rows = min(num * (self.width if step else 1), len(logits) - 1)
            per_token = attention.decode_per_token[num] * num
            fixed += attention.decode_base[num] + per_token * step
            slope += per_token
            if step:
                fixed += linear[rows]
            if step < last:
                fixed += logits[rows]
        return fixed, slope

    def computes(self, tokens: int) -> int:
        """Token-wise ops on so many tokens, in as few passes as the budget allows."""
        linear = self.linear
        if tokens < len(linear):
            return linear[tokens]
        whole, rest = divmod(tokens, len(linear) - 1)
        return whole * linear[-1] + linear[rest]

    def prompts(self, tokens: int, pairs: int, context: int) -> int:
        """Attention of prompt chunks: tokens, query-key pairs, cached context."""
        attention = self.attention
        if attention is None:
            return 0
        return (
            attention.prefill_base
            + attention.prefill_per_token * tokens
            + attention.prefill_per_pair * pairs
            + attention.prefill_per_context_token * context
        )


def compile_draft(
    spec: DraftSpec,
    target: ModelSpec,
    plan: ParallelPlan,
    group: NodeGroup,
    settings: EngineSettings,
    most_queries: int,
) -> DraftCost:
    """Prices of a drafter beside this target, which verifies up to so many tokens a sequence.

    Raises:
        InfeasiblePlan: the draft model cannot be split as asked.
    """
    num_seqs = np.arange(settings.max_num_seqs + 1, dtype=np.float64)
    host_s = np.where(num_seqs > 0, spec.host_s + spec.host_seq_s * num_seqs, 0.0)
    host = np.rint(host_s * TICKS_PER_S).astype(np.int64).tolist()
    if spec.model is None:
        return DraftCost(linear=[], attention=None, logits=[], host=host, width=1, passes_beyond=0)
    split = split_draft(spec, plan)
    cost = compile_cost(spec.model, split, group, widened(settings, most_queries))
    stage = cost.stages[0]
    linear = np.array(stage.linear)
    if spec.extra_gemms:
        tokens = np.arange(len(linear), dtype=np.float64)
        extra_s = _extra_s(spec, split, tokens, machine_of(group, settings))
        linear = linear + np.rint(extra_s * TICKS_PER_S).astype(np.int64)
        linear[0] = 0
    attention = _summed(stage.attention)
    layers = spec.model.num_layers
    if spec.extra_attention:
        attention = _scaled(attention, layers + spec.extra_attention, layers)
    return DraftCost(
        linear=linear.tolist(),
        attention=attention,
        logits=cost.logits,
        host=host,
        width=spec.width,
        passes_beyond=spec.passes_beyond,
    )


def _extra_s(spec: DraftSpec, split: ParallelPlan, tokens: Tokens, machine: Machine) -> Tokens:
    total = np.zeros_like(tokens)
    for in_size, out_size in spec.extra_gemms:
        op = Gemm(name="draft_proj", in_size=in_size, out_size=out_size // split.tp, format="bf16")
        total += op_time(op, np.maximum(tokens, 1.0), machine)
    return total


def _summed(costs: tuple[AttentionCost, ...]) -> AttentionCost:
    """Layers of several windows as one: a draft model's context is counted whole."""
    first, *others = costs
    for other in others:
        first = replace(
            first,
            window=0,
            decode_base=[a + b for a, b in zip(first.decode_base, other.decode_base, strict=True)],
            decode_per_token=[
                a + b for a, b in zip(first.decode_per_token, other.decode_per_token, strict=True)
            ],
            prefill_base=first.prefill_base + other.prefill_base,
            prefill_per_token=first.prefill_per_token + other.prefill_per_token,
            prefill_per_pair=first.prefill_per_pair + other.prefill_per_pair,
            prefill_per_context_token=first.prefill_per_context_token
            + other.prefill_per_context_token,
        )
    return first


def _scaled(cost: AttentionCost, times: int, over: int) -> AttentionCost:
    return replace(
        cost,
        decode_base=[x * times // over for x in cost.decode_base],
        decode_per_token=[x * times // over for x in cost.decode_per_token],
        prefill_base=cost.prefill_base * times // over,
        prefill_per_token=cost.prefill_per_token * times // over,
        prefill_per_pair=cost.prefill_per_pair * times // over,
        prefill_per_context_token=cost.prefill_per_context_token * times // over,
    )


def widened(settings: EngineSettings, most_queries: int) -> EngineSettings:
    """Tables, and CUDA graphs, for so many query tokens a sequence (vLLM captures up to that)."""
    rows = min(settings.max_num_batched_tokens, settings.max_num_seqs * most_queries)
    return replace(settings, max_num_seqs=rows)


def compile_verification(
    spec: DraftSpec,
    target: ModelSpec,
    plan: ParallelPlan,
    group: NodeGroup,
    settings: EngineSettings,
    most_queries: int,
) -> tuple[CompiledCost, tuple[int, ...]]:
    """The target's prices when it verifies, and ticks a query-key pair of each of its windows.

    LM head and sampling run on every verified token, and the layers the drafter has done are left
    out.
    """
    model = target
    if spec.skipped_layers:
        model = replace(target, layer_order=target.layer_order[spec.skipped_layers :])
    wide = widened(settings, most_queries)
    cost = compile_cost(model, plan, group, wide)
    layout = layout_of(model, plan, group, wide)
    pairs = tuple(pair_ticks(window, layout) for window in cost.windows)
    return replace(cost, max_num_seqs=settings.max_num_seqs), pairs


def pair_ticks(window: int, layout: Layout) -> int:
    """Arithmetic of one query-key pair in the layers of a window, all of one stage."""
    machine = layout.machine
    seconds = 0.0
    for kind, num in stage_attention(window, layout, layout.stages[0]):
        work = layout.kinds[kind].attention
        if work.mla:  # verification is absorbed, as decode is
            peak = machine.gpu.flops_per_s["bf16"] * machine.efficiency.mla_compute
            seconds += num * work.decode_flops_per_token / peak
        else:
            seconds += num * attention_time(work, np.ones(1), machine).prefill_per_pair_s
    return to_ticks(seconds)
