"""PagedAttention (vLLM, SOSP'23) against Orca with three kinds of reservation.

Batch sizes and memory waste of section 6.2, from the same requests on four memory managers.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from simulator.fragmentation import Fragmentation, fragmentation
from simulator.occupancy import sharing_saves
from simulator.papers.capacity import normalised_latency_s
from simulator.papers.case import Case, Line, Measure, Picture
from simulator.recorder import Result
from simulator.segments import segment_table

SLOTS = 15_728  # of OPT-13B on an A100-40G: 12 GiB at 800 KiB a token
SYSTEMS: dict[str, dict[str, object]] = {
    "max": {"scheduler": "orca", "allocator": {"kind": "buddy", "reserve": "max"}},
    "pow2": {"scheduler": "orca", "allocator": {"kind": "buddy", "reserve": "pow2"}},
    "oracle": {"scheduler": "orca", "allocator": {"kind": "buddy", "reserve": "oracle"}},
    "vllm": {"scheduler": "vllm_v0", "allocator": "paged"},
}
NAMES = {"max": "Orca (Max)", "pow2": "Orca (Pow2)", "oracle": "Orca (Oracle)", "vllm": "vLLM"}
MOMENTS = 400


def serve(case: Case, system: str, rate: float) -> Result:
    """One of the four at so many requests a second; Orca's memory has slots of one token."""
    changes = dict(SYSTEMS[system])
    if system != "vllm":
        changes |= {"engine.block_tokens": 1, "engine.num_blocks": SLOTS}
    changes |= {
        "workload.request_rate": f"{rate:g} /s",
        "workload.num_prompts": case.choose(1500, 400),
    }
    return case.simulate(changes)


def mean_batch(result: Result) -> float:
    """Mean number of requests in an iteration, while requests still arrive."""
    lane = result.lanes[0]
    segments = lane.segments
    counts = segments["iterations"] * (lane.segment_start_ns <= result.table.arrival_ns[-1])
    return float(np.average(segments["num_decode"] + segments["num_prefill"], weights=counts))


def waste(case: Case, system: str, rate: float) -> Fragmentation:
    """The pool's parts from the middle of the arrivals to the last."""
    result = serve(case, system, rate)
    last_ns = int(result.table.arrival_ns[-1])
    moments = np.linspace(last_ns // 2, last_ns, MOMENTS).astype(np.int64)
    return case.once(f"waste {system} {rate}", lambda: fragmentation(result, moments))


def most_running(case: Case) -> float:
    """Most requests that Orca (Max) ever runs together, under overload."""
    lane = serve(case, "max", 8).lanes[0]
    return float((lane.segments["num_decode"] + lane.segments["num_prefill"]).max())


def unused_by_max(case: Case) -> float:
    """Percent of the slots that no request of 2,048 can get."""
    return 100 * (1 - most_running(case) * 2048 / SLOTS)


def _batch_at(system: str, rate: float) -> Measure:
    return lambda case: mean_batch(serve(case, system, rate))


def _used(system: str) -> Measure:
    return lambda case: 100 * waste(case, system, OVERLOAD).means()["used"]


def _swap_over_recompute(block_tokens: int) -> Measure:
    def ratio(case: Case) -> float:
        """Mean normalised latency with swapping over that with recomputation, near saturation."""
        latencies = []
        for preemption in ("swap", "recompute"):
            result = case.simulate(
                {
                    "scheduler": {"kind": "vllm_v0", "preemption": preemption},
                    "engine.block_tokens": block_tokens,
                    "engine.num_blocks": SLOTS // block_tokens,
                    "workload.request_rate": "2.4 /s",
                    "workload.num_prompts": case.choose(1500, 400),
                }
            )
            latencies.append(float(normalised_latency_s(result).mean()))
        return latencies[0] / latencies[1]

    return ratio


# Section 6.3: answers sampled in parallel and beam search. Alpaca's means are 19 tokens in, 58 out;
# the spread of its lengths is assumed.
ALPACA: dict[str, object] = {
    "workload.input_len": {"kind": "lognormal", "median": 17, "sigma": 0.5, "low": 4, "high": 256},
    "workload.output_len": {
        "kind": "lognormal",
        "median": 40,
        "sigma": 0.87,
        "low": 4,
        "high": 512,
    },
}
TEXTS: dict[str, tuple[dict[str, object], float]] = {  # lengths, and requests/s of one answer each
    "alpaca": (ALPACA, 12.0),
    "sharegpt": ({}, 1.5),
}


def _answers(num: int, beams: bool) -> dict[str, object]:
    return {"workload.beam_width" if beams else "workload.n": num}


def _saved(text: str, num: int, beams: bool) -> Measure:
    lengths, rate = TEXTS[text]

    def percent(case: Case) -> float:
        """Blocks that sharing saves, percent of those held without it."""
        result = case.simulate(
            {
                **SYSTEMS["vllm"],
                **lengths,
                **_answers(num, beams),
                "workload.request_rate": f"{rate / num:g} /s",
                "workload.num_prompts": case.choose(600, 60),
            }
        )
        return 100 * sharing_saves(result, segment_table(result))

    return percent


def alpaca_rate(case: Case, system: str, num: int, beams: bool) -> float:
    """Requests/s of Alpaca served under overload, between a tenth and three quarters of them.

    Orca's answers share nothing, so its beams are samples, without the copies of a search.
    """
    changes = {**SYSTEMS[system], **ALPACA, **_answers(num, beams and system == "vllm")}
    if system != "vllm":
        changes |= {"engine.block_tokens": 1, "engine.num_blocks": SLOTS}
    changes |= {"workload.request_rate": "inf"}
    changes |= {"workload.num_prompts": case.choose(6000, 1200) // num}
    finish_s = np.sort(case.simulate(changes).finish_ns) / 1e9
    first, last = len(finish_s) // 10, 3 * len(finish_s) // 4
    return float((last - first) / (finish_s[last] - finish_s[first]))


def _gain(num: int, beams: bool = False) -> Measure:
    return lambda case: (
        alpaca_rate(case, "vllm", num, beams) / alpaca_rate(case, "oracle", num, beams)
    )


def least_growth(case: Case) -> float:
    """Least factor by which the gain over Orca grows from one width to the next, both ways."""
    gains = [[_gain(1)(case)] + [_gain(n, beams)(case) for n in WIDTHS] for beams in (False, True)]
    return min(b / a for row in gains for a, b in pairwise(row))


def whole_growth(case: Case) -> float:
    """The same from one answer to the greatest width."""
    return min(_gain(WIDTHS[-1], beams)(case) for beams in (False, True)) / _gain(1)(case)


WIDTHS = (2, 4, 6)
OVERLOAD = 8.0  # requests/s, more than any of the four can serve
MEASURES: dict[str, Measure] = {
    "most_running_max": most_running,
    "unused_max": unused_by_max,
    **{f"batch_{name}": _batch_at(name, 2.0) for name in SYSTEMS},
    **{f"full_batch_{name}": _batch_at(name, OVERLOAD) for name in SYSTEMS},
    **{f"swap_{size}": _swap_over_recompute(size) for size in (1, 16, 64)},
    **{f"used_{name}": _used(name) for name in SYSTEMS},
    **{f"saved_{text}_n{num}": _saved(text, num, False) for text in TEXTS for num in WIDTHS},
    **{f"saved_{text}_beams{num}": _saved(text, num, True) for text in TEXTS for num in WIDTHS},
    "gain_n1": _gain(1),
    "gain_beams6": _gain(6, beams=True),
    "least_growth": least_growth,
    "whole_growth": whole_growth,
}


def picture(case: Case) -> Picture:
    """Share of the KV slots that hold tokens, over time under overload."""
    lines = []
    for system, name in NAMES.items():
        parts = waste(case, system, OVERLOAD)
        seconds = tuple((parts.time_ns / 1e9).tolist())
        lines.append(Line(label=name, x=seconds, y=tuple((100 * parts.used).tolist())))
    return Picture(
        title="KV slots that hold tokens, under overload",
        x_label="simulated time (s)",
        y_label="%",
        lines=tuple(lines),
    )
