"""Loads of Jenga's artifact: articles with several questions each, and models they were asked of.

They follow its scripts (heheda12345/Jenga-SOSP25-AE): prompts are articles joined up to a length,
four questions each, shuffled. The articles' own lengths are not in it; joined, they are taken as
uniform between the limit less a mean article and the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from simulator.engine import simulate
from simulator.papers.case import Case, Changes
from simulator.recorder import Result
from simulator.request import Ints, RequestTable

BLOCK = 128  # tokens of a page
QUESTION = 12  # tokens that differ at the end of a prompt
SENT_NS = 250_000_000  # prompts go through one tokeniser, one after another
UNIFORM: Changes = {"allocator": {"kind": "uniform"}}
EXTRA = 192  # tokens that the artifact keeps beyond each window


def pages(kind: str, **keys: object) -> Changes:
    """An allocator; windows are kept as long as the artifact keeps them."""
    if kind == "uniform":
        return UNIFORM
    return {"allocator": {"kind": kind, "window_extra": EXTRA, **keys}}


def articles(
    seed: int, num: int, low: int, high: int, questions: int = 4, output: int = 150
) -> RequestTable:
    """Questions on articles, shuffled: prompts of `low` to `high` tokens."""
    rng = np.random.default_rng([seed, num])
    group = rng.permutation(np.repeat(np.arange(num), questions))
    prompt: Ints = rng.integers(low, high + 1, num)[group]
    shared, blocks = (prompt - QUESTION) // BLOCK, -(-prompt // BLOCK)
    offsets = np.concatenate(([0], np.cumsum(blocks)))
    within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], blocks)
    of_article = np.repeat(group, blocks) * int(blocks.max()) + within
    own = num * int(blocks.max()) + np.arange(offsets[-1])
    return RequestTable(
        arrival_ns=np.arange(len(prompt)) * SENT_NS,
        prompt_tokens=prompt,
        output_tokens=np.full(len(prompt), output),
        hash_ids=np.where(within < np.repeat(shared, blocks), of_article, own),
        hash_offsets=offsets,
        hash_block_tokens=BLOCK,
        name="articles",
    )


Load = Callable[[Case], RequestTable]


def serve(case: Case, changes: Changes, load: Load) -> Result:
    """Serve a load of articles with these keys changed."""
    experiment = case.experiment({**changes, "engine.block_tokens": BLOCK})
    return simulate(replace(experiment, workload=load(case)))


def _articles(num: int, low: int, high: int) -> Load:
    """`num` articles; with half of their questions in the quick version."""
    return lambda case: articles(case.seed, num, low, high, case.choose(4, 2))


def exams(case: Case) -> RequestTable:
    """Prompts as long as MMLU-pro's (at most 3,076 tokens); nothing shared."""
    rng = np.random.default_rng([case.seed, 8])
    num = case.choose(200, 100)
    return RequestTable(
        arrival_ns=np.zeros(num, dtype=np.int64),
        prompt_tokens=rng.integers(500, 3077, num),
        output_tokens=rng.integers(50, 400, num),
        name="exams",
    )


V1: Changes = {"scheduler": "vllm_v1"}
# Model, GPUs and engine of each row of the artifact's figure 14 that has attention layers only.
MODELS: Mapping[str, tuple[Changes, Load]] = {
    "gemma_3": (
        {"model": "gemma-3-12b.json", "engine": {"profile": "vllm-0.8"}, **V1},
        _articles(10, 80_000, 89_850),
    ),
    "ministral": (
        {"engine": {"profile": "vllm-0.6", "max_num_batched_tokens": 131_072}},
        _articles(8, 68_000, 79_850),
    ),
    "llama_4": (
        {
            "model": "llama-4-scout",
            "cluster": "8xH100-SXM",
            "plan": {"tp": 8},
            "engine": {"profile": "vllm-0.8", "max_model_len": 1_000_000},
            **V1,
        },
        _articles(40, 55_000, 130_000),
    ),
    "llama_3_1": (
        {
            "model": "llama-3.1-70b",
            "cluster": "4xH100-SXM",
            "plan": {"tp": 4},
            "engine": {"profile": "vllm-0.8"},
            **V1,
        },
        exams,
    ),
}
