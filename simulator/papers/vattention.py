"""vAttention (ASPLOS'25): KV in contiguous virtual memory, mapped by page-groups on demand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.costs.compiled import AttentionCost, CompiledCost
from simulator.engine import prepare, run
from simulator.memory import kv_capacity
from simulator.papers.case import Case, Changes, Line, Measure, Picture
from simulator.recorder import Result

KIB, MIB = 2**10, 2**20
YI_34B: Changes = {"model": "yi-34b-200k.json", "cluster": "2xA100-80-SXM", "plan": {"tp": 2}}
LLAMA: Changes = {"model": "llama-3-8b", "cluster": "2xA100-80-SXM", "plan": {"tp": 2}}
# One request alone, so that every iteration but those that grow its KV costs the same.
ALONE = {"workload.num_prompts": 1, "workload.input_len": 200, "workload.output_len": 300}
# The offline trace: 427 prompts of 63,862 to 192,786 tokens (mean 87,426) in chunks of 16,384.
OFFLINE: Changes = {
    "workload.num_prompts": 427,
    "workload.input_len": {"kind": "pareto", "low": 63862, "high": 192786, "alpha": 3.17},
    "workload.output_len": {"kind": "exponential", "mean": 428, "low": 16, "high": 4000},
    "engine.max_num_batched_tokens": 16384,
    "engine.max_num_seqs": 64,
    "engine.max_model_len": 200000,
}
# FlashAttention-2's prefill kernel with a block table takes so much longer by the paper's own
# measurement (at 192K tokens); its decode kernel is as fast. Blocks of 256 tokens.
PAGED_PREFILL = 1.24
PAGED: Changes = {"allocator": "paged", "engine.block_tokens": 256}


def pages_of(size: int, **keys: object) -> dict[str, object]:
    """An allocator with page-groups of so many bytes."""
    return {f"allocator.{key}": value for key, value in keys.items()} | {
        "allocator.page_group_bytes": size
    }


def _tokens(size: int, model: Changes) -> Measure:
    def tokens(case: Case) -> float:
        """Tokens of a page-group."""
        subject = case.experiment({**model, **pages_of(size)})
        return float(prepare(subject).kinds[0].layout.block_tokens)

    return tokens


def _tail_mib(size: int, model: Changes) -> Measure:
    def tail(case: Case) -> float:
        """Expected waste of a request's last page on a worker: half a group in 2 N tensors."""
        subject = case.experiment({**model, **pages_of(size)})
        block = prepare(subject).kinds[0].layout.block_tokens
        case_settings = {"engine.block_tokens": block}
        sized = case.experiment({**model, **pages_of(size), **case_settings})
        group = sized.cluster.groups[0]
        capacity = kv_capacity(sized.model, sized.plan, group.gpu, sized.settings)
        return capacity.block_bytes / 2 / MIB

    return tail


def mean_batch(result: Result) -> float:
    """Mean running requests while some still wait."""
    segments = result.lanes[0].segments
    full = segments["waiting"] > 0
    counts = segments["num_decode"] + segments["num_prefill"]
    return float(np.average(counts[full], weights=segments["iterations"][full]))


def batch_ratio(case: Case) -> float:
    """Requests that run together with groups of 64 KiB, over 2 MiB."""
    sizes = {"workload.num_prompts": case.choose(900, 500)}
    batches = [mean_batch(case.simulate({**pages_of(n), **sizes})) for n in (64 * KIB, 2 * MIB)]
    return batches[0] / batches[1]


def _spike_ms(background: bool) -> Measure:
    def spike(case: Case) -> float:
        """What an iteration that grows Yi-34B's KV takes longer than its neighbours."""
        changes = pages_of(64 * KIB, background=background)
        result = case.simulate({**YI_34B, **ALONE, **changes})
        took_ms = np.diff(result.lanes[0].end_ns[1:]) / 1e6
        return float(took_ms.max() - np.median(took_ms))

    return spike


def maps_saved(case: Case) -> float:
    """Share of the mapped pages that deferred reclamation saves, for requests of equal length."""
    pages = []
    alike: dict[str, object] = {
        "workload.input_len": 4000,
        "workload.num_prompts": case.choose(1000, 500),
    }
    alike["workload.request_rate"] = "1 /s"  # memory is not full: else growth takes idle slots back
    for defers in (True, False):
        changes = pages_of(64 * KIB, defer_reclamation=defers)
        pages.append(case.simulate({**alike, **changes}).counters["pages_mapped"])
    return 1 - pages[0] / pages[1]


def with_block_tables(cost: CompiledCost) -> CompiledCost:
    """Prices whose prefill attention looks its blocks up."""

    def slower(one: AttentionCost) -> AttentionCost:
        return replace(
            one,
            prefill_base=round(PAGED_PREFILL * one.prefill_base),
            prefill_per_token=round(PAGED_PREFILL * one.prefill_per_token),
            prefill_per_pair=round(PAGED_PREFILL * one.prefill_per_pair),
            prefill_per_context_token=round(PAGED_PREFILL * one.prefill_per_context_token),
        )

    stages = (replace(s, attention=tuple(map(slower, s.attention))) for s in cost.stages)
    return replace(cost, stages=tuple(stages))


def _makespan(model: Changes) -> Measure:
    def makespan(case: Case) -> float:
        """Time to serve the offline trace with block tables over without."""
        load = {**OFFLINE, "workload.num_prompts": case.choose(427, 120)}
        setup = prepare(case.experiment({**model, **load, **PAGED}))
        kinds = (replace(kind, cost=with_block_tables(kind.cost)) for kind in setup.kinds)
        paged = run(replace(setup, kinds=tuple(kinds)))
        return paged.end_ns / case.simulate({**model, **load}).end_ns

    return makespan


MEASURES: dict[str, Measure] = {
    "makespan_yi_6b": _makespan({}),
    "makespan_yi_34b": _makespan(YI_34B),
    "tokens_64k": _tokens(64 * KIB, YI_34B),
    "tokens_2m": _tokens(2 * MIB, LLAMA),
    "tokens_2m_yi_6b": _tokens(2 * MIB, {}),
    "tail_2m_32": _tail_mib(2 * MIB, {}),
    "tail_2m_60": _tail_mib(2 * MIB, YI_34B),
    "tail_64k_60": _tail_mib(64 * KIB, YI_34B),
    "batch_ratio": batch_ratio,
    "spike_sync": _spike_ms(False),
    "spike_async": _spike_ms(True),
    "maps_saved": maps_saved,
}


def picture(case: Case) -> Picture:
    """Iteration times of one request on Yi-34B, with and without the background thread."""
    lines = []
    for name, background in (("mapped when needed", False), ("mapped in the background", True)):
        changes = pages_of(64 * KIB, background=background)
        result = case.simulate({**YI_34B, **ALONE, **changes})
        took_ms = tuple((np.diff(result.lanes[0].end_ns) / 1e6).tolist())
        lines.append(Line(label=name, x=tuple(float(i) for i in range(len(took_ms))), y=took_ms))
    return Picture(
        title="Yi-34B, page-groups of 64 KiB",
        x_label="output token",
        y_label="iteration (ms)",
        lines=tuple(lines),
    )
