"""Orca (OSDI'22): iteration-level scheduling against FasterTransformer's static batches."""

from __future__ import annotations

import numpy as np

from simulator.itl import token_log, token_times
from simulator.papers.capacity import highest_rate, normalised_latency_s
from simulator.papers.case import Case, Changes, Line, Measure, Picture
from simulator.recorder import Result

ORCA: dict[str, object] = {"scheduler": "orca"}
EQUAL = {"workload.input_len": 32, "workload.output_len": 32}


def orca(max_batch_size: int) -> Changes:
    return {"scheduler": {"kind": "orca", "max_batch_size": max_batch_size}}


def faster_transformer(max_batch_size: int) -> Changes:
    return {"scheduler": {"kind": "static", "max_batch_size": max_batch_size}}


def serve(case: Case, changes: Changes, rate: float) -> Result:
    """So many requests a second."""
    num = case.choose(400, 200)
    load = {"workload.request_rate": f"{rate:.9g} /s", "workload.num_prompts": num}
    return case.simulate({**changes, **load})


def anchor_s(case: Case) -> float:
    """Twice the median normalised latency of requests that are alone."""

    def make() -> float:
        load = {"workload.max_concurrency": 1, "workload.num_prompts": 60}
        return 2 * float(np.median(normalised_latency_s(case.simulate({**orca(1), **load}))))

    return case.once("anchor", make)


def capacity(case: Case, changes: Changes, start: float) -> float:
    """Highest rate whose median normalised latency stays within the anchor, requests/s."""
    limit_s = anchor_s(case)

    def holds(rate: float) -> bool:
        return float(np.median(normalised_latency_s(serve(case, changes, rate)))) <= limit_s

    return case.once(f"capacity {changes}", lambda: highest_rate(holds, start, case.choose(5, 4)))


def orca_capacity(case: Case) -> float:
    return capacity(case, orca(32), 4.0)


def best_static(case: Case, more: Changes | None = None) -> float:
    """FasterTransformer with batches of 1 or 8, whichever serves more."""
    return max(capacity(case, {**faster_transformer(n), **(more or {})}, 0.3) for n in (1, 8))


def ratio(case: Case) -> float:
    return orca_capacity(case) / best_static(case)


def static_gain(case: Case) -> float:
    """Batches of 8 over batches of 1."""
    return capacity(case, faster_transformer(8), 0.3) / capacity(case, faster_transformer(1), 0.3)


def batch_gain(case: Case) -> float:
    """Least gain of Orca from one batch size to twice that: 8, 16, 32."""
    rates = [capacity(case, orca(n), 4.0) for n in (8, 16, 32)]
    return min(rates[1] / rates[0], rates[2] / rates[1])


def equal_ratio(case: Case) -> float:
    """Orca over FasterTransformer where all requests are alike, over the same where they differ."""
    alike = capacity(case, {**orca(32), **EQUAL}, 4.0) / best_static(case, EQUAL)
    return alike / ratio(case)


def overtakings(case: Case) -> float:
    """Pairs of unfinished requests of which the later one has run more iterations, at any time."""
    result = serve(case, orca(16), 2 * orca_capacity(case))
    times = list(token_times(token_log(result), len(result.table)))
    count = 0
    for moment in np.linspace(0, result.end_ns, 300):
        ran = np.array([np.searchsorted(mine, moment, side="right") for mine in times])
        running = ran < result.table.output_tokens
        behind = np.maximum.accumulate(ran[running][::-1])[::-1]  # most of any later request
        count += int((behind > ran[running]).sum())
    return float(count)


MEASURES: dict[str, Measure] = {
    "orca_capacity": orca_capacity,
    "ratio": ratio,
    "static_gain": static_gain,
    "batch_gain": batch_gain,
    "equal_ratio": equal_ratio,
    "overtakings": overtakings,
}


def picture(case: Case) -> Picture:
    """Median normalised latency over rate."""
    lines = []
    for name, changes, most in (
        ("FasterTransformer, batches of 1", faster_transformer(1), 0.5),
        ("FasterTransformer, batches of 8", faster_transformer(8), 0.5),
        ("Orca, up to 8", orca(8), 10.0),
        ("Orca, up to 32", orca(32), 10.0),
    ):
        rates = np.geomspace(0.05, most, case.choose(14, 6))
        medians = [float(np.median(normalised_latency_s(serve(case, changes, r)))) for r in rates]
        lines.append(Line(label=name, x=tuple(rates.tolist()), y=tuple(medians)))
    limit = anchor_s(case)
    lines.append(Line(label="anchor", x=(0.05, 10.0), y=(limit, limit), dashed=True))
    return Picture(
        title="OPT-175B on 16 A100-40G",
        x_label="requests a second",
        y_label="median latency a token (s)",
        lines=tuple(lines),
        log_y=True,
    )
