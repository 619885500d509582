"""Several clients, each with its own arrivals and lengths: steady, on and off, drifting, or Zipf.

A client's arrivals run on a clock of its own that stands still while it is off. `copies` makes
alike clients with separate draws; with `zipf` they share the entry's rate as 1 / rank**zipf.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from simulator.errors import ConfigError
from simulator.request import Ints, RequestTable
from simulator.workloads.arrivals import Arrivals, parse_arrivals
from simulator.workloads.checks import (
    Floats,
    check_int,
    check_keys,
    check_number,
    shown,
    stream,
    to_ns_column,
)
from simulator.workloads.distributions import parse_lengths

KEYS = ("arrivals", "input_len", "output_len", "start_s", "end_s", "on_s", "off_s", "copies")
REQUIRED = ("arrivals", "input_len", "output_len")
MAX_CLIENTS = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Clients:
    """Clients with arrivals and lengths of their own; `client` numbers them from 0."""

    clients: Sequence[Mapping[str, Any]]  # each: arrivals, input_len, output_len, and of the rest
    duration_s: float  # nobody sends later

    def __post_init__(self) -> None:
        check_number("workload.duration_s", self.duration_s, above=True)
        if not self.clients:
            raise ConfigError("workload.clients must be a list that is not empty (got [])")
        if len(self._each()) > MAX_CLIENTS:
            raise ConfigError(f"workload.clients must be at most {MAX_CLIENTS} clients")

    def requests(self, seed: int) -> RequestTable:
        """The requests of all clients in order of arrival; at one instant, by client."""
        times, client = [], []
        prompts: list[Ints] = []
        outputs: list[Ints] = []
        for number, (key, entry, share) in enumerate(self._each()):
            seconds = self._times_s(seed, number, key, entry, share)
            for name, columns in (("input", prompts), ("output", outputs)):
                lengths = parse_lengths(f"{key}.{name}_len", entry[f"{name}_len"])
                rng = stream(seed, f"workload.{name}_tokens", number)
                columns.append(np.maximum(1, lengths.draw(rng, len(seconds))))
            times.append(seconds)
            client.append(np.full(len(seconds), number))
        arrival_ns = to_ns_column(np.concatenate(times), "arrival")
        if len(arrival_ns) == 0:
            raise ConfigError(f"workload: no request comes within {self.duration_s:g} s")
        order = np.argsort(arrival_ns, kind="stable")
        return RequestTable(
            arrival_ns=arrival_ns[order],
            prompt_tokens=np.concatenate(prompts)[order],
            output_tokens=np.concatenate(outputs)[order],
            client=np.concatenate(client)[order],
            name="clients",
        )

    def _each(self) -> list[tuple[str, dict[str, Any], float]]:
        """Key, entry and share of its entry's rate, for each single client."""
        found = []
        for index, raw in enumerate(self.clients):
            key = f"workload.clients[{index}]"
            entry = check_keys(key, raw, (*KEYS, "zipf"))
            for name in REQUIRED:
                if name not in entry:
                    raise ConfigError(f"{key}.{name}: this key is required")
            for name in ("start_s", "end_s", "on_s", "off_s", "zipf"):
                if name in entry:
                    check_number(f"{key}.{name}", entry[name], above=name in ("on_s", "end_s"))
            if ("on_s" in entry) != ("off_s" in entry):
                raise ConfigError(f"{key}: on_s and off_s go together (got {shown(raw)})")
            copies = entry.get("copies", 1)
            check_int(f"{key}.copies", copies, low=1, high=MAX_CLIENTS)
            assert isinstance(copies, int)
            weights = np.arange(1, copies + 1, dtype=np.float64) ** -float(
                str(entry.get("zipf", 0))
            )
            shares = weights / weights.sum() if "zipf" in entry else weights
            parse_arrivals(f"{key}.arrivals", entry["arrivals"])  # type: ignore[arg-type]
            for name in ("input_len", "output_len"):
                parse_lengths(f"{key}.{name}", entry[name])  # type: ignore[arg-type]
            found += [(key, entry, share) for share in shares.tolist()]
        return found

    def _times_s(
        self, seed: int, number: int, key: str, entry: dict[str, Any], share: float
    ) -> Floats:
        arrivals: Arrivals = parse_arrivals(f"{key}.arrivals", entry["arrivals"])
        arrivals = replace(arrivals, rate_per_s=arrivals.rate_per_s * share)
        begin, end = entry.get("start_s", 0.0), min(entry.get("end_s", np.inf), self.duration_s)
        if begin >= end:
            return np.zeros(0)
        rng = stream(seed, "workload.arrivals", number)
        times = arrivals.times_s(rng, duration_s=end - begin)
        if "on_s" in entry:
            cycles, within = np.divmod(times, entry["on_s"])
            times = cycles * (entry["on_s"] + entry["off_s"]) + within
        times = begin + times
        kept: Floats = times[times < end]
        return kept
