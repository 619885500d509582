"""Multi-turn chat: each turn follows the answer to the one before and repeats its context."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.errors import ConfigError
from simulator.request import Ints, RequestTable
from simulator.units import parse
from simulator.workloads.arrivals import ArrivalSpec, parse_arrivals, unit_gaps
from simulator.workloads.checks import MAX_REQUESTS, check_int, check_number, stream, to_ns_column
from simulator.workloads.distributions import LengthSpec, parse_lengths
from simulator.workloads.prefixes import Blocks, num_blocks, offsets_of, positions


@dataclass(frozen=True, slots=True, kw_only=True)
class Sessions:
    """Closed-loop conversations; a turn's prompt is all earlier prompts and answers and its own."""

    num_sessions: int
    arrivals: ArrivalSpec  # of sessions: {process, rate, cv, profile, period_s}
    turns: LengthSpec = 4
    first_prompt: LengthSpec = 512  # tokens, without the shared prefix
    turn_input: LengthSpec = 64  # new tokens of each later turn
    output: LengthSpec = 128
    shared_prefix_len: int = 0  # tokens of a system prompt common to all sessions
    think_time: str = "0 s"  # mean, from the end of an answer to the next turn
    think_time_cv: float = 1.0  # gamma; 0 = constant
    max_concurrency: int = 0  # 0 = unlimited
    hash_block_tokens: int = 16

    def __post_init__(self) -> None:
        check_int("workload.num_sessions", self.num_sessions, low=1, high=MAX_REQUESTS)
        check_int("workload.shared_prefix_len", self.shared_prefix_len, low=0)
        check_int("workload.max_concurrency", self.max_concurrency, low=0)
        check_int("workload.hash_block_tokens", self.hash_block_tokens, low=1)
        check_number("workload.think_time_cv", self.think_time_cv, high=100)
        parse(self.think_time, "time", key="workload.think_time")
        parse_arrivals("workload.arrivals", self.arrivals)
        for name in ("turns", "first_prompt", "turn_input", "output"):
            parse_lengths(f"workload.{name}", getattr(self, name))

    def requests(self, seed: int) -> RequestTable:
        """Turns of all sessions, by start; every turn arrives with its session."""
        turns = self._draw(seed, "turns", self.num_sessions)
        first = offsets_of(turns)
        count = int(first[-1])
        if count > MAX_REQUESTS:
            raise ConfigError(f"workload.turns give {count} requests; the limit is {MAX_REQUESTS}")
        arrivals = parse_arrivals("workload.arrivals", self.arrivals)
        starts = arrivals.times_s(stream(seed, "workload.arrivals"), num_requests=self.num_sessions)
        session = np.repeat(np.arange(self.num_sessions), turns)
        turn = positions(first)
        outputs = self._draw(seed, "output", count)
        prompts = self._prompts(seed, first, outputs)
        is_first = turn == 0
        blocks = _session_blocks(
            prompts + outputs, first, self.shared_prefix_len, self.hash_block_tokens
        )
        return RequestTable(
            arrival_ns=to_ns_column(starts, "arrival")[session],
            prompt_tokens=prompts,
            output_tokens=outputs,
            session=session,
            parent=np.where(is_first, -1, np.arange(count) - 1),
            delay_ns=np.where(is_first, 0, self._think_ns(seed, count)),
            max_concurrency=self.max_concurrency,
            hash_ids=blocks.ids,
            hash_offsets=blocks.offsets,
            hash_block_tokens=self.hash_block_tokens,
            name="sessions",
        )

    def _draw(self, seed: int, name: str, count: int) -> Ints:
        drawn = parse_lengths(f"workload.{name}", getattr(self, name)).draw(
            stream(seed, f"workload.{name}"), count
        )
        return np.maximum(drawn, 1)

    def _prompts(self, seed: int, first: Ints, outputs: Ints) -> Ints:
        """Prompt tokens of every turn: the running total of its session."""
        count = int(first[-1])
        added = self._draw(seed, "turn_input", count)
        added[first[:-1]] = self._draw(seed, "first_prompt", self.num_sessions)
        total = np.cumsum(added + outputs)  # context after each turn, sessions end to end
        before = np.concatenate([[0], total])[first[:-1]]  # what earlier sessions contributed
        own = total - np.repeat(before, np.diff(first))
        prompts: Ints = self.shared_prefix_len + own - outputs
        return prompts

    def _think_ns(self, seed: int, count: int) -> Ints:
        mean_s = parse(self.think_time, "time", key="workload.think_time")
        rng = stream(seed, "workload.think_time")
        process = "gamma" if self.think_time_cv else "constant"
        return to_ns_column(
            unit_gaps(rng, process, self.think_time_cv, count) * mean_s, "workload.think_time"
        )


def _session_blocks(context: Ints, first: Ints, prefix_tokens: int, block_tokens: int) -> Blocks:
    """Ids over prompt and output of every turn.

    Full blocks recur in later turns; a partial last block is the turn's own, as the next turn
    fills that block with other content. Full blocks of the shared prefix recur everywhere.
    """
    count = len(context)
    offsets = offsets_of(num_blocks(context, block_tokens))
    within = positions(offsets)
    shared = prefix_tokens // block_tokens
    longest = context[first[1:] - 1] // block_tokens  # full blocks of each session's last turn
    base = shared + count + offsets_of(longest)[:-1]  # ids: prefix, partial blocks, sessions
    row = np.repeat(np.arange(count), np.diff(offsets))
    session_base = np.repeat(base, np.diff(first))
    ids = np.where(within < shared, within, session_base[row] + within)
    partial = np.flatnonzero(context % block_tokens)
    ids[offsets[partial + 1] - 1] = shared + partial
    return Blocks(ids, offsets)
