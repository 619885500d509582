"""Llumnix, live migration between instances (OSDI'24): tails, downtime, priorities, auto-scaling.

The rivals: INFaaS++ is Llumnix without migration, dispatch by load alone; and round robin. The
prefill latency is the time to the first token; the decode latency that of a token after it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from simulator.engine import simulate
from simulator.itl import token_log, token_times
from simulator.papers.case import Case, Line, Measure, Picture
from simulator.recorder import MIGRATION_COLUMNS, Result

Floats = NDArray[np.float64]
LLUMNIX: dict[str, object] = {"kind": "llumnix", "link_bytes_per_s": "8 GB/s"}
ROUTERS: dict[str, dict[str, object]] = {
    "round_robin": {"kind": "round_robin"},
    "infaas": {**LLUMNIX, "migrate": False},
    "llumnix": LLUMNIX,
}
RATES = (8.5, 9.25, 10.0, 10.75)  # of the picture
CONTEXTS = (1024, 2048, 4096, 8192)
LONG = {
    "kind": "quantiles",
    "p": [0, 0.25, 0.5, 0.65, 0.8, 0.875, 0.95, 0.97, 0.99, 0.995, 1],
    "tokens": [1, 7, 55, 179, 582, 1346, 3113, 4010, 5166, 5634, 6144],
}
SHORT = {
    "kind": "quantiles",
    "p": [0, 0.25, 0.5, 0.65, 0.8, 0.875, 0.95, 0.97, 0.99, 0.995, 1],
    "tokens": [1, 6, 38, 66, 113, 216, 413, 778, 1464, 2999, 6144],
}


def served(case: Case, router: str, rate: float = 10.0) -> Result:
    """The M-M trace under one of the routers."""
    num = case.choose(8000, 3000)
    changes: dict[str, object] = {"router": ROUTERS[router], "workload.num_prompts": num}
    return case.simulate({**changes, "workload.request_rate": f"{rate:g} /s"})


def prefill_s(result: Result) -> Floats:
    """Time to first token of each completed request."""
    times: Floats = (result.first_token_ns - result.sent_ns)[result.completed] / 1e9
    return times


def request_s(result: Result) -> Floats:
    """End-to-end time of each completed request."""
    times: Floats = (result.finish_ns - result.sent_ns)[result.completed] / 1e9
    return times


def decode_s(result: Result) -> Floats:
    """Mean gap between tokens of each completed request with two or more."""
    mine = result.completed & (result.table.output_tokens > 1)
    span_ns = (result.finish_ns - result.first_token_ns)[mine]
    gaps: Floats = span_ns / 1e9 / (result.table.output_tokens[mine] - 1)
    return gaps


def preempted_s(result: Result) -> float:
    """Time lost by preemption, a request."""
    _, gaps_ns = token_log(result).resumptions()
    return float(gaps_ns.sum()) / 1e9 / len(result.table)


def p99(values: Floats) -> float:
    return float(np.percentile(values, 99))


def mean(values: Floats) -> float:
    return float(values.mean())


def _ratio(what: object, statistic: object, rival: str = "infaas") -> Measure:
    assert callable(what)
    assert callable(statistic)

    def ratio(case: Case) -> float:
        """The rival's over Llumnix's."""
        ours, theirs = served(case, "llumnix"), served(case, rival)
        return float(statistic(what(theirs)) / statistic(what(ours)))

    return ratio


def _best(statistic: object) -> Measure:
    assert callable(statistic)

    def best(case: Case) -> float:
        """The largest ratio of INFaaS++'s prefill latency to Llumnix's over the rates."""
        ratios = [
            statistic(prefill_s(served(case, "infaas", rate)))
            / statistic(prefill_s(served(case, "llumnix", rate)))
            for rate in case.choose(RATES, (10.0,))
        ]
        return float(max(ratios))

    return best


def preemption_saving(case: Case) -> float:
    """Share of INFaaS++'s preemption loss that migration saves."""
    return 1 - preempted_s(served(case, "llumnix")) / preempted_s(served(case, "infaas"))


def misordered(case: Case) -> float:
    """P99 latencies that do not fall from round robin to INFaaS++ to Llumnix, of three."""
    wrong = 0
    for what in (prefill_s, decode_s, request_s):
        tails = [p99(what(served(case, router))) for router in ROUTERS]
        wrong += not tails[0] > tails[1] > tails[2]
    return float(wrong)


def lost_tokens(case: Case) -> float:
    """Tokens missing or given twice, over all requests of the migrating run."""
    result = served(case, "llumnix")
    given = np.array(
        [len(set(t.tolist())) for t in token_times(token_log(result), len(result.table))]
    )
    expected = np.where(result.completed, result.table.output_tokens, 0)
    return float(np.abs(given - expected).sum())


def downtime_s(case: Case, context: int) -> float:
    """Mean time that a request of this context stands still, moved between two idle instances."""
    result = case.simulate(
        {
            "plan.dp": 2,
            "cluster": "2x1xA10G",
            "router": {**LLUMNIX, "interval_s": "2.5 s", "source_below": 840.0},
            "workload": {
                "kind": "synthetic",
                "num_prompts": 1,
                "input_len": context,
                "output_len": 600,
            },
        }
    )
    assert result.migrations is not None
    rows = dict(zip(MIGRATION_COLUMNS, result.migrations.T, strict=True))
    moved = rows["resumed_ns"] >= 0
    return float((rows["resumed_ns"] - rows["left_ns"])[moved].mean()) / 1e9


def downtime_ms(case: Case) -> float:
    """Median of all migrations of the M-M trace, between busy instances."""
    rows = served(case, "llumnix").migrations
    assert rows is not None
    moved = rows[rows[:, 5] >= 0]
    return float(np.median(moved[:, 5] - moved[:, 4])) / 1e6


def downtime_spread(case: Case) -> float:
    """Longest over shortest downtime of contexts from 1K to 8K."""
    times = [downtime_s(case, n) for n in CONTEXTS]
    return max(times) / min(times)


def priorities(case: Case) -> tuple[float, float]:
    """Mean request time without priorities over that with them: of the tenth that is urgent, and
    of the others."""

    def make() -> tuple[float, float]:
        times = []
        for is_on in (False, True):
            experiment = case.experiment(
                {
                    "scheduler": {"kind": "vllm_v1", "policy": "priority" if is_on else "fcfs"},
                    "router": {**LLUMNIX, "headroom_tokens": 1600 if is_on else 0},
                    "workload.num_prompts": case.choose(8000, 3000),
                    "workload.request_rate": "26 /s",
                    "workload.input_len": SHORT,
                    "workload.output_len": SHORT,
                    "workload.burstiness": 1 / 16,  # CV 4
                }
            )
            table = experiment.workload
            rng = np.random.default_rng([case.seed, 5])
            urgent = rng.random(len(table)) < 0.1
            column = np.where(urgent, -1, 0).astype(np.int64)
            result = simulate(replace(experiment, workload=replace(table, priority=column)))
            end_to_end = (result.finish_ns - result.sent_ns) / 1e9
            times.append((end_to_end[urgent].mean(), end_to_end[~urgent].mean()))
        return float(times[0][0] / times[1][0]), float(times[1][1] / times[0][1])

    return case.once("priorities", make)


def scaled(case: Case, migrate: bool) -> Result:
    """The L-L trace, bursty, on as many instances as freeness asks for."""
    router = {**LLUMNIX, "migrate": migrate, "scale": True, "initial_instances": 4}
    return case.simulate(
        {
            "router": router,
            "workload.num_prompts": case.choose(2000, 1000),
            "workload.request_rate": "2 /s",
            "workload.input_len": LONG,
            "workload.output_len": LONG,
            "workload.burstiness": 1 / 16,
        }
    )


def instance_hours(result: Result) -> float:
    assert result.uptime is not None
    return float((result.uptime[:, 2] - result.uptime[:, 1]).sum()) / 3.6e12


def scaling_cost(case: Case) -> float:
    """Instance hours with migration over those without, at the same thresholds."""
    return instance_hours(scaled(case, True)) / instance_hours(scaled(case, False))


def scaling_tail(case: Case) -> float:
    """P99 prefill without migration over that with it, both scaling."""
    return p99(prefill_s(scaled(case, False))) / p99(prefill_s(scaled(case, True)))


MEASURES: dict[str, Measure] = {
    "lost_tokens": lost_tokens,
    "downtime_ms": downtime_ms,
    "downtime_spread": downtime_spread,
    "prefill_p99": _best(p99),
    "prefill_mean": _best(mean),
    "request_p99": _ratio(request_s, p99),
    "decode_p99": _ratio(decode_s, p99),
    "round_robin_mean": _ratio(prefill_s, mean, "round_robin"),
    "preemption_saving": preemption_saving,
    "misordered": misordered,
    "urgent": lambda case: priorities(case)[0],
    "normal": lambda case: priorities(case)[1],
    "scaling_cost": scaling_cost,
    "scaling_tail": scaling_tail,
}


def picture(case: Case) -> Picture:
    """P99 prefill latency over the rate."""
    return Picture(
        title="P99 prefill latency, 16 instances",
        x_label="requests/s",
        y_label="s",
        log_y=True,
        lines=tuple(
            Line(
                label=name,
                x=RATES,
                y=tuple(p99(prefill_s(served(case, name, rate))) for rate in RATES),
            )
            for name in ROUTERS
        ),
    )
