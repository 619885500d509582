"""vLLM's hybrid KV-cache manager: one page size, layers in groups of equal size and kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from simulator.allocators import Hybrid, Pool
from simulator.allocators.prefix import PrefixIndex
from simulator.allocators.typed import TypedAllocator
from simulator.batch import PageLayout
from simulator.engine import prepare
from simulator.memory import KvType, kv_capacity
from simulator.papers.case import Case, Changes, Line, Measure, Picture
from simulator.request import RequestTable, Sequence

GPT_OSS: Changes = {"model": "gpt-oss-120b", "plan": {"tp": 1}}
GIB = 2**30


def example_table(prompt_tokens: int, block: int) -> RequestTable:
    """One request, with a name for each block."""
    blocks = -(-prompt_tokens // block)
    return RequestTable(
        arrival_ns=np.zeros(1, dtype=np.int64),
        prompt_tokens=np.array([prompt_tokens]),
        output_tokens=np.ones(1, dtype=np.int64),
        hash_ids=np.arange(blocks),
        hash_offsets=np.array([0, blocks]),
        hash_block_tokens=block,
    )


def example(window: int, groups: int, prompt_tokens: int, block: int, full: int = 1) -> Pool:
    """A pool for full layers (or none) and so many groups of layers with a window."""
    types = ((KvType(0, 1.0),) if full else ()) + (KvType(window, float(groups)),)
    return Pool(
        num_pages=1000,
        layout=PageLayout(block, full, ((window, groups),)),
        table=example_table(prompt_tokens, block),
        max_model_len=1000,
        types=types,
        num_bytes=1000.0 * block,
        max_num_tokens=prompt_tokens,
    )


def manager(pool: Pool) -> TypedAllocator:
    made = Hybrid().build(pool)
    assert isinstance(made, TypedAllocator)
    return made


def blocks_of_the_example(case: Case) -> float:
    """Blocks of 112 computed tokens with 10 full and 20 window layers: block 16, window 32."""
    hybrid, seq = manager(example(32, 2, 112, 16)), Sequence(0, 112, 1)
    hybrid.claim(seq, 0)
    hybrid.grow([(seq, 112)])
    hybrid.slide(seq, 112)
    return float(hybrid.num_pages - hybrid.free_pages)


def blocks_in_flight(case: Case) -> float:
    """And while a chunk of 64 tokens after the first 64 is computed."""
    hybrid, seq = manager(example(32, 2, 128, 16)), Sequence(0, 128, 1)
    hybrid.claim(seq, 0)
    hybrid.grow([(seq, 64)])
    hybrid.slide(seq, 64)
    hybrid.grow([(seq, 128)])
    return float(hybrid.num_pages - hybrid.free_pages)


CACHED = (2, 3, 4, 5, 11, 12, 13)  # tokens of the design document's example


def hit_length(cached: Iterable[int], prompt_tokens: int = 15) -> int:
    """Longest hit of a prompt on layers with a window of 4, where these tokens are cached."""
    pool = example(4, 1, prompt_tokens, 1, full=0)
    hybrid, index = manager(pool), PrefixIndex(pool.table, 1)
    (kind,) = hybrid.kinds
    for token in cached:
        page = kind.pool.take(kind.name, 1)
        assert page is not None
        kind.pool.name(page, (0, index.ids(0)[token], token))
    return hybrid.match(Sequence(0, prompt_tokens, 1))[0]


def _hit(below: int) -> Measure:
    """The longest hit of fewer tokens, as if a full-attention layer had no more."""
    return lambda case: float(hit_length(token for token in CACHED if token < below))


def concurrency_gain(case: Case) -> float:
    """Requests of 8K on Gemma-2-27B, windows freed over windows kept."""
    kind = prepare(case.experiment()).kinds[0]
    uniform = PageLayout(kind.layout.block_tokens, kind.layout.most)
    return (kind.num_pages / kind.layout.pages(8192)) / (kind.num_pages / uniform.pages(8192))


def served_gain(case: Case) -> float:
    """Requests of 8K that decode together, blocks freed over kept, when served."""
    many = []
    for kind in ("vllm_hybrid", "uniform"):
        changes = {"allocator": {"kind": kind}, "workload.request_rate": "inf"}
        segments = case.simulate(changes).lanes[0].segments
        many.append(int(segments["num_decode"].max()))
    return many[0] / many[1]


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
    "blocks_in_flight": blocks_in_flight,
    "hit_14": _hit(15),
    "hit_6": _hit(11),
    "hit_5": _hit(5),
    "served_gain": served_gain,
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
