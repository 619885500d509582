"""Jenga (SOSP'25) as it serves: models, waste, prefix hits and rates on pages of every kind."""

from __future__ import annotations

import numpy as np

from simulator.engine import prepare
from simulator.papers.case import Case, Changes, Measure
from simulator.papers.jenga_loads import MODELS, V1, articles, pages, serve
from simulator.recorder import Result
from simulator.request import RequestTable


def served(case: Case, name: str, kind: str) -> Result:
    """One model of figure 14 on one kind of pages."""
    model, load = MODELS[name]
    return case.once(f"{name} {kind}", lambda: serve(case, {**model, **pages(kind)}, load))


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
