"""Measures that the papers on drafters share: a closed loop, with drafts and without."""

from __future__ import annotations

from simulator.papers.case import Case, Changes
from simulator.recorder import Result

NO_DRAFTS: Changes = {"speculation": None}


def closed_loop(case: Case, changes: Changes, num_seqs: int, requests: int) -> Result:
    """So many requests, `num_seqs` of them at a time."""
    load = {"workload.max_concurrency": num_seqs, "workload.num_prompts": requests}
    return case.simulate({**load, **changes})


def output_per_s(result: Result) -> float:
    """Output tokens a second."""
    return float(result.table.output_tokens.sum()) / (result.end_ns / 1e9)


def speed_up(case: Case, changes: Changes, num_seqs: int, requests: int) -> float:
    """Output tokens a second over those without drafts."""
    plain = {key: value for key, value in changes.items() if not key.startswith("speculation")}
    none = closed_loop(case, {**plain, **NO_DRAFTS}, num_seqs, requests)
    return output_per_s(closed_loop(case, changes, num_seqs, requests)) / output_per_s(none)
