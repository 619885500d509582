"""FastSwitch (arXiv 2411.18424): context switches by priority, and what its three parts save.

The rival is vLLM 0.3.3 with the same priorities: it swaps block by block, everybody waits for it,
and nothing stays on the host.
"""

from __future__ import annotations

import numpy as np

from simulator.engine import prepare
from simulator.itl import statistics, token_log
from simulator.papers.case import Case, Line, Measure, Picture
from simulator.recorder import Result
from simulator.schedulers.swapping import SwapSpace

GROUP = 20  # blocks, the mean granularity of the paper
COPY_S = 8e-6  # of one copy; between 5 and 10 us
SMALL = {"model": "llama-3-8b", "cluster": "1xA10G"}  # the paper's other set-up
PARTS: dict[str, dict[str, object]] = {
    "vLLM": {},
    "groups": {"scheduler.swap_group_pages": GROUP},
    "asynchronous": {"scheduler.swap_group_pages": GROUP, "scheduler.asynchronous": True},
    "FastSwitch": {
        "scheduler.swap_group_pages": GROUP,
        "scheduler.asynchronous": True,
        "scheduler.reuse": True,
    },
}
FREQUENCIES = (0.01, 0.02, 0.04)  # of changes, an iteration


def swap_s(case: Case, num_pages: int, group_pages: int) -> float:
    """Copying a request of Llama-3-8B of so many blocks one way."""
    kind = prepare(case.experiment(SMALL)).kinds[0]
    space = SwapSpace(pages=0, copy_latency_s=COPY_S, group_pages=group_pages)
    return space.time_s(num_pages, kind.stage_layers, kind.page_bytes, kind.host_bytes_per_s)


def faster(case: Case) -> float:
    """How much sooner a request of 100 blocks is swapped in groups of 20."""
    return swap_s(case, 100, 1) / swap_s(case, 100, GROUP)


def serve(case: Case, parts: str, frequency: float = 0.02, priorities: str = "random") -> Result:
    """The conversations with some of FastSwitch's parts."""
    return case.simulate(
        {
            **PARTS[parts],
            "scheduler.priority_frequency": frequency,
            "scheduler.priorities": priorities,
            "workload.num_sessions": case.choose(150, 60),
        }
    )


def tail_tbt_s(result: Result) -> float:
    """P99.9 of the time between two tokens."""
    gaps, counts = token_log(result).gaps()
    return statistics(gaps / 1e9, (99.9,), counts)["p99.9"]


def tail_ttft_s(result: Result) -> float:
    """P99 of the time to the first token."""
    times = (result.first_token_ns - result.sent_ns)[result.completed]
    return float(np.percentile(times, 99)) / 1e9


def tail_ratio(case: Case, frequency: float = 0.02, priorities: str = "random") -> float:
    slow = tail_tbt_s(serve(case, "vLLM", frequency, priorities))
    return slow / tail_tbt_s(serve(case, "FastSwitch", frequency, priorities))


def ttft_ratio(case: Case) -> float:
    return tail_ttft_s(serve(case, "vLLM")) / tail_ttft_s(serve(case, "FastSwitch"))


def throughput_ratio(case: Case) -> float:
    """The same requests, so the inverse ratio of the times they take."""
    return serve(case, "vLLM").end_ns / serve(case, "FastSwitch").end_ns


def swapped_less(case: Case) -> float:
    """Per cent by which the bytes that are swapped out change with copies that are reused."""
    names = ("FastSwitch", "asynchronous")
    reused, whole = (serve(case, name).counters["swap_out_bytes"] for name in names)
    return 100 * (reused / whole - 1)


def growth(case: Case) -> float:
    """Gain in the tail at the most frequent changes over that at the rarest."""
    return tail_ratio(case, FREQUENCIES[-1]) / tail_ratio(case, FREQUENCIES[0])


MEASURES: dict[str, Measure] = {
    "faster": faster,
    "tail_ratio": tail_ratio,
    "tail_ratio_markov": lambda case: tail_ratio(case, priorities="markov"),
    "ttft_ratio": ttft_ratio,
    "throughput_ratio": throughput_ratio,
    "swapped_less": swapped_less,
    "growth": growth,
}


def picture(case: Case) -> Picture:
    """The tail of the time between tokens over the frequency of changes, part by part."""
    lines = []
    for name in PARTS:
        tails = tuple(tail_tbt_s(serve(case, name, frequency)) for frequency in FREQUENCIES)
        label = {"groups": "+ groups", "asynchronous": "+ asynchronous"}.get(name, name)
        lines.append(Line(label=label, x=FREQUENCIES, y=tails))
    return Picture(
        title="Qwen3-32B on an A100: P99.9 TBT",
        x_label="changes of priority an iteration",
        y_label="seconds",
        lines=tuple(lines),
    )
