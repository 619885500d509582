"""The requests of a measured run: replayed where they were recorded, drawn where only their
distributions are known. Lengths are never replaced by their mean.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd

from simulator.errors import ConfigError
from simulator.request import Ints, RequestTable
from simulator.validation.rows import Row
from simulator.workloads.arrivals import Arrivals
from simulator.workloads.checks import stream
from simulator.workloads.prefixes import Blocks, num_blocks, offsets_of, positions

HASH_TOKENS = 16  # of a block id; vLLM's default block


def load_of(row: Row, folder: Path, seed: int) -> RequestTable:
    """The requests of a run, the recorded ones first to last.

    Raises:
        ConfigError: a column or file that cannot be used.
    """
    file = row.text("workload_file")
    recorded = _read(folder / file) if file else None
    warm_up = 0 if recorded is not None else _warm_up(row)
    count = len(recorded) if recorded is not None else row.integer("num_requests") + warm_up
    if count < 1:
        raise ConfigError("num_requests: expected at least 1 (got 0)")
    if recorded is not None:
        prompt, output = recorded["input_tokens"].to_numpy(), recorded["output_tokens"].to_numpy()
    else:
        prompt = _lengths(row, "input", count, seed)
        output = _lengths(row, "output", count, seed)
    limit, arrival_ns = _arrivals(row, recorded, count, seed)
    if warm_up:
        arrival_ns = _after(arrival_ns, warm_up)
    blocks = _blocks(row, recorded, prompt)
    return RequestTable(
        arrival_ns=arrival_ns,
        prompt_tokens=np.maximum(prompt, 1).astype(np.int64),
        output_tokens=np.maximum(output, 1).astype(np.int64),
        max_concurrency=limit,
        hash_ids=blocks.ids if blocks else None,
        hash_offsets=blocks.offsets if blocks else None,
        hash_block_tokens=HASH_TOKENS if blocks else 0,
        name=file or row.run_id,
    )


def scored_requests(row: Row, table: RequestTable) -> slice:
    """The requests whose measurements the row states."""
    warm_up = 0 if row.text("workload_file") else _warm_up(row)
    first = row.integer("request_index_from", warm_up)
    last = row.integer("request_index_to", len(table) - 1)
    if not first <= last < len(table):
        raise ConfigError(
            f"request_index_to: expected an index from {first} to {len(table) - 1} (got {last})"
        )
    return slice(first, last + 1)


def stage_of(row: Row) -> int:
    """Which of several load stages of one server process the row is; 0 = the first or only one."""
    found = re.search(r"_stage(\d+)$", row.run_id)
    return int(found[1]) if found else 0


def _warm_up(row: Row) -> int:
    """Requests sent before a later stage, whose prompts the first stage has left in the cache."""
    return row.integer("distinct_prompts", 0) if stage_of(row) else 0


def _after(arrival_ns: Ints, warm_up: int) -> Ints:
    """The first `warm_up` requests two a second and a minute's rest, then the others as drawn."""
    before = np.arange(warm_up, dtype=np.int64) * 500_000_000
    shift = int(before[-1]) + 60_000_000_000 - int(arrival_ns[warm_up])
    return np.concatenate([before, arrival_ns[warm_up:] + shift])


def _read(path: Path) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"workload_file: {path.name}: cannot be read ({error})") from None
    for name in ("input_tokens", "output_tokens"):
        if name not in frame or not (frame[name] >= 0).all():
            raise ConfigError(f"workload_file: {path.name}: {name}: expected whole numbers >= 0")
    return frame


def _lengths(row: Row, side: str, count: int, seed: int) -> Ints:
    """Token counts drawn from the stated distribution."""
    kind = row.text(f"{side}_len_kind")
    mean = row.number(f"{side}_len_mean")
    low, high = row.number(f"{side}_len_min"), row.number(f"{side}_len_max")
    if kind == "uniform" and low is not None and high is not None:
        if low > high:
            raise ConfigError(f"{side}_len_min: expected at most {high:g} (got {low:g})")
        rng = stream(seed, f"workload.{side}_tokens")
        return rng.integers(round(low), round(high) + 1, count)
    if mean is None:
        raise ConfigError(f"{side}_len_mean: expected a number of tokens (got nothing)")
    if kind in ("constant", "shared_prefix", "uniform"):
        return np.full(count, round(mean), dtype=np.int64)
    if kind == "natural":
        # Outputs that end by themselves: exponential, the widest guess a mean alone allows.
        rng = stream(seed, f"workload.{side}_tokens")
        return np.maximum(1, rng.exponential(mean, count).round()).astype(np.int64)
    kinds = "file, constant, uniform, shared_prefix or natural"
    raise ConfigError(f"{side}_len_kind: expected {kinds} (got {kind!r})")


def _arrivals(row: Row, recorded: pd.DataFrame | None, count: int, seed: int) -> tuple[int, Ints]:
    """The concurrency limit of the client (0 = none), and when each request is ready."""
    kind = row.text("arrival_kind")
    limit = row.integer("max_concurrency", 0)
    if kind == "file":
        if recorded is None or "arrival_s" not in recorded:
            raise ConfigError("arrival_kind: expected a workload_file with arrival_s (got none)")
        times_s = recorded["arrival_s"].to_numpy(dtype=np.float64)
        return limit, np.rint((times_s - times_s[0]) * 1e9).astype(np.int64)
    if kind in ("closed", "burst"):
        if kind == "closed" and not limit:
            raise ConfigError("max_concurrency: a closed loop needs one (got nothing)")
        return limit, np.zeros(count, dtype=np.int64)
    if kind not in ("poisson", "gamma"):
        raise ConfigError(
            f"arrival_kind: expected file, poisson, gamma, closed or burst (got {kind!r})"
        )
    rate = row.number("request_rate_rps")
    if not rate or rate == float("inf"):
        raise ConfigError(f"request_rate_rps: expected a rate > 0 (got {rate})")
    shape = row.number("burstiness_gamma_shape") or 1.0
    process = "gamma" if shape < float("inf") else "constant"
    arrivals = Arrivals(process=process, rate_per_s=rate, cv=shape**-0.5)
    times_s = arrivals.times_s(stream(seed, "workload.arrivals"), num_requests=count)
    return limit, np.rint((times_s - times_s[0]) * 1e9).astype(np.int64)


def _blocks(row: Row, recorded: pd.DataFrame | None, prompt: Ints) -> Blocks | None:
    """Content of the prompts where some repeat: equal prompts have equal ids."""
    distinct = row.integer("distinct_prompts", 0)
    if recorded is not None and "prompt_id" in recorded:
        text = recorded["prompt_id"].to_numpy(dtype=np.int64)
    elif distinct:
        text = np.arange(len(prompt), dtype=np.int64) % distinct
    else:
        return None
    per_group = max(1, distinct // row.integer("prompt_groups", distinct or 1))
    shared = row.integer("shared_prefix_tokens", 0) // HASH_TOKENS
    offsets = offsets_of(num_blocks(np.asarray(prompt, dtype=np.int64), HASH_TOKENS))
    owner = np.repeat(text, np.diff(offsets))
    within = positions(offsets)
    most = int(within.max()) + 1
    # Texts of a group begin alike; which text belongs to which group is taken in order.
    own = (int(text.max()) + 2 + owner) * most + within
    return Blocks(np.where(within < shared, owner // per_group * most + within, own), offsets)
