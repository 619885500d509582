"""SmartSpec: as many drafted tokens as goodput says, against fixed numbers and none."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from simulator.papers.case import Case, Changes, Line, Measure, Picture
from simulator.recorder import Result
from simulator.speculation.lengths import Goodput, SmartSpec, best_length, expected_tokens

# Coefficients of the authors' regressions on an H100 (their vLLM branch `batch-dsd`), in ms.
# Llama-8B on one GPU: a token of KV, a batched token, a sequence, an iteration.
TARGET = (4.859e-5, 1.844e-2, -4.331e-2, 6.939)
# EAGLE beside it: a token of KV, a token, a draft step, a sequence, a proposal.
EAGLE = (2.897e-6, 4.387e-5, 0.4522, 5.528e-3, 0.4471)
SIZES = (1, 8, 32, 64, 128, 256)  # sequences
CHOSEN = (5, 4, 3, 3, 2, 0)  # lengths at acceptance 0.7, without a handicap
SPEED_UPS = (2.09, 1.95, 1.64, 1.38, 1.09, 1.00)

RATES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # requests/s, the paper's sweep
FIXED = (1, 3, 5, 7)
# Tokens/s over no speculation, from a plot file of the authors: Vicuna-7B on an H100, prompts of
# 1,024, outputs of 128, batch 128, 7,367 blocks; fixed lengths of 1, 3, 5 and 7, and dynamic.
OFFLINE_BASE = 1727.0
OFFLINE = {
    0.7: ((1731.0, 1961.0, 1966.0, 1863.0), 1927.0),
    0.8: ((1763.0, 2040.0, 2125.0, 2090.0), 2062.0),
    0.9: ((1821.0, 2250.0, 2364.0, 2397.0), 2321.0),
}


def authors_ms(num_seqs: int, length: int, context: int = 512) -> float:
    """Milliseconds of one iteration by the authors' coefficients."""
    kv = num_seqs * context
    total = TARGET[0] * kv + TARGET[1] * num_seqs * (length + 1) + TARGET[2] * num_seqs + TARGET[3]
    if length:
        total += EAGLE[0] * kv + EAGLE[1] * num_seqs + EAGLE[2] * length
        total += EAGLE[3] * num_seqs + EAGLE[4]
    return total


def authors_length(num_seqs: int, rate: float = 0.7, most: int = 8) -> int:
    """Length of highest goodput under those coefficients."""
    return best_length(rate, most, lambda length: round(1e9 * authors_ms(num_seqs, length)))


def authors_speed_up(rate: float, num_seqs: int, length: int) -> float:
    """Tokens a second over no speculation under those coefficients."""
    tokens = expected_tokens(rate, length)
    return tokens * authors_ms(num_seqs, 0) / authors_ms(num_seqs, length)


def lengths_as_published(case: Case) -> float:
    """How many of the six batch sizes get the length they should."""
    return sum(authors_length(n) == k for n, k in zip(SIZES, CHOSEN, strict=True))


def speed_ups_as_published(case: Case) -> float:
    """How many of the six speed-ups are within 1 %."""
    pairs = zip(SIZES, CHOSEN, SPEED_UPS, strict=True)
    return sum(abs(authors_speed_up(0.7, n, k) / known - 1) <= 0.01 for n, k, known in pairs)


def settled_after(case: Case) -> float:
    """Iterations after a shift of acceptance from 0.9 to 0.3 until the length is within one."""
    rng = np.random.default_rng(case.seed)
    chooser = Goodput(SmartSpec(), 8)
    num, last_off = 16, 0
    best = best_length(0.3, 8, lambda length: round(1e9 * authors_ms(num, length)))
    for iteration in range(400):
        rate = 0.9 if iteration < 200 else 0.3
        length = chooser.choose(num, lambda k: round(1e9 * authors_ms(num, k)))
        hits = np.minimum(rng.geometric(1 - rate, num) - 1, length)
        tested = int(np.minimum(hits + 1, length).sum())
        chooser.observe(num, num if length else -1, int(hits.sum()), tested)
        if iteration >= 200 and abs(length - best) > 1:
            last_off = iteration - 199
    return float(last_off)


# --- online ---------------------------------------------------------------------------------------

NO_DRAFTS: Changes = {"speculation": None}
SMART: Changes = {"speculation.length.kind": "smartspec", "speculation.num_speculative_tokens": 7}


def fixed(length: int) -> Changes:
    """Keys of a fixed length."""
    return {"speculation.num_speculative_tokens": length}


def serve(case: Case, changes: Changes, rate: float) -> Result:
    """ShareGPT's lengths at so many requests a second."""
    num = case.choose(240, 60)
    load = {"workload.request_rate": f"{rate:g} /s", "workload.num_prompts": num}
    return case.simulate({**load, **changes})


def latency_s(result: Result) -> float:
    """Mean time from sending a request to its last token."""
    return float((result.finish_ns - result.sent_ns)[result.completed].mean()) / 1e9


def mean_length(result: Result) -> float:
    """Tokens a decoding sequence was to draft, on average."""
    columns = [(lane.segments["num_decode"], lane.speculation) for lane in result.lanes]
    asked = sum(float((num * x["asked"]).sum()) for num, x in columns if x is not None)
    return asked / sum(float(num.sum()) for num, _ in columns)


def rates(case: Case) -> tuple[float, ...]:
    return case.choose(RATES, (0.5, 4.0, 16.0))


def worst_against_best(case: Case) -> float:
    """SmartSpec's latency over the best of no speculation and the fixed lengths, worst rate."""
    ratios = []
    for rate in rates(case):
        rivals = [NO_DRAFTS, *(fixed(length) for length in FIXED)]
        best = min(latency_s(serve(case, rival, rate)) for rival in rivals)
        ratios.append(latency_s(serve(case, SMART, rate)) / best)
    return max(ratios)


# vLLM's own dynamic speculation: rows of (first, last number of sequences, tokens to draft).
TABLE: Changes = {
    "speculation.length": {
        "kind": "batch_table",
        "table": [[1, 64, 3], [65, 128, 1], [129, 512, 0]],
    }
}


def worst_against_table(case: Case) -> float:
    """SmartSpec's latency over that of vLLM's table of batch sizes, worst rate."""
    pairs = [(serve(case, SMART, rate), serve(case, TABLE, rate)) for rate in rates(case)]
    return max(latency_s(smart) / latency_s(table) for smart, table in pairs)


def by_request(case: Case) -> float:
    """Latency of lengths by request over that of one length for all, requests that differ."""
    unlike = {**SMART, "speculation.acceptance.concentration": 2.0}
    each = {**unlike, "speculation.length.per_request": True}
    pairs = [(serve(case, each, rate), serve(case, unlike, rate)) for rate in (4.0, 16.0)]
    return sum(latency_s(mine) / latency_s(common) for mine, common in pairs) / len(pairs)


HARD = {"speculation.acceptance.mean": 0.54}  # the lowest acceptance the paper's data sets have


def harm_of_long_drafts(case: Case) -> float:
    """Latency of five or seven drafts over none, hard text, at the rate where it is worst."""
    found = []
    for rate in case.choose((8.0, 16.0, 32.0), (16.0,)):
        none = latency_s(serve(case, NO_DRAFTS, rate))
        longest = max(latency_s(serve(case, {**fixed(k), **HARD}, rate)) for k in (5, 7))
        found.append(longest / none)
    return max(found)


def rise_of_length(case: Case) -> float:
    """Largest rise of SmartSpec's mean length from one rate to the next; <= 0 = it only falls."""
    lengths = [mean_length(serve(case, SMART, rate)) for rate in rates(case)]
    return max(after - before for before, after in pairwise(lengths))


OVERLOAD: Changes = {
    **HARD,
    "model": "llama-3.1-8b",
    "cluster": "1xH100-SXM",
    "speculation.drafter": "eagle",
    "engine.max_num_seqs": 1024,
}


def at_high_load(case: Case, changes: Changes) -> float:
    """Latency over that of no speculation, with about a thousand sequences on an H100."""
    load = {"workload.num_prompts": case.choose(3000, 1200)}
    machine = {k: v for k, v in OVERLOAD.items() if not k.startswith("speculation")}
    none = serve(case, {**machine, **NO_DRAFTS, **load}, 1000.0)
    return latency_s(serve(case, {**OVERLOAD, **changes, **load}, 1000.0)) / latency_s(none)


def fixed_at_high_load(case: Case) -> float:
    """The best fixed length there."""
    return min(at_high_load(case, fixed(length)) for length in FIXED)


def smart_at_high_load(case: Case) -> float:
    """SmartSpec there."""
    return at_high_load(case, SMART)


def best_cell(case: Case) -> float:
    """Largest drop of mean latency at 0.5 requests/s over models and drafters."""
    lookup = {
        "speculation.drafter": {"kind": "ngram", "match": 0.9},
        "speculation.acceptance.mean": 0.9,
    }
    cells: list[Changes] = [
        {},
        {"model": "llama-2-13b"},
        {"model": "llama-3.1-70b", "cluster": "4xH100-SXM", "plan.tp": 4,
         "speculation.drafter.model": "llama-3.2-1b"},
    ]  # fmt: skip
    best = 0.0
    for cell in cells:
        base = {k: v for k, v in cell.items() if not k.startswith("speculation")}
        none = latency_s(serve(case, {**base, **NO_DRAFTS}, 0.5))
        smart = latency_s(serve(case, {**cell, **SMART}, 0.5))
        found = latency_s(serve(case, {**base, **lookup, **SMART}, 0.5))
        best = max(best, none / smart, none / found)
    return best


# --- offline --------------------------------------------------------------------------------------


def throughput(case: Case, changes: Changes) -> float:
    """Output tokens a second of the offline batch."""
    num = case.choose(512, 128)
    batch = {
        "cluster": "1xH100-SXM",
        "engine.num_blocks": 7367,
        "engine.max_num_seqs": 128,
        "workload.request_rate": float("inf"),
        "workload.num_prompts": num,
        "workload.input_len": 1024,
        "workload.output_len": 128,
    }
    result = case.simulate({**changes, **batch})
    return 128 * num / (result.end_ns / 1e9)


def offline(case: Case, rate: float) -> tuple[list[float], float]:
    """Ratios to no speculation: of the fixed lengths, and of SmartSpec."""
    rated = {"speculation.acceptance": rate}
    none = throughput(case, NO_DRAFTS)
    ratios = [throughput(case, {**rated, **fixed(length)}) / none for length in FIXED]
    return ratios, throughput(case, {**rated, **SMART}) / none


def farthest_offline(case: Case) -> float:
    """Largest difference of any of the fifteen ratios to the authors'."""
    gaps = []
    for rate, (known, dynamic) in OFFLINE.items():
        ratios, smart = offline(case, rate)
        gaps += [abs(x - y / OFFLINE_BASE) for x, y in zip(ratios, known, strict=True)]
        gaps.append(abs(smart - dynamic / OFFLINE_BASE))
    return max(gaps)


def dynamic_offline(case: Case) -> float:
    """SmartSpec's throughput over the best fixed length's, at the worst of three acceptances."""
    found = [offline(case, rate) for rate in OFFLINE]
    return min(smart / max(1.0, *ratios) for ratios, smart in found)


MEASURES: dict[str, Measure] = {
    "lengths_as_published": lengths_as_published,
    "speed_ups_as_published": speed_ups_as_published,
    "settled_after": settled_after,
    "worst_against_best": worst_against_best,
    "worst_against_table": worst_against_table,
    "by_request": by_request,
    "harm_of_long_drafts": harm_of_long_drafts,
    "rise_of_length": rise_of_length,
    "fixed_at_high_load": fixed_at_high_load,
    "smart_at_high_load": smart_at_high_load,
    "best_cell": best_cell,
    "farthest_offline": farthest_offline,
    "dynamic_offline": dynamic_offline,
}


def picture(case: Case) -> Picture:
    """Mean latency over the request rate: no speculation, fixed lengths, SmartSpec."""
    policies = {"none": NO_DRAFTS, **{f"k = {k}": fixed(k) for k in FIXED}, "SmartSpec": SMART}
    lines = []
    for name, changes in policies.items():
        seconds = tuple(latency_s(serve(case, changes, rate)) for rate in RATES)
        lines.append(Line(label=name, x=RATES, y=seconds, dashed=name == "none"))
    return Picture(
        title="Mean latency of Vicuna-7B on an L40S",
        x_label="requests/s",
        y_label="s",
        lines=tuple(lines),
        log_y=True,
    )
