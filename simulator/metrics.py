"""What a run means to a user: `summarise` (one flat JSON-able dict) and tables of its columns.

Names and definitions are those of `vllm bench serve` where it has them (milliseconds included);
everything else is in SI base units and says so in its name. None stands for what is not defined.
Requests that were rejected or cut by the horizon count as failing every SLO and, in rates and
latencies, not at all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.costs.fitted import ROOFLINE, source_of
from simulator.energy import energy_j, price_per_hour
from simulator.experiment import Experiment
from simulator.frames import iteration_frame, request_frame, timeseries
from simulator.itl import TokenLog, statistics, token_log
from simulator.latency import RequestTimes, request_times, slo_met
from simulator.occupancy import kv_utilisation, running_and_waiting, sharing_saves
from simulator.recorder import REJECTED, UNFINISHED, Result
from simulator.segments import SegmentTable, segment_table
from simulator.spec import GpuSpec, Slo
from simulator.utilisation import extrapolated_share, mfu_mbu, replica_gpus, segment_work

__all__ = ["iteration_frame", "request_frame", "summarise", "timeseries"]

Floats = NDArray[np.float64]
NS = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A result and what every section of the summary derives from it."""

    experiment: Experiment
    result: Result
    log: TokenLog
    times: RequestTimes
    segments: SegmentTable
    start_ns: int  # first request sent
    end_ns: int  # last finish; of a run cut by the horizon, its last iteration

    @property
    def duration_s(self) -> float:
        return (self.end_ns - self.start_ns) / NS

    @property
    def input_tokens(self) -> int:
        return int(self.result.table.prompt_tokens[self.result.completed].sum())

    @property
    def output_tokens(self) -> int:
        return int(self.result.table.answer_tokens[self.result.completed].sum())


def summarise(
    experiment: Experiment, result: Result, percentiles: Sequence[float] = (50, 90, 95, 99)
) -> dict[str, object]:
    """All metrics of a run; keys of `vllm bench serve` first, then our own."""
    log = token_log(result)
    start_ns, end_ns = _window_ns(result)
    run = Run(
        experiment=experiment,
        result=result,
        log=log,
        times=request_times(result, log),
        segments=segment_table(result),
        start_ns=start_ns,
        end_ns=end_ns,
    )
    summary = {
        **_volumes(run),
        **_peaks(run),
        **_latencies(run, percentiles),
        **_split(run, percentiles),
        **_service_levels(run),
        **_batches(run),
        **_samples(run),
        **_speculation(run),
        **_occupancy(run),
        **_hardware(run),
    }
    notes = [*result.table.notes, *(x for x in result.notes if x not in result.table.notes)]
    return {**{key: _plain(value) for key, value in summary.items()}, "notes": notes}


def _window_ns(result: Result) -> tuple[int, int]:
    sent = result.sent_ns[result.sent_ns >= 0]
    start_ns = int(sent.min()) if len(sent) else 0
    end_ns = max(start_ns, int(result.finish_ns.max()))
    cut = bool((result.status == UNFINISHED).any())
    return start_ns, max(end_ns, result.end_ns) if cut else end_ns


def _volumes(run: Run) -> dict[str, object]:
    """Counts and rates; goodput where an SLO is set."""
    result, slo = run.result, run.experiment.slo
    completed = int(result.completed.sum())
    good = int(slo_met(result, run.times, slo)["all"].sum())

    def rate(count: int) -> float:
        return count / run.duration_s if run.duration_s > 0 else math.nan

    return {
        "duration": run.duration_s,
        "completed": completed,
        "failed": int((result.status == REJECTED).sum()),
        "total_input_tokens": run.input_tokens,
        "total_output_tokens": run.output_tokens,
        "request_throughput": rate(completed),
        "request_goodput": rate(good) if slo.is_set else None,
        "output_throughput": rate(run.output_tokens),
        "total_token_throughput": rate(run.input_tokens + run.output_tokens),
        "rtfx": 0.0,  # audio only
        "input_throughput": rate(run.input_tokens),
        "unfinished": int((result.status == UNFINISHED).sum()),
    }


def _peaks(run: Run) -> dict[str, object]:
    """Largest number of tokens, and of requests in flight, in any second from the first request."""
    done = np.flatnonzero(run.result.completed)
    if len(done) == 0:
        return {"max_output_tokens_per_s": 0.0, "max_concurrent_requests": 0}
    sent, finish = run.result.sent_ns[done], run.result.finish_ns[done]
    origin = int(sent.min())
    tokens = run.log.tokens_per_iteration()
    used = np.flatnonzero(tokens)
    per_second = np.bincount((run.log.end_ns[used] - origin) // NS, weights=tokens[used])
    first, after = (sent - origin) // NS, -((origin - finish) // NS)
    size = int(after.max()) + 1
    in_flight = np.bincount(first, minlength=size) - np.bincount(after, minlength=size)
    return {
        "max_output_tokens_per_s": float(per_second.max()),
        "max_concurrent_requests": int(np.cumsum(in_flight).max()),
    }


def _latencies(run: Run, percentiles: Sequence[float]) -> dict[str, object]:
    """mean, median, std and percentiles in ms, under the names of vllm bench serve."""
    done, times, table = run.result.completed, run.times, run.result.table
    gaps_ns, counts = run.log.gaps()
    pooled = statistics(gaps_ns / NS, percentiles, counts)
    groups = {
        "ttft": statistics(times.ttft_s[done], percentiles),
        "tpot": statistics(_known(times.tpot_s[done]), percentiles),
        "itl": pooled,
        "e2el": statistics(times.e2e_s[done], percentiles),
    }
    if table.max_concurrency:
        queue_s = times.client_queue_s[done]
        groups["client_queue_time"] = statistics(queue_s, percentiles)
        if table.duration_s > 0:  # a finite request rate
            total_s = queue_s + times.e2e_s[done]
            groups["e2el_including_client_queue"] = statistics(total_s, percentiles)
    return {
        f"{name}_{metric}_ms": value * 1000
        for metric, values in groups.items()
        for name, value in values.items()
    }


def _split(run: Run, percentiles: Sequence[float]) -> dict[str, object]:
    """Where end-to-end time went, in seconds, and its inverse as a user sees it."""
    done, times = run.result.completed, run.times
    groups = {
        "queueing": times.queueing_s,
        "prefill": times.prefill_s,
        "decode": times.decode_s,
        "preempted": times.preempted_s,
    }
    tpot_s = _known(times.tpot_s[done])
    tpot_mean_s = float(tpot_s.mean()) if len(tpot_s) else 0.0
    return {
        **{
            f"{name}_{metric}_s": value
            for metric, values in groups.items()
            for name, value in statistics(values[done], percentiles).items()
        },
        "output_tokens_per_s_per_user": 1 / tpot_mean_s if tpot_mean_s > 0 else None,
    }


def _service_levels(run: Run) -> dict[str, object]:
    """Share of all requests that met each target, None for targets that are not set."""
    slo: Slo = run.experiment.slo
    met = slo_met(run.result, run.times, slo)
    shares = {name: float(column.mean()) for name, column in met.items()}
    targets = {"ttft": slo.ttft_s, "tpot": slo.tpot_s, "e2e": slo.e2e_s}
    return {
        **{f"slo_{k}_s": v for k, v in targets.items()},
        **{f"slo_attainment_{k}": shares[k] if v < math.inf else None for k, v in targets.items()},
        "slo_attainment": shares["all"] if slo.is_set else None,
        "slo_attainment_target": slo.attainment if slo.is_set else None,
        "slo_met": shares["all"] >= slo.attainment if slo.is_set else None,
    }


def _batches(run: Run) -> dict[str, object]:
    """Means an iteration, prefix hits and preemptions."""
    result, segments = run.result, run.segments
    num_iterations = int(segments.columns["iterations"].sum())
    num_seqs = segments.total("num_decode") + segments.total("num_prefill")
    names = ("num_decode", "draft_tokens", "prefill_tokens")
    num_tokens = sum(segments.total(name) for name in names)
    admitted = result.scheduled_ns >= 0
    prompt_tokens = int(result.table.prompt_tokens[admitted].sum())
    cached_tokens = int(result.cached_tokens[admitted].sum())
    return {
        "iterations": num_iterations,
        "mean_num_seqs": num_seqs / num_iterations if num_iterations else None,
        "mean_num_tokens": num_tokens / num_iterations if num_iterations else None,
        "prefix_hit_rate": cached_tokens / prompt_tokens if prompt_tokens else None,
        "preemptions": int(result.preemptions.sum()),
        "preempted_requests": int((result.preemptions > 0).sum()),
        **result.counters,
    }


def _samples(run: Run) -> dict[str, object]:
    """Answers, and what their sharing of blocks saves; nothing where each request has one."""
    counts = run.result.table.num_samples
    if run.result.samples is None or counts is None:
        return {}
    forks = any(lane.saved_blocks is not None for lane in run.result.lanes)
    return {
        "completed_answers": int(counts[run.result.completed].sum()),
        "kv_saved_by_sharing": sharing_saves(run.result, run.segments) if forks else None,
    }


def _speculation(run: Run) -> dict[str, object]:
    """Acceptance under the names (and in the per cent) of vllm bench serve, and where time went.

    Nothing without speculation. A draft counts as accepted where a request ended inside it.
    """
    if run.experiment.speculation is None:
        return {}
    segments = run.segments
    columns, num_decode = segments.columns, segments.columns["num_decode"]
    drafts, tokens = segments.total("drafts"), segments.total("draft_tokens")
    accepted = segments.total("accepted_tokens")
    hist = sum((x.accepted_at for x in run.result.lanes if x.accepted_at is not None), start=0)
    at_least = np.cumsum(np.atleast_1d(hist)[::-1])[::-1]
    busy_ns, draft_ns = segments.busy_ns, columns["draft_ns"]
    verify_ns = np.where(columns["draft_tokens"] > 0, busy_ns - draft_ns, 0)
    asked = float((columns["asked"] * num_decode).sum())
    return {
        "spec_decode_acceptance_rate": _ratio(100.0 * accepted, tokens),
        "spec_decode_acceptance_length": 1 + accepted / drafts if drafts else None,
        "spec_decode_num_drafts": drafts,
        "spec_decode_draft_tokens": tokens,
        "spec_decode_accepted_tokens": accepted,
        "spec_decode_per_position_acceptance_rates": [
            count / drafts for count in at_least[1:].tolist() if drafts
        ],
        "mean_speculative_tokens": _ratio(asked, float(num_decode.sum())),
        "draft_time_share": _ratio(float(draft_ns.sum()), float(busy_ns.sum())),
        "verify_time_share": _ratio(float(verify_ns.sum()), float(busy_ns.sum())),
    }


def _occupancy(run: Run) -> dict[str, object]:
    """Time-weighted means and maxima of KV use and of requests running and waiting."""
    shares, peak = kv_utilisation(run.result, run.segments)
    running, waiting = running_and_waiting(run.result, run.log)
    busy_s = float(run.segments.busy_ns.sum()) / NS
    lanes_s = len(run.result.lanes) * run.duration_s
    return {
        "mean_kv_utilisation": shares.mean(run.start_ns, run.end_ns),
        "max_kv_utilisation": peak,
        "mean_running": running.mean(run.start_ns, run.end_ns),
        "max_running": int(running.max()),
        "mean_waiting": waiting.mean(run.start_ns, run.end_ns),
        "max_waiting": int(waiting.max()),
        "busy_share": busy_s / lanes_s if lanes_s > 0 else None,
    }


def _hardware(run: Run) -> dict[str, object]:
    """Utilisation of the plan's GPUs, their energy (uncalibrated model) and their cost."""
    experiment, seconds = run.experiment, run.duration_s
    work = segment_work(experiment, run.segments)
    joules = energy_j(experiment, run.segments, work, seconds)
    price = price_per_hour(experiment)
    paid, total = price / 3600 * seconds, run.input_tokens + run.output_tokens
    gpus = replica_gpus(experiment)
    num_gpus = experiment.plan.num_gpus
    per_gpu_s = num_gpus * seconds
    return {
        "model": experiment.model.name,
        "gpu": ", ".join(sorted({gpu.name for gpu in gpus})),
        "num_gpus": num_gpus,
        "plan": str(experiment.plan),
        "cost_tables": _cost_tables(run, gpus),
        "total_tokens_per_s_per_gpu": _ratio(total, per_gpu_s),
        "output_tokens_per_s_per_gpu": _ratio(run.output_tokens, per_gpu_s),
        **mfu_mbu(experiment, work, seconds),
        "energy_j": joules,
        "energy_j_per_output_token": _ratio(joules, run.output_tokens),
        "mean_power_w": _ratio(joules, seconds),
        "usd_per_hour": price,
        "usd_per_million_output_tokens": _ratio(paid * 1e6, run.output_tokens),
        "usd_per_million_total_tokens": _ratio(paid * 1e6, total),
    }


def _cost_tables(run: Run, gpus: list[GpuSpec]) -> str:
    """Where every price comes from, and how much of the time lies beyond what was measured."""
    settings = run.experiment.settings
    stated = "; ".join(sorted({source_of(gpu, settings) for gpu in gpus}))
    if not settings.extrapolate or settings.calibration in ("", ROOFLINE):
        return stated
    share = extrapolated_share(run.experiment, run.segments)
    return f"{stated}; {100 * share:.0f} % of the time beyond the measured sizes"


def _known(values: Floats) -> Floats:
    return values[~np.isnan(values)]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None


def _plain(value: object) -> object:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
