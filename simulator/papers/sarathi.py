"""Sarathi-Serve (OSDI'24): stall-free batches against vLLM's prompts first and Orca's mixing.

Capacity is the paper's: the highest rate with P99 time between tokens within the SLO and a median
scheduling delay of at most 2 s.
"""

from __future__ import annotations

import numpy as np

from simulator.costs.explain import explain
from simulator.itl import statistics, token_log
from simulator.papers.capacity import highest_rate
from simulator.papers.case import Case, Changes, Line, Measure, Picture
from simulator.recorder import Result

MAX_DELAY_S = 2.0
ARXIV = {
    "engine.max_num_batched_tokens": 16384,
    "engine.max_model_len": 16384,
    "workload.input_len": {
        "kind": "lognormal", "median": 7059, "sigma": 0.476, "low": 64, "high": 15900,
    },
    "workload.output_len": {
        "kind": "lognormal", "median": 208, "sigma": 0.4515, "low": 4, "high": 480,
    },
}  # fmt: skip
MISTRAL = {"model": "mistral-7b", "cluster": "1xA100-80-SXM", "plan": {"tp": 1}}
YI: Changes = {}
VLLM = {"scheduler": "vllm_v0"}


def sarathi(token_budget: int) -> Changes:
    return {"scheduler": {"kind": "sarathi", "token_budget": token_budget}}


def serve(case: Case, changes: Changes, rate: float, num: int = 0) -> Result:
    """So many requests a second."""
    load = {"workload.request_rate": f"{rate:.9g} /s"}
    num = num or case.choose(500, 200)
    return case.simulate({**changes, **load, "workload.num_prompts": num})


def p99_tbt_s(result: Result) -> float:
    """99th percentile of the time between two tokens, over all tokens."""
    gaps, counts = token_log(result).gaps()
    return statistics(gaps / 1e9, (99.0,), counts)["p99"]


def median_delay_s(result: Result) -> float:
    done = result.completed
    return float(np.median((result.scheduled_ns - result.sent_ns)[done])) / 1e9


def median_ttft_s(result: Result) -> float:
    done = result.completed
    return float(np.median((result.first_token_ns - result.sent_ns)[done])) / 1e9


def capacity(case: Case, model: Changes, system: Changes, slo_s: float) -> float:
    """Requests a second."""

    def holds(rate: float) -> bool:
        result = serve(case, {**model, **system}, rate)
        return p99_tbt_s(result) <= slo_s and median_delay_s(result) <= MAX_DELAY_S

    key = f"capacity {model} {system} {slo_s}"
    return case.once(key, lambda: highest_rate(holds, 0.5, case.choose(5, 4)))


def _ratio(model: Changes, slo_s: float, token_budget: int) -> Measure:
    def ratio(case: Case) -> float:
        ours = capacity(case, model, sarathi(token_budget), slo_s)
        return ours / capacity(case, model, VLLM, slo_s)

    return ratio


def strict_over_relaxed(case: Case) -> float:
    """How much larger Yi's ratio is under the strict SLO."""
    return _ratio(YI, 0.2, 512)(case) / _ratio(YI, 1.0, 2048)(case)


def ablation(case: Case, kind: str) -> Result:
    """128 requests on Yi with a budget of 1,024; the paper gives no rate, this is near capacity."""
    parts = {"chunked": kind != "hybrid", "hybrid": kind != "chunked"}
    budget = {} if kind == "hybrid" else {"token_budget": 1024}
    return serve(case, {"scheduler": {"kind": "sarathi", **parts, **budget}}, 0.7, 128)


def _ablation_tbt(kind: str) -> Measure:
    return lambda case: p99_tbt_s(ablation(case, kind)) / p99_tbt_s(ablation(case, "both"))


def _ablation_ttft(kind: str) -> Measure:
    def ttft(case: Case) -> float:
        return median_ttft_s(ablation(case, kind)) / median_ttft_s(ablation(case, "both"))

    return ttft


def broken_rules(case: Case) -> float:
    """Iterations over the budget, decodes left out, and prompt tokens lost or computed twice."""
    broken = 0
    for budget in (256, 512, 2048):
        result = serve(case, sarathi(budget), 0.8, 120)
        segments = result.lanes[0].segments
        tokens = segments["num_decode"] + segments["prefill_tokens"]
        broken += int((tokens > budget).sum())
        chunks = int((segments["prefill_tokens"] * segments["iterations"]).sum())
        done = int(result.table.prompt_tokens[result.completed].sum())
        broken += chunks != done or bool(result.preemptions.any())
        broken += 0 if result.pauses is None else len(result.pauses)
    return float(broken)


def iteration_s(case: Case, prefill: int, decode: tuple[int, int] | None = None) -> float:
    """Price of one iteration of Yi-34B: a prompt chunk and (sequences, context) of decodes."""
    tokens = {"engine.max_num_batched_tokens": 16384, "engine.max_model_len": 32768}
    subject = case.once("machine", lambda: case.experiment(tokens))
    group = subject.cluster.groups[0]
    decodes = [decode] if decode else []
    prompts = [(prefill, 0)] if prefill else []
    return explain(subject.model, subject.plan, group, subject.settings, prompts, decodes).total_s


# Prompt tokens: milliseconds, of the authors' repository: Yi-34B on two A100-80G.
PREFILL_MS = {128: 48.1, 512: 105.6, 1024: 214.3, 2048: 366, 4096: 758, 8192: 1863, 16384: 4408}


def prefill_error(case: Case) -> float:
    """Mean absolute error of our prefill times against the authors', percent."""
    errors = [abs(iteration_s(case, n) * 1e3 / ms - 1) for n, ms in PREFILL_MS.items()]
    return 100 * sum(errors) / len(errors)


def piggyback(case: Case) -> float:
    """Percent that 3 decodes add to a chunk of 1,021 tokens, over one of 1,024."""
    return 100 * (iteration_s(case, 1021, (3, 1024)) / iteration_s(case, 1024) - 1)


MEASURES: dict[str, Measure] = {
    "broken_rules": broken_rules,
    "prefill_error": prefill_error,
    "piggyback": piggyback,
    "yi_strict": _ratio(YI, 0.2, 512),
    "yi_relaxed": _ratio(YI, 1.0, 2048),
    "mistral_strict": _ratio(MISTRAL, 0.1, 512),
    "strict_over_relaxed": strict_over_relaxed,
    "ablation_tbt": lambda case: p99_tbt_s(ablation(case, "both")),
    "ablation_ttft": lambda case: median_ttft_s(ablation(case, "both")),
    "hybrid_only_tbt": _ablation_tbt("hybrid"),
    "hybrid_only_ttft": _ablation_ttft("hybrid"),
    "chunked_only_tbt": _ablation_tbt("chunked"),
    "chunked_only_ttft": _ablation_ttft("chunked"),
}


def picture(case: Case) -> Picture:
    """P99 time between tokens over rate on Yi-34B."""
    rates = np.linspace(0.2, 1.4, case.choose(9, 5))
    lines = []
    for name, system in (
        ("vLLM (prompts first)", VLLM),
        ("Sarathi-Serve, 512", sarathi(512)),
        ("Sarathi-Serve, 2048", sarathi(2048)),
    ):
        tails = [p99_tbt_s(serve(case, system, rate)) for rate in rates]
        lines.append(Line(label=name, x=tuple(rates.tolist()), y=tuple(tails)))
    slo = (float(rates[0]), float(rates[-1]))
    lines.append(Line(label="strict SLO", x=slo, y=(0.2, 0.2), dashed=True))
    return Picture(
        title="Yi-34B on 2 A100-80G",
        x_label="requests a second",
        y_label="P99 time between tokens (s)",
        lines=tuple(lines),
        log_y=True,
    )
