"""Jenga (SOSP'25): pages for layers that need unlike memory, against one page for all layers."""

from __future__ import annotations

from math import ceil

import numpy as np

from simulator.allocators.lcm import NEVER, LcmPool, Page
from simulator.batch import PageLayout
from simulator.engine import prepare
from simulator.papers import jenga_served
from simulator.papers.case import Case, Changes, Line, Measure, Picture
from simulator.papers.jenga_loads import UNIFORM
from simulator.papers.jenga_served import decode_batch

BLOCK = 16  # tokens of a page
# Other models than the experiment's serve no prompt of 128K in one piece.
CHUNKS: Changes = {"engine": {"max_num_batched_tokens": 8192}, "scheduler": "vllm_v1"}
# Llama-3.2-11B-Vision: 32 layers see text, 8 see the image; MMMU-pro's mean request.
MLLAMA_BYTES = 8 * 128 * 2 * 2  # a token of a layer
MLLAMA = {"text": (32, 43), "image": (8, 6193)}  # layers, tokens
GEMMA_3 = {"full": (10, 8192), "window": (52, 1024)}  # of Gemma-3-27B at 8K


def layout_of(case: Case, changes: Changes) -> PageLayout:
    """Pages of a model as the engine lays them out."""
    return prepare(case.experiment(changes)).kinds[0].layout


def window_waste(case: Case, changes: Changes, tokens: int) -> float:
    """Share of a uniform page table that windows would free, for one request."""
    layout = layout_of(case, changes)
    return 1 - layout.pages(tokens) / PageLayout(BLOCK, layout.most).pages(tokens)


def typed_waste(types: dict[str, tuple[int, int]], tokens: int) -> float:
    """The same where types of layers keep so many of the tokens each."""
    layers = sum(num for num, _ in types.values())
    needed = sum(num * ceil(kept / BLOCK) for num, kept in types.values())
    return 1 - needed / (layers * ceil(tokens / BLOCK))


def mllama_gain(case: Case) -> float:
    """Mean requests that fit 64 GiB in LCM pages, over those in uniform pages."""
    num_bytes = 64 * 2**30
    small = {kind: layers * BLOCK * MLLAMA_BYTES for kind, (layers, _) in MLLAMA.items()}
    typed = LcmPool(num_bytes, small)
    layers = sum(num for num, _ in MLLAMA.values())
    uniform = LcmPool(num_bytes, {"all": layers * BLOCK * MLLAMA_BYTES})
    tokens = sum(kept for _, kept in MLLAMA.values())
    needs = {kind: ceil(kept / BLOCK) for kind, (_, kept) in MLLAMA.items()}
    return _requests(typed, needs) / _requests(uniform, {"all": ceil(tokens / BLOCK)})


def _requests(pool: LcmPool, needs: dict[str, int]) -> int:
    """Requests of so many small pages of each type that a pool holds together."""
    num = 0
    while all(
        pool.take(kind, num) is not None for kind, pages in needs.items() for _ in range(pages)
    ):
        num += 1
    return num


def llama_4_context(case: Case) -> float:
    """Longest context of Llama-4-Scout on 8 H200, hybrid over uniform."""
    changes = {"model": "llama-4-scout", "cluster": "8xH200-SXM", "plan": {"tp": 8}}
    kind = prepare(case.experiment({**changes, **CHUNKS})).kinds[0]
    return kind.max_kv_tokens / (kind.num_pages // kind.layout.most * BLOCK)


def batch_ratio(case: Case) -> float:
    return decode_batch(case.simulate()) / decode_batch(case.simulate(UNIFORM))


def steps_ratio(case: Case) -> float:
    """Decode iterations, LCM over uniform."""
    steps = []
    for changes in (None, UNIFORM):
        segments = case.simulate(changes).lanes[0].segments
        steps.append(int(segments["iterations"][segments["num_decode"] > 0].sum()))
    return steps[0] / steps[1]


def _returned(request_aware: bool) -> Measure:
    def returned(case: Case) -> float:
        """Share of their large pages that come back when half of the requests end.

        200 requests take pages of the paper's example (256 and 384 bytes) in turns.
        """
        rng = np.random.default_rng(case.seed)
        pool = LcmPool(10**7, {"cross": 256, "self": 384}, request_aware=request_aware)
        held: list[list[Page]] = [[] for _ in range(200)]
        for _ in range(30):
            for request in rng.permutation(200).tolist():
                page = pool.take("cross" if rng.random() < 0.5 else "self", request)
                assert page is not None
                held[request].append(page)
        before = pool.num_available
        ended = set(rng.permutation(200)[:100].tolist())
        theirs = {page.large for pages in held for page in pages if page.large.owner in ended}
        for request in sorted(ended):
            for page in held[request]:
                pool.give(page, NEVER)
        return (pool.num_available - before) / len(theirs)

    return returned


def _windowed(model: str, cluster: str, tokens: int) -> Measure:
    changes: Changes = {"model": model, "cluster": cluster, **CHUNKS}
    return lambda case: window_waste(case, changes, tokens)


MEASURES: dict[str, Measure] = {
    "waste_mllama": lambda case: typed_waste(MLLAMA, 43 + 6193),
    "waste_gemma_2": _windowed("gemma-2-27b", "1xH100-SXM", 8192),
    "waste_ministral": _windowed("ministral-8b", "1xH100-SXM", 131072),
    "waste_gemma_3": lambda case: typed_waste(GEMMA_3, 8192),
    "mllama_gain": mllama_gain,
    "llama_4_context": llama_4_context,
    "batch_ratio": batch_ratio,
    "steps_ratio": steps_ratio,
    "returned_aware": _returned(True),
    "returned_unaware": _returned(False),
    **jenga_served.MEASURES,
}


def picture(case: Case) -> Picture:
    """Waste of uniform pages over context length."""
    lines = []
    for model in ("gemma-2-27b", "ministral-8b", "llama-4-scout", "gpt-oss-120b"):
        changes: Changes = {"model": model, "cluster": "8xH100-SXM", "plan": {"tp": 8}}
        layout = layout_of(case, {**changes, **CHUNKS})
        tokens = np.geomspace(1024, 131072, 60).astype(int).tolist()
        uniform = PageLayout(BLOCK, layout.most)
        waste = tuple(100 * (1 - layout.pages(n) / uniform.pages(n)) for n in tokens)
        lines.append(Line(label=model, x=tuple(n / 1024 for n in tokens), y=waste))
    return Picture(
        title="KV that uniform pages waste",
        x_label="context (thousand tokens)",
        y_label="%",
        lines=tuple(lines),
    )
