"""The synthetic loads of `vllm bench serve`: random and prefix_repetition (behaviour of 0.33).

Gaps are Gamma with shape `burstiness`; without a ramp they are scaled so that the last request
arrives at exactly num_prompts / request_rate. Lengths and gaps have separate streams.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from simulator.errors import ConfigError
from simulator.request import Ints, RequestTable
from simulator.workloads.checks import (
    MAX_REQUESTS,
    check_choice,
    check_int,
    check_keys,
    check_number,
    rate_per_s,
    stream,
    to_ns_column,
)
from simulator.workloads.distributions import LengthSpec, parse_lengths
from simulator.workloads.prefixes import shared_prefix

_RAMPS = ("linear", "exponential")


@dataclass(frozen=True, slots=True, kw_only=True)
class Synthetic:
    """`--dataset-name random`: lengths uniform around their mean, after a shared prefix."""

    num_prompts: int = 1000
    input_len: LengthSpec = 1024  # without the prefix
    output_len: LengthSpec = 128
    # ints in [floor(L (1 - r)), ceil(L (1 + r))]; one r, or {input: r, output: r}
    range_ratio: float | Mapping[str, float] = 0.0
    random_prefix_len: int = 0
    request_rate: float | str = math.inf  # requests/s; inf = all at 0
    burstiness: float = 1.0  # CV of the gaps is 1 / sqrt(burstiness); inf = constant gaps
    ramp_up_strategy: str | None = None  # linear, exponential
    ramp_up_start_rps: float | None = None
    ramp_up_end_rps: float | None = None
    max_concurrency: int = 0  # 0 = unlimited
    hash_block_tokens: int = 16

    def __post_init__(self) -> None:
        check_int("workload.num_prompts", self.num_prompts, low=1, high=MAX_REQUESTS)
        check_int("workload.random_prefix_len", self.random_prefix_len, low=0)
        check_int("workload.max_concurrency", self.max_concurrency, low=0)
        check_int("workload.hash_block_tokens", self.hash_block_tokens, low=1)
        ratios = self._ratios()
        for key, value in (("input", self.input_len), ("output", self.output_len)):
            parse_lengths(f"workload.{key}_len", value)
            check_number(f"workload.range_ratio of {key}", ratios[key])
            if ratios[key] >= 1:
                raise ConfigError(f"workload.range_ratio must be < 1 (got {ratios[key]})")
            if ratios[key] and not isinstance(value, int):
                raise ConfigError(f"workload.range_ratio needs {key}_len to be an int")
        check_load(
            self.request_rate,
            self.burstiness,
            self.ramp_up_strategy,
            self.ramp_up_start_rps,
            self.ramp_up_end_rps,
        )

    def requests(self, seed: int) -> RequestTable:
        """`num_prompts` requests."""
        ratios = self._ratios()
        lengths = stream(seed, "workload.input_tokens")
        prompt_tokens = self.random_prefix_len + _around(
            lengths, "input", self.input_len, ratios["input"], self.num_prompts
        )
        lengths = stream(seed, "workload.output_tokens")
        output_tokens = np.maximum(
            1, _around(lengths, "output", self.output_len, ratios["output"], self.num_prompts)
        )
        if int(prompt_tokens.min()) < 1:
            raise ConfigError(
                "workload.input_len must leave every prompt >= 1 token, prefix included "
                f"(got {self.input_len!r})"
            )
        blocks = None
        if self.random_prefix_len:
            blocks = shared_prefix(
                prompt_tokens,
                group=np.zeros(self.num_prompts, dtype=np.int64),
                prefix_tokens=self.random_prefix_len,
                block_tokens=self.hash_block_tokens,
            )
        return RequestTable(
            arrival_ns=self._arrival_ns(seed),
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            max_concurrency=self.max_concurrency,
            hash_ids=None if blocks is None else blocks.ids,
            hash_offsets=None if blocks is None else blocks.offsets,
            hash_block_tokens=0 if blocks is None else self.hash_block_tokens,
            name="synthetic",
        )

    def _ratios(self) -> dict[str, float]:
        if not isinstance(self.range_ratio, Mapping):
            return {"input": self.range_ratio, "output": self.range_ratio}
        check_keys("workload.range_ratio", self.range_ratio, ("input", "output"))
        return {"input": 0.0, "output": 0.0} | dict(self.range_ratio)

    def _arrival_ns(self, seed: int) -> Ints:
        return load_arrival_ns(
            seed,
            self.num_prompts,
            self.request_rate,
            self.burstiness,
            self.ramp_up_strategy,
            self.ramp_up_start_rps,
            self.ramp_up_end_rps,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixRepetition:
    """`--dataset-name prefix_repetition`: `num_prefixes` prompts' worth of shared prefixes."""

    num_prompts: int = 1000  # rounded down to a multiple of num_prefixes, as vLLM does
    prefix_len: int = 256
    suffix_len: int = 256
    num_prefixes: int = 10
    output_len: int = 128
    request_rate: float | str = math.inf  # requests/s; inf = all at 0
    burstiness: float = 1.0  # CV of the gaps is 1 / sqrt(burstiness); inf = constant gaps
    ramp_up_strategy: str | None = None  # linear, exponential
    ramp_up_start_rps: float | None = None
    ramp_up_end_rps: float | None = None
    max_concurrency: int = 0  # 0 = unlimited
    hash_block_tokens: int = 16

    def __post_init__(self) -> None:
        check_int("workload.num_prefixes", self.num_prefixes, low=1, high=MAX_REQUESTS)
        check_int("workload.num_prompts", self.num_prompts, low=self.num_prefixes)
        check_int("workload.num_prompts", self.num_prompts, low=1, high=MAX_REQUESTS)
        check_int("workload.prefix_len", self.prefix_len, low=0)
        check_int("workload.suffix_len", self.suffix_len, low=0 if self.prefix_len else 1)
        check_int("workload.output_len", self.output_len, low=1)
        check_int("workload.max_concurrency", self.max_concurrency, low=0)
        check_int("workload.hash_block_tokens", self.hash_block_tokens, low=1)
        check_load(
            self.request_rate,
            self.burstiness,
            self.ramp_up_strategy,
            self.ramp_up_start_rps,
            self.ramp_up_end_rps,
        )

    def requests(self, seed: int) -> RequestTable:
        """Prompts of all prefixes, shuffled."""
        repeats = self.num_prompts // self.num_prefixes
        count = repeats * self.num_prefixes
        group = np.repeat(np.arange(self.num_prefixes), repeats)
        group = stream(seed, "workload.order").permutation(group)
        prompt_tokens = np.full(count, self.prefix_len + self.suffix_len, dtype=np.int64)
        blocks = shared_prefix(
            prompt_tokens,
            group=group,
            prefix_tokens=self.prefix_len,
            block_tokens=self.hash_block_tokens,
        )
        dropped = self.num_prompts - count
        return RequestTable(
            arrival_ns=load_arrival_ns(
                seed,
                count,
                self.request_rate,
                self.burstiness,
                self.ramp_up_strategy,
                self.ramp_up_start_rps,
                self.ramp_up_end_rps,
            ),
            prompt_tokens=prompt_tokens,
            output_tokens=np.full(count, self.output_len, dtype=np.int64),
            max_concurrency=self.max_concurrency,
            hash_ids=blocks.ids,
            hash_offsets=blocks.offsets,
            hash_block_tokens=self.hash_block_tokens,
            name="prefix_repetition",
            notes=(f"{dropped} of num_prompts dropped: whole prefixes only",) if dropped else (),
        )


def check_load(
    request_rate: float | str,
    burstiness: float,
    strategy: str | None,
    start_rps: float | None,
    end_rps: float | None,
) -> None:
    """Refuse a load that has no meaning."""
    rate_per_s("workload.request_rate", request_rate, bare=True)
    check_number("workload.burstiness", burstiness, above=True, allow_inf=True)
    ramp = {"ramp_up_start_rps": start_rps, "ramp_up_end_rps": end_rps}
    if strategy is None:
        for name, value in ramp.items():
            if value is not None:
                raise ConfigError(f"workload.{name} needs ramp_up_strategy (got {value})")
        return
    check_choice("workload.ramp_up_strategy", strategy, _RAMPS)
    for name, value in ramp.items():
        check_number(f"workload.{name}", value, above=True)


def load_arrival_ns(
    seed: int,
    count: int,
    request_rate: float | str,
    burstiness: float,
    strategy: str | None,
    start_rps: float | None,
    end_rps: float | None,
) -> Ints:
    """Send times; the first request waits one gap, as in vLLM's `get_request`."""
    rng = stream(seed, "workload.arrivals")
    if math.isinf(burstiness):
        gaps = np.ones(count)
    else:
        gaps = rng.standard_gamma(burstiness, count) / burstiness
    if strategy is not None and start_rps is not None and end_rps is not None:
        progress = np.arange(count) / max(count - 1, 1)
        linear = start_rps + (end_rps - start_rps) * progress
        growing = start_rps * (end_rps / start_rps) ** progress
        return to_ns_column(
            np.cumsum(gaps / (linear if strategy == "linear" else growing)), "arrival"
        )
    rate = rate_per_s("workload.request_rate", request_rate, bare=True)
    elapsed = np.cumsum(gaps)
    if math.isinf(rate) or elapsed[-1] == 0:
        return np.zeros(count, dtype=np.int64)
    return to_ns_column(elapsed / elapsed[-1] * (count / rate), "arrival")


def _around(
    rng: np.random.Generator, key: str, value: LengthSpec, ratio: float, count: int
) -> Ints:
    if not isinstance(value, int):
        return parse_lengths(f"workload.{key}_len", value).draw(rng, count)
    low, high = math.floor(value * (1 - ratio)), math.ceil(value * (1 + ratio))
    if key == "output":
        low, high = max(low, 1), max(high, 1)
    return rng.integers(low, high + 1, size=count)
