"""FastSwitch (arXiv 2411.18424): KV swapped in groups of adjoining blocks, so in fewer copies."""

from __future__ import annotations

import numpy as np

from simulator.engine import prepare
from simulator.itl import statistics, token_log
from simulator.papers.case import Case, Line, Measure, Picture
from simulator.recorder import Result
from simulator.schedulers.swapping import SwapSpace

GROUP = 20  # blocks, the mean granularity of the paper
COPY_S = 8e-6  # of one copy; between 5 and 10 us


def swap_s(case: Case, num_pages: int, group_pages: int) -> float:
    """Copying a request of so many blocks one way."""
    kind = prepare(case.experiment()).kinds[0]
    space = SwapSpace(pages=0, copy_latency_s=COPY_S, group_pages=group_pages)
    return space.time_s(num_pages, kind.stage_layers, kind.page_bytes, kind.host_bytes_per_s)


def faster(case: Case) -> float:
    """How much sooner a request of 100 blocks is swapped in groups of 20."""
    return swap_s(case, 100, 1) / swap_s(case, 100, GROUP)


def serve(case: Case, group_pages: int) -> Result:
    changes = {"scheduler.swap_group_pages": group_pages}
    return case.simulate({**changes, "workload.num_prompts": case.choose(600, 300)})


def tail_tbt_s(result: Result) -> float:
    """P99.9 of the time between two tokens."""
    gaps, counts = token_log(result).gaps()
    return statistics(gaps / 1e9, (99.9,), counts)["p99.9"]


def tail_ratio(case: Case) -> float:
    return tail_tbt_s(serve(case, 1)) / tail_tbt_s(serve(case, GROUP))


def throughput_ratio(case: Case) -> float:
    return serve(case, 1).end_ns / serve(case, GROUP).end_ns


MEASURES: dict[str, Measure] = {
    "faster": faster,
    "tail_ratio": tail_ratio,
    "throughput_ratio": throughput_ratio,
}


def picture(case: Case) -> Picture:
    """Time to swap a request over its length."""
    tokens = np.linspace(16, 4096, 60).astype(int).tolist()
    lines = []
    for name, group in (("block by block", 1), ("in groups of 20 blocks", GROUP)):
        times = tuple(1e3 * swap_s(case, -(-n // 16), group) for n in tokens)
        lines.append(Line(label=name, x=tuple(float(n) for n in tokens), y=times))
    return Picture(
        title="Llama-3-8B on an A10G: swapping one request",
        x_label="tokens",
        y_label="ms one way",
        lines=tuple(lines),
    )
