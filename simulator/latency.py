"""Where each request's time went: TTFT, TPOT, E2E and their split, as columns in seconds.

NaN marks what never happened. Client-side waiting (a closed loop at its concurrency limit) is
apart: TTFT and E2E start when the request is sent, as in vllm bench serve.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.itl import TokenLog
from simulator.recorder import Result
from simulator.spec import Slo

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTimes:
    """One entry a request, seconds. queueing + prefill + decode + preempted = e2e."""

    ttft_s: Floats  # first token - sent
    tpot_s: Floats  # (finish - first token) / (tokens of the longest answer - 1), NaN for one
    e2e_s: Floats  # finish - sent
    queueing_s: Floats  # first admission - sent
    prefill_s: Floats  # first token - first admission
    decode_s: Floats  # finish - first token, preempted time left out
    preempted_s: Floats  # last token before a preemption to the first one after it, summed
    client_queue_s: Floats  # sent - ready to be sent


def request_times(result: Result, log: TokenLog) -> RequestTimes:
    """The times of every request of a run."""
    table = result.table
    decode_ns = _between(result.first_token_ns, result.finish_ns)
    request, gap_ns = log.resumptions()
    rows = len((result.samples or result).table)
    preempted_ns = np.bincount(request, weights=gap_ns, minlength=rows)
    if table.num_samples is not None and result.samples is not None:  # the one that waited longest
        first = np.cumsum(table.num_samples) - table.num_samples
        preempted_ns = np.maximum.reduceat(preempted_ns, first)
    gaps = np.where(table.output_tokens > 1, table.output_tokens - 1, np.nan)
    return RequestTimes(
        ttft_s=_between(result.sent_ns, result.first_token_ns) / 1e9,
        tpot_s=decode_ns / 1e9 / gaps,
        e2e_s=_between(result.sent_ns, result.finish_ns) / 1e9,
        queueing_s=_between(result.sent_ns, result.scheduled_ns) / 1e9,
        prefill_s=_between(result.scheduled_ns, result.first_token_ns) / 1e9,
        decode_s=(decode_ns - preempted_ns) / 1e9,
        preempted_s=np.where(np.isnan(decode_ns), np.nan, preempted_ns / 1e9),
        client_queue_s=_between(_ready_ns(result), result.sent_ns) / 1e9,
    )


def slo_met(result: Result, times: RequestTimes, slo: Slo) -> dict[str, Bools]:
    """Which requests met each target ('ttft', 'tpot', 'e2e') and 'all' of them.

    As in vllm bench serve, a one-token request has TPOT 0; a request that did not complete meets
    nothing.
    """
    done = result.completed
    met = {
        "ttft": done & (times.ttft_s <= slo.ttft_s),
        "tpot": done & (np.nan_to_num(times.tpot_s) <= slo.tpot_s),
        "e2e": done & (times.e2e_s <= slo.e2e_s),
    }
    return {**met, "all": met["ttft"] & met["tpot"] & met["e2e"]}


def _between(start_ns: Ints, end_ns: Ints) -> Floats:
    return np.where((start_ns < 0) | (end_ns < 0), np.nan, (end_ns - start_ns).astype(np.float64))


def _ready_ns(result: Result) -> Ints:
    table = result.table
    if table.parent is None:
        return table.arrival_ns
    delay_ns = table.delay_ns if table.delay_ns is not None else np.zeros(len(table), np.int64)
    after_parent = np.where(table.parent >= 0, result.finish_ns[table.parent] + delay_ns, 0)
    return np.maximum(table.arrival_ns, after_parent)
