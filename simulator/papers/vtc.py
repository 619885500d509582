"""VTC, fair shares between clients (OSDI'24): overload, weights, idle clients, a chat trace.

Service is counted as in the paper: input + 2 x output tokens, a request's spread evenly between its
first token and its end.
"""

from __future__ import annotations

from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from simulator.itl import token_log, token_times
from simulator.papers.case import Case, Line, Measure, Picture
from simulator.recorder import Result

Floats = NDArray[np.float64]
WEIGHT = 2.0  # of an output token
POOL = 10_000  # tokens
WINDOW_S = 60.0
FAIR = {"kind": "vtc", "input_weight": 1.0, "output_weight": WEIGHT, "admit_every": 10}
SCHEDULERS: dict[str, object] = {
    "fcfs": "vllm_v1",
    "lcf": {**FAIR, "lift": False},
    "vtc": FAIR,
    "predict": {**FAIR, "predict": "oracle", "predict_error": 0.5},
    "oracle": {**FAIR, "predict": "oracle"},
    "rpm5": {"kind": "rpm", "requests_per_minute": 5},
}


def service(result: Result, time_s: Floats) -> Floats:
    """Service given to each client up to each moment: [num_clients, num_moments]."""
    table = result.table
    assert table.client is not None
    total = np.zeros((int(table.client.max()) + 1, len(time_s)))
    for i in np.flatnonzero(result.first_token_ns >= 0).tolist():
        first_s = result.first_token_ns[i] / 1e9
        finish_s = result.finish_ns[i] / 1e9 if result.finish_ns[i] >= 0 else time_s[-1]
        share = np.clip((time_s - first_s) / max(1e-9, finish_s - first_s), 0.0, 1.0)
        asked = table.prompt_tokens[i] + WEIGHT * table.output_tokens[i]
        total[table.client[i]] += asked * share
    return total


def overload(case: Case, scheduler: str) -> tuple[Floats, Floats]:
    """Seconds, and each client's service, with two clients at 1.5 and 3 requests/s."""

    def make() -> tuple[Floats, Floats]:
        seconds = case.choose(600.0, 150.0)
        changes = {"scheduler": SCHEDULERS[scheduler], "workload.duration_s": f"{seconds:g} s"}
        result = case.simulate({**changes, "horizon": f"{seconds:g} s"})
        time_s = np.arange(0.0, seconds, 1.0)
        return time_s, service(result, time_s)

    return case.once(f"overload {scheduler}", make)


def overload_gap(case: Case) -> float:
    """Most that the two clients' service ever differs by, after the first minute."""
    time_s, given = overload(case, "vtc")
    return float(np.abs(given[0] - given[1])[time_s >= 60].max())


def _slope(scheduler: str) -> Measure:
    def slope(case: Case) -> float:
        """Growth of the gap after the first minute, as a share of all service given."""
        time_s, given = overload(case, scheduler)
        late = time_s >= 60
        gap = np.polyfit(time_s[late], np.abs(given[0] - given[1])[late], 1)[0]
        total = np.polyfit(time_s[late], given.sum(axis=0)[late], 1)[0]
        return float(gap / total)

    return slope


def throughput_ratio(case: Case) -> float:
    """Service of VTC over that of FCFS."""
    return float(overload(case, "vtc")[1][:, -1].sum() / overload(case, "fcfs")[1][:, -1].sum())


def _windowed(scheduler: str) -> Measure:
    def windowed(case: Case) -> float:
        """Mean distance of the clients' service in sliding windows, over that of FCFS."""
        gaps = []
        for name in (scheduler, "fcfs"):
            time_s, given = overload(case, name)
            ahead = (given[0] - given[1])[time_s >= 30]
            width = int(WINDOW_S)
            gaps.append(float(np.abs(ahead[width:] - ahead[:-width]).mean()))
        return gaps[0] / gaps[1]

    return windowed


def weighted(case: Case) -> float:
    """Worst share of four backlogged clients against weights 1:2:3:4."""
    client = {"arrivals": {"process": "constant", "rate": "3 /s"}, "input_len": 256}
    client |= {"output_len": 256, "copies": 4}
    seconds = case.choose(600.0, 200.0)
    result = case.simulate(
        {
            "scheduler": {**FAIR, "client_weights": [1.0, 2.0, 3.0, 4.0]},
            "workload": {"kind": "clients", "duration_s": f"{seconds:g} s", "clients": [client]},
            "horizon": f"{seconds:g} s",
        }
    )
    given = service(result, np.array([seconds / 4, seconds]))
    shares = (given[:, 1] - given[:, 0]) / np.array([1.0, 2.0, 3.0, 4.0])
    return float(np.abs(shares / shares.mean() - 1).max())


def _late_comer(scheduler: str) -> Measure:
    def share(case: Case) -> float:
        """Share of the client that was there first, in the 100 s after another begins late."""
        client = {"arrivals": {"process": "constant", "rate": "3 /s"}, "input_len": 256}
        client["output_len"] = 256
        result = case.simulate(
            {
                "scheduler": SCHEDULERS[scheduler],
                "workload": {
                    "kind": "clients",
                    "duration_s": "320 s",
                    "clients": [client, {**client, "start_s": 200.0}],
                },
                "horizon": "320 s",
            }
        )
        given = service(result, np.array([220.0, 320.0]))
        return float((given[0, 1] - given[0, 0]) / np.diff(given.sum(axis=0))[0])

    return share


def trace(case: Case, scheduler: str) -> Result:
    """The chat trace's 27 clients and lengths, sped up from 2.5 requests/s to the paper's 3.5."""
    changes: dict[str, object] = {"scheduler": SCHEDULERS[scheduler]}
    workload = {"preset": "arena_clients", "rate_scale": 3.5 / 2.5}
    changes["workload"] = {**workload, "duration_s": case.choose("600 s", "200 s")}
    return case.simulate(changes)


def shortfall(result: Result) -> float:
    """Largest total, over windows, of what clients got less than the best-served or they asked."""
    table = result.table
    assert table.client is not None
    end_s = float(table.arrival_ns[-1]) / 1e9
    time_s = np.arange(0.0, end_s, 5.0)
    given = service(result, time_s)
    asked = np.zeros_like(given)
    for i, at_ns in enumerate(table.arrival_ns.tolist()):
        cost = table.prompt_tokens[i] + WEIGHT * table.output_tokens[i]
        asked[table.client[i]] += cost * (time_s >= at_ns / 1e9)
    width = int(WINDOW_S / 5)
    got = given[:, width:] - given[:, :-width]
    want = asked[:, width:] - given[:, :-width]  # what was sent and not yet served
    short = np.minimum(got.max(axis=0), want) - got
    return float(np.clip(short, 0.0, None).sum(axis=0).max())


def _trace_gap(scheduler: str) -> Measure:
    return lambda case: shortfall(trace(case, scheduler)) / shortfall(trace(case, "fcfs"))


def rpm_throughput(case: Case) -> float:
    """Tokens of the limit of 5 requests a minute within the trace's ten minutes, over VTC's."""
    tokens = []
    for name in ("rpm5", "vtc"):
        result = trace(case, name)
        done = result.completed & (result.finish_ns <= case.choose(600, 200) * 1_000_000_000)
        tokens.append((result.table.prompt_tokens + result.table.output_tokens)[done].sum())
    return float(tokens[0] / tokens[1])


def exact_service(result: Result, input_weight: float, output_weight: float, ns: Floats) -> Floats:
    """Service as the theorem counts it, prompts at admission: [num_clients, num_moments].

    A prompt admitted at a moment counts after it: moments are ends of iterations.
    """
    table = result.table
    assert table.client is not None
    total = np.zeros((int(table.client.max()) + 1, len(ns)))
    for i, times in enumerate(token_times(token_log(result), len(table))):
        if len(times):
            client = table.client[i]
            total[client] += input_weight * table.prompt_tokens[i] * (ns > result.scheduled_ns[i])
            total[client] += output_weight * np.searchsorted(times, ns, side="right")
    return total


def largest_gap(result: Result, input_weight: float, output_weight: float) -> float:
    """Most that two clients' service differs by over a time in which both wait throughout.

    For a run without preemption on one lane, whose requests were all served or rejected.
    """
    table = result.table
    assert table.client is not None
    ns = np.unique(np.concatenate([result.scheduled_ns, result.lanes[0].end_ns]))
    given = exact_service(result, input_weight, output_weight, ns.astype(np.float64))
    waits = np.zeros((len(given), len(ns)), dtype=np.bool_)  # up to the next moment
    for i in np.flatnonzero(result.completed).tolist():
        waits[table.client[i]] |= (ns >= result.sent_ns[i]) & (ns < result.scheduled_ns[i])
    most = 0.0
    for f, g in combinations(range(len(given)), 2):
        both = np.concatenate([[0], (waits[f] & waits[g]).view(np.int8), [0]])
        edges = np.flatnonzero(np.diff(both))
        for begin, end in zip(edges[::2], edges[1::2], strict=True):
            ahead = (given[f] - given[g])[begin : end + 1]  # up to when one waits no longer
            most = max(most, float(ahead.max() - ahead.min()))
    return most


def share_of_bound(case: Case) -> float:
    """Worst gap over random workloads, as a share of 2 max(wp L, wq M)."""
    rng = np.random.default_rng([case.seed, 1])
    return max(_random_share(case, rng, number) for number in range(case.choose(100, 20)))


def _random_share(case: Case, rng: np.random.Generator, number: int) -> float:
    """Two to five clients with unlike rates, lengths and absences on a small pool."""
    clients = []
    for _ in range(int(rng.integers(2, 6))):
        client: dict[str, object] = {
            "arrivals": {"process": "poisson", "rate": f"{rng.choice([2, 8, 30])} /s"},
            "input_len": {"kind": "uniform", "low": 1, "high": int(rng.integers(2, 200))},
            "output_len": {"kind": "uniform", "low": 1, "high": int(rng.integers(2, 200))},
        }
        if rng.random() < 0.4:
            client |= {"on_s": 0.5, "off_s": float(rng.choice([0.5, 2.0]))}
        clients.append(client)
    pool = int(rng.integers(400, 1300))
    result = case.simulate(
        {
            "seed": case.seed * 1000 + number,
            "scheduler": {**FAIR, "admit_every": 1},
            "engine.num_blocks": pool,
            "engine.max_model_len": 400,
            "workload": {"kind": "clients", "duration_s": "3 s", "clients": clients},
        }
    )
    longest = float(result.table.prompt_tokens.max())
    return largest_gap(result, 1.0, WEIGHT) / (2 * max(longest, WEIGHT * pool))


MEASURES: dict[str, Measure] = {
    "share_of_bound": share_of_bound,
    "overload_gap": overload_gap,
    "slope_vtc": _slope("vtc"),
    "slope_fcfs": _slope("fcfs"),
    "throughput_ratio": throughput_ratio,
    "windowed_vtc": _windowed("vtc"),
    "windowed_predict": _windowed("predict"),
    "windowed_oracle": _windowed("oracle"),
    "weighted": weighted,
    "late_vtc": _late_comer("vtc"),
    "late_lcf": _late_comer("lcf"),
    "trace_vtc": _trace_gap("vtc"),
    "trace_oracle": _trace_gap("oracle"),
    "trace_lcf": _trace_gap("lcf"),
    "rpm_throughput": rpm_throughput,
}


def picture(case: Case) -> Picture:
    """Gap between the two clients over time."""
    lines = []
    for scheduler, name in (("fcfs", "FCFS"), ("vtc", "VTC")):
        time_s, given = overload(case, scheduler)
        gap = tuple((np.abs(given[0] - given[1]) / 1e3).tolist())
        lines.append(Line(label=name, x=tuple(time_s.tolist()), y=gap))
    bound = 2 * WEIGHT * POOL / 1e3
    lines.append(Line(label="VTC's bound", x=(0.0, lines[0].x[-1]), y=(bound, bound), dashed=True))
    return Picture(
        title="Gap between two overloading clients",
        x_label="simulated time (s)",
        y_label="thousand (input + 2 output) tokens",
        lines=tuple(lines),
    )
