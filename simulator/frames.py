"""Tables of a run as pandas frames, in seconds: requests, iterations, and time buckets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from simulator.errors import ConfigError
from simulator.itl import token_log
from simulator.latency import request_times
from simulator.occupancy import kv_utilisation, running_and_waiting
from simulator.recorder import COMPLETED, REJECTED, UNFINISHED, LaneResult, Result
from simulator.segments import segment_table
from simulator.units import to_ns

if TYPE_CHECKING:  # pandas takes longer to import than a small run takes to simulate
    import pandas as pd

STATUS_NAMES = {COMPLETED: "completed", REJECTED: "rejected", UNFINISHED: "unfinished"}


def request_frame(result: Result) -> pd.DataFrame:
    """One row a request, in arrival order; times are NaN where they never happened."""
    import pandas as pd

    table, times = result.table, request_times(result, token_log(result))
    moments = {
        "sent_s": result.sent_ns,
        "scheduled_s": result.scheduled_ns,
        "first_token_s": result.first_token_ns,
        "finish_s": result.finish_ns,
    }
    names = ("ttft", "tpot", "e2e", "queueing", "prefill", "decode", "preempted", "client_queue")
    extras = {"priority": table.priority, "client": table.client, "session": table.session}
    extras["n"] = table.num_samples
    return pd.DataFrame(
        {
            "request": np.arange(len(table)),
            "arrival_s": table.arrival_ns / 1e9,
            **{name: np.where(ns >= 0, ns / 1e9, np.nan) for name, ns in moments.items()},
            "prompt_tokens": table.prompt_tokens,
            "output_tokens": table.answer_tokens,
            "cached_tokens": result.cached_tokens,
            "preemptions": result.preemptions,
            "status": [STATUS_NAMES[code] for code in result.status.tolist()],
            "target": result.target,
            **{f"{name}_s": getattr(times, f"{name}_s") for name in names},
            **{name: column for name, column in extras.items() if column is not None},
        }
    )


def iteration_frame(result: Result) -> pd.DataFrame:
    """One row a lane iteration, lane after lane.

    Used blocks and waiting requests are those of the segment's first iteration.
    """
    import pandas as pd

    frames = [_lane_frame(lane) for lane in result.lanes]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def _lane_frame(lane: LaneResult) -> pd.DataFrame:
    import pandas as pd

    iterations = lane.segments["iterations"]
    first = np.cumsum(iterations) - iterations  # iteration that starts each segment
    spread = {k: np.repeat(v, iterations) for k, v in lane.segments.items() if k != "iterations"}
    index = np.arange(len(lane.end_ns))
    since = index - np.repeat(first, iterations)
    spread["decode_kv_tokens"] = spread["decode_kv_tokens"] + since * spread["num_decode"]
    previous_ns = np.concatenate(([0], lane.end_ns[:-1]))
    start_ns = previous_ns.copy()
    start_ns[first] = np.maximum(lane.segment_start_ns, previous_ns[first])
    place = {"replica": lane.replica, "rank": lane.rank, "lane": lane.lane}
    moments = {"start_s": start_ns / 1e9, "end_s": lane.end_ns / 1e9}
    return pd.DataFrame({**place, "iteration": index, **moments, **spread})


def timeseries(result: Result, bucket_s: float) -> pd.DataFrame:
    """Means and rates in buckets of `bucket_s` from time 0, the last one cut at the end of the run.

    Raises:
        ConfigError: `bucket_s` is not positive.
    """
    import pandas as pd

    if not bucket_s > 0:
        raise ConfigError(f"bucket_s: expected a time > 0 s (got {bucket_s})")
    log, segments = token_log(result), segment_table(result)
    end_ns = max(result.end_ns, int(result.sent_ns.max()), 0)
    bucket_ns = max(1, to_ns(bucket_s))
    starts_ns = np.arange(0, max(end_ns, 1), bucket_ns)
    edges_ns = np.append(starts_ns, max(end_ns, 1)).astype(np.float64)
    width_s = np.diff(edges_ns) / 1e9
    running, waiting = running_and_waiting(result, log)
    sent_ns = result.sent_ns[result.sent_ns >= 0]
    counts = {
        "output_tokens_per_s": np.histogram(
            log.end_ns, edges_ns, weights=log.tokens_per_iteration()
        )[0],
        "sent_per_s": np.histogram(sent_ns, edges_ns)[0],
        "finished_per_s": np.histogram(result.finish_ns[result.completed], edges_ns)[0],
    }
    return pd.DataFrame(
        {
            "time_s": edges_ns[:-1] / 1e9,
            "running": running.means(edges_ns),
            "waiting": waiting.means(edges_ns),
            "kv_utilisation": kv_utilisation(result, segments)[0].means(edges_ns),
            **{name: count / width_s for name, count in counts.items()},
        }
    )
