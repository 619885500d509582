"""Length policies: how far to draft before an iteration.

A policy is frozen; `open` makes the chooser of one lane, which learns from what was accepted. It
sees the batch through `price(k)`: the time of the coming iteration, draft and verification, were
every sequence to draft k tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ConfigError

Ints = NDArray[np.int64]
Price = Callable[[int], int]


class Chooser(Protocol):
    """One lane's choices."""

    @property
    def per_request(self) -> bool:
        """Wants `observe_each`, and gives a length to each sequence."""
        ...

    def choose(self, num_seqs: int, price: Price) -> int:
        """Tokens to draft for each of `num_seqs` sequences; the same until `observe`."""
        ...

    def spread(self, length: int, requests: list[int]) -> Ints | None:
        """Lengths of the single sequences around the common one; None = all alike."""
        ...

    def observe(self, num_seqs: int, proposing: int, accepted: int, trials: int) -> None:
        """One iteration: sequences, those with a draft, tokens accepted and tokens tested."""
        ...

    def observe_each(self, requests: list[int], accepted: Ints, drafts: Ints) -> None:
        """The same, sequence by sequence."""
        ...


class LengthPolicy(Protocol):
    """How many tokens to draft."""

    kind: ClassVar[str]

    def check(self, most: int) -> None: ...
    def open(self, most: int) -> Chooser: ...


class Constant:
    """Always the same."""

    __slots__ = ("length",)
    per_request = False

    def __init__(self, length: int) -> None:
        self.length = length

    def choose(self, num_seqs: int, price: Price) -> int:
        return self.length

    def spread(self, length: int, requests: list[int]) -> Ints | None:
        return None

    def observe(self, num_seqs: int, proposing: int, accepted: int, trials: int) -> None:
        return None

    def observe_each(self, requests: list[int], accepted: Ints, drafts: Ints) -> None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """Always num_speculative_tokens, as vLLM's default."""

    kind: ClassVar[str] = "fixed"

    def check(self, most: int) -> None:
        return None

    def open(self, most: int) -> Chooser:
        return Constant(most)


@dataclass(frozen=True, slots=True, kw_only=True)
class NoSpeculation:
    """Never draft; the drafter's memory is taken all the same."""

    kind: ClassVar[str] = "none"

    def check(self, most: int) -> None:
        return None

    def open(self, most: int) -> Chooser:
        return Constant(0)


class FromTable(Constant):
    """The length of the batch size's row."""

    __slots__ = ("_by_size",)

    def __init__(self, by_size: list[int]) -> None:
        super().__init__(0)
        self._by_size = by_size

    def choose(self, num_seqs: int, price: Price) -> int:
        return self._by_size[min(num_seqs, len(self._by_size) - 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchTable:
    """vLLM's dynamic speculation: rows of (first, last number of sequences, tokens to draft)."""

    kind: ClassVar[str] = "batch_table"
    table: tuple[tuple[int, int, int], ...] = ((1, 64, 3), (65, 128, 1), (129, 512, 0))

    def check(self, most: int) -> None:
        expected = 1
        for first, last, length in self.table:
            if first != expected or last < first or not 0 <= length <= most:
                raise ConfigError(
                    "speculation.length.table: expected rows [first, last, tokens] that follow one "
                    f"another from 1, tokens 0 to {most} (got {[list(row) for row in self.table]})"
                )
            expected = last + 1
        if expected == 1:
            raise ConfigError("speculation.length.table: expected at least one row (got [])")

    def open(self, most: int) -> Chooser:
        by_size = [self.table[0][2]]
        for first, last, length in self.table:
            by_size += [length] * (last - first + 1)
        return FromTable(by_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class SmartSpec:
    """Goodput-optimal length (SmartSpec, arXiv 2406.14066): expected tokens over iteration time.

    With B sequences of which a share m has a draft, goodput(k) = B (m (1 - a^(k+1)) / (1 - a)
    + 1 - m) / price(k). a and m are moving averages of what was accepted; the best k in 0..most is
    held for `interval` iterations. Rests at 0 are interrupted by one probe of the longest draft
    every `probe_interval` iterations, or a would never be learnt again. The authors' first version
    favours no speculation by `handicap` 1.1 and stops scanning at the first drop; here the whole
    range is compared (prices have steps) and nothing is favoured unless asked for.
    """

    kind: ClassVar[str] = "smartspec"
    initial_rate: float = 0.7
    weight: float = 0.15  # of the newest iteration in the moving averages
    interval: int = 20  # iterations
    probe_interval: int = 200  # iterations; 0 = never
    handicap: float = 1.0
    per_request: bool = False  # k_i in proportion to each request's own rate

    def check(self, most: int) -> None:
        for name, least, largest in (
            ("initial_rate", 0.0, 1.0), ("weight", 1e-6, 1.0), ("interval", 1, 1e9),
            ("probe_interval", 0, 1e9), ("handicap", 1.0, 1e3),
        ):  # fmt: skip
            value = getattr(self, name)
            if not least <= value <= largest:
                raise ConfigError(
                    f"speculation.length.{name}: expected a number from {least:g} to {largest:g} "
                    f"(got {value})"
                )

    def open(self, most: int) -> Chooser:
        return Goodput(self, most)


def expected_tokens(rate: float, length: int) -> float:
    """Tokens an iteration gives a sequence: sum of rate^i, i = 0..length (the bonus included)."""
    if rate >= 1.0:
        return length + 1.0
    return float((1.0 - rate ** (length + 1)) / (1.0 - rate))


def best_length(
    rate: float, most: int, price: Price, match: float = 1.0, handicap: float = 1.0
) -> int:
    """The length of highest goodput; the shortest of equals."""
    best, most_goodput = 0, handicap / price(0)
    for length in range(1, most + 1):
        tokens = match * expected_tokens(rate, length) + 1.0 - match
        goodput = tokens / price(length)
        if goodput > most_goodput:
            best, most_goodput = length, goodput
    return best


class Goodput:
    """SmartSpec's state in one lane."""

    __slots__ = ("_accepted", "_count", "_each", "_held", "_held_until", "_policy", "_trials",
                 "match", "most")  # fmt: skip

    def __init__(self, policy: SmartSpec, most: int) -> None:
        self._policy = policy
        self.most = most
        # Averages of sums: a mean of each iteration's ratio would be biased low (short drafts end
        # at the first miss, whose share is largest where little was accepted).
        self._accepted, self._trials = policy.initial_rate, 1.0
        self.match = 1.0  # of sequences that had a draft when one was asked for
        self._count = 0  # iterations with decodes
        self._held = -1
        self._held_until = 0
        self._each: dict[int, tuple[float, float]] = {}  # the same of each request

    @property
    def rate(self) -> float:
        """Estimated acceptance of one drafted token."""
        return self._accepted / self._trials

    @property
    def per_request(self) -> bool:
        return self._policy.per_request

    def choose(self, num_seqs: int, price: Price) -> int:
        policy = self._policy
        if self._held < 0 or self._count >= self._held_until:
            self._held = best_length(self.rate, self.most, price, self.match, policy.handicap)
            self._held_until = self._count + policy.interval
        probe = policy.probe_interval
        if self._held == 0 and probe and self._count % probe == probe - 1:
            return self.most
        return self._held

    def spread(self, length: int, requests: list[int]) -> Ints | None:
        if not self._policy.per_request or length == 0:
            return None
        common = (self.rate, 1.0)
        known = np.array([self._each.get(i, common) for i in requests])
        rates = known[:, 0] / known[:, 1]
        total = float(rates.sum())
        if total <= 0.0:
            return None
        shares = np.rint(length * len(requests) * rates / total).astype(np.int64)
        lengths: Ints = np.minimum(shares, self.most)
        return lengths

    def observe(self, num_seqs: int, proposing: int, accepted: int, trials: int) -> None:
        self._count += 1
        weight = self._policy.weight
        if trials:
            self._accepted += weight * (accepted - self._accepted)
            self._trials += weight * (trials - self._trials)
        if proposing >= 0 and num_seqs:
            self.match += weight * (proposing / num_seqs - self.match)

    def observe_each(self, requests: list[int], accepted: Ints, drafts: Ints) -> None:
        weight, each = self._policy.weight, self._each
        tested = np.minimum(accepted + 1, drafts)
        rows = zip(requests, accepted.tolist(), tested.tolist(), strict=True)
        for request, hits, trials in rows:
            if trials:
                known, tests = each.get(request, (self.rate, 1.0))
                each[request] = (
                    known + weight * (hits - known),
                    tests + weight * (trials - tests),
                )
