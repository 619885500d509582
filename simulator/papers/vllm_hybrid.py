"""vLLM's hybrid KV-cache manager: one page size, layers in groups of equal size and kind."""

from __future__ import annotations

from dataclasses import replace

from simulator.batch import PageLayout
from simulator.engine import prepare
from simulator.memory import kv_capacity
from simulator.papers.case import Case, Changes, Line, Measure, Picture

GPT_OSS: Changes = {"model": "gpt-oss-120b", "plan": {"tp": 1}}
GIB = 2**30


def blocks_of_the_example(case: Case) -> float:
    """Blocks of 112 tokens with 10 full and 20 window layers: block 16, window 32."""
    return float(PageLayout(16, 1, ((32, 2),)).pages(112))


def concurrency_gain(case: Case) -> float:
    """Requests of 8K on Gemma-2-27B, windows freed over windows kept."""
    kind = prepare(case.experiment()).kinds[0]
    uniform = PageLayout(kind.layout.block_tokens, kind.layout.most)
    return (kind.num_pages / kind.layout.pages(8192)) / (kind.num_pages / uniform.pages(8192))


def _gib_of_128k(windows: str) -> Measure:
    def gib(case: Case) -> float:
        """KV of one request of 128K on gpt-oss-120b."""
        subject = case.experiment(GPT_OSS)
        kind = prepare(subject).kinds[0]
        group = subject.cluster.groups[0]
        page = kv_capacity(subject.model, subject.plan, group.gpu, subject.settings).block_bytes
        layout = kind.layout
        if windows == "kept":
            layout = PageLayout(layout.block_tokens, layout.most)
        return layout.pages(131072) * page / GIB

    return gib


def gemma_3_padding(case: Case) -> float:
    """Layers that pad Gemma-3-27B's groups: 10 full layers, 52 with a window of 1,024."""
    subject = case.experiment()
    gemma = subject.model
    full = next(kind for kind in gemma.layer_kinds if not kind.attention.window)
    window = replace(full, attention=replace(full.attention, window=1024))
    model = replace(gemma, layer_kinds=(full, window), layer_order=((1,) * 5 + (0,)) * 10 + (1, 1))
    capacity = kv_capacity(model, subject.plan, subject.cluster.groups[0].gpu, subject.settings)
    groups = capacity.blocks_full_weight + sum(num for _, num in capacity.window_weights)
    return float(groups * 10 - 62)


MEASURES: dict[str, Measure] = {
    "blocks_of_the_example": blocks_of_the_example,
    "concurrency_gain": concurrency_gain,
    "gib_kept": _gib_of_128k("kept"),
    "gib_freed": _gib_of_128k("freed"),
    "gemma_3_padding": gemma_3_padding,
}


def picture(case: Case) -> Picture:
    """KV of one request over its length."""
    layout = prepare(case.experiment()).kinds[0].layout
    uniform = PageLayout(layout.block_tokens, layout.most)
    tokens = tuple(float(n) for n in range(0, 8193, 64))
    lines = [
        Line(label=name, x=tokens, y=tuple(float(pages.pages(int(n))) for n in tokens))
        for name, pages in (("all layers keep all", uniform), ("windows freed", layout))
    ]
    return Picture(
        title="Gemma-2-27B: KV pages of one request",
        x_label="tokens",
        y_label="pages",
        lines=tuple(lines),
    )
