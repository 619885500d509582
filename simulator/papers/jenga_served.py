"""Jenga (SOSP'25) as it serves: articles with several questions each, on pages of five kinds.

The loads follow the artifact's scripts (heheda12345/Jenga-SOSP25-AE): prompts are articles joined
up to a length, four questions each, shuffled. The articles' own lengths are not in it; joined, they
are taken as uniform between the limit less a mean article and the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from simulator.engine import prepare, simulate
from simulator.papers.case import Case, Changes, Measure
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


def served(case: Case, name: str, kind: str) -> Result:
    """One model of figure 14 on one kind of pages."""
    model, load = MODELS[name]
    return case.once(f"{name} {kind}", lambda: serve(case, {**model, **pages(kind)}, load))


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


def requests_per_s(result: Result) -> float:
    return float(result.completed.sum()) / (result.end_ns / 1e9)


def decode_batch(result: Result) -> float:
    """Mean sequences of an iteration that decodes."""
    segments = result.lanes[0].segments
    decodes = segments["num_decode"] > 0
    return float(
        np.average(segments["num_decode"][decodes], weights=segments["iterations"][decodes])
    )


def hit_rate(result: Result) -> float:
    """Share of prompt tokens that were cached."""
    return float(result.cached_tokens.sum() / result.table.prompt_tokens.sum())


def _speed_up(name: str, kind: str, over: str = "uniform") -> Measure:
    def ratio(case: Case) -> float:
        """Requests a second, over those of other pages."""
        return requests_per_s(served(case, name, kind)) / requests_per_s(served(case, name, over))

    return ratio


# --- waste --------------------------------------------------------------------------------------

STEADY: Changes = {
    "workload.num_prompts": 30,
    "workload.request_rate": "0.1 /s",
    "engine": {"max_num_batched_tokens": 8192, "max_model_len": 131_072},
    **V1,
}
FINE: Changes = {
    **STEADY,
    "model": "gemma-3-12b.json",
    "workload.request_rate": "2 /s",
    "workload.input_len": {"kind": "uniform", "low": 200, "high": 3000},
    "workload.output_len": {"kind": "uniform", "low": 200, "high": 600},
    "workload.num_prompts": 200,
}


def waste(case: Case, changes: Changes, kind: str, **keys: object) -> float:
    """Share of the allocated KV that no coming query needs, while decoding; mean over time."""
    changed = {**changes, "allocator": {"kind": kind, **keys}}
    experiment = case.experiment(changed)
    result, setup = case.simulate(changed), prepare(experiment)
    types = setup.kinds[0].kv_types
    page_bytes = setup.kinds[0].kv_bytes / result.num_blocks[0]
    segments, lane = result.lanes[0].segments, result.lanes[0]
    first = np.cumsum(segments["iterations"]) - segments["iterations"]
    needed = np.zeros(len(first))
    spans = np.column_stack(list(result.spans.values()))
    for request, _, begin, end in spans.tolist():
        here = (first > begin) & (first <= end)
        context = result.table.prompt_tokens[request] + first[here] - begin
        for kv in types:
            kept = np.minimum(context, kv.window) if kv.window else context
            needed[here] += kept * kv.bytes_per_token
    alone = (segments["num_prefill"] == 0) & (segments["num_decode"] > 0)
    lasts = lane.end_ns[first + segments["iterations"] - 1] - lane.segment_start_ns
    allocated = segments["used_blocks"] * page_bytes
    return float(1 - np.average((needed / np.maximum(allocated, 1))[alone], weights=lasts[alone]))


# --- prefix cache -------------------------------------------------------------------------------

FEW, MANY = (1, 2, 3), (4, 5, 6, 8, 10, 12)  # articles


SERVED_AT_ONCE: Changes = {
    "engine": {"max_num_batched_tokens": 8192, "max_model_len": 131_072},
    **V1,
}


def asked(case: Case, num: int, kind: str) -> Result:
    """48 questions on so many articles, on Ministral, in chunks of 8,192 tokens."""

    def load(case: Case) -> RequestTable:
        return articles(case.seed, num, 68_000, 79_850, questions=48 // num)

    changes = {**SERVED_AT_ONCE, **pages(kind)}
    return case.once(f"asked {num} {kind}", lambda: serve(case, changes, load))


def _few(case: Case) -> float:
    """Smallest ratio of hit rates where there are at most three articles."""
    return min(_hits(case, num, "jenga", "uniform") for num in case.choose(FEW, FEW[-1:]))


def _many(case: Case) -> float:
    """Largest ratio of hit rates where there are more."""
    return max(_hits(case, num, "jenga", "uniform") for num in case.choose(MANY, (8,)))


def _hits(case: Case, num: int, kind: str, over: str) -> float:
    return hit_rate(asked(case, num, kind)) / hit_rate(asked(case, num, over))


def _faster(case: Case) -> float:
    """Largest ratio of requests a second where there are more."""
    return max(
        requests_per_s(asked(case, num, "jenga")) / requests_per_s(asked(case, num, "uniform"))
        for num in case.choose(MANY, (8,))
    )


def _aligned(case: Case) -> float:
    """Hit rate of aligned eviction over that of one queue, for articles shorter than the window."""

    def load(case: Case) -> RequestTable:
        return articles(case.seed, 24, 16_000, 24_000)

    rates = [
        hit_rate(serve(case, {**SERVED_AT_ONCE, **pages("jenga", eviction=each)}, load))
        for each in ("aligned", "queue")
    ]
    return rates[0] / rates[1]


# --- rates --------------------------------------------------------------------------------------

RATES = (1, 2, 2.5, 3, 3.5, 4)  # requests a second
# As long as MMMU-pro's mean request, and as many at once as the artifact allows mllama; windows
# waste 70 % of this model's uniform pages, the image 80 % of that one's.
SWEPT: Changes = {
    "model": "gemma-3-12b.json",
    "engine": {"profile": "vllm-0.8", "max_num_seqs": 52},
    "workload.input_len": 6236,
    "workload.output_len": 200,
    **V1,
}


def at_rate(case: Case, rate: float, kind: str) -> Result:
    """Gemma-3 under requests that come at random."""
    return case.simulate(
        {
            **SWEPT,
            "workload.request_rate": f"{rate} /s",
            "workload.num_prompts": 100,
            "allocator": {"kind": kind},
        }
    )


def ttft_s(result: Result) -> float:
    return float(np.mean(result.first_token_ns - result.sent_ns)) / 1e9


def tpot_s(result: Result) -> float:
    took = (result.finish_ns - result.first_token_ns) / (result.table.output_tokens - 1)
    return float(np.mean(took)) / 1e9


def _ttft_gain(case: Case) -> float:
    """Largest ratio of mean TTFTs, uniform over LCM, over the rates."""
    return max(
        ttft_s(at_rate(case, rate, "uniform")) / ttft_s(at_rate(case, rate, "jenga"))
        for rate in case.choose(RATES, RATES[3:4])
    )


def _tpot_cost(case: Case) -> float:
    """Mean TPOT where uniform pages queue, LCM over uniform."""
    rate = RATES[3]
    return tpot_s(at_rate(case, rate, "jenga")) / tpot_s(at_rate(case, rate, "uniform"))


MEASURES: dict[str, Measure] = {
    "waste_uniform": lambda case: waste(case, STEADY, "uniform"),
    "waste_lcm": lambda case: waste(case, STEADY, "jenga"),
    "waste_aware": lambda case: waste(case, FINE, "jenga"),
    "waste_unaware": lambda case: waste(case, FINE, "jenga", request_aware=False),
    **{f"jenga_{name}": _speed_up(name, "jenga") for name in MODELS},
    **{f"max_{name}": _speed_up(name, "max_page") for name in MODELS},
    "static_gemma_3": _speed_up("gemma_3", "static_partition"),
    "static_llama_4": _speed_up("llama_4", "static_partition"),
    "static_over_max_gemma_3": _speed_up("gemma_3", "static_partition", "max_page"),
    "static_over_max_llama_4": _speed_up("llama_4", "static_partition", "max_page"),
    "hits_few": _few,
    "hits_many": _many,
    "speed_many": _faster,
    "hits_aligned": _aligned,
    "ttft_gain": _ttft_gain,
    "tpot_cost": _tpot_cost,
}
