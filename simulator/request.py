"""Requests: the columns a workload produces, and the live state of one admitted request.

A workload is columns, not objects: a million requests cost a few tens of MB, and a `Sequence`
exists only from arrival to finish.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ConfigError

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beams:
    """Which beam each beam of a search goes on from, drawn, as text is not simulated.

    After every token each of the new beams keeps its own past with probability `persistence`, and
    else continues one of the beams chosen uniformly at random (0: as in the Wright-Fisher model).
    """

    persistence: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.persistence <= 1:
            raise ConfigError(
                f"beam_persistence must be a number in [0, 1] (got {self.persistence!r})"
            )

    def parents(self, request: int, num_tokens: int, width: int) -> list[list[int]]:
        """[num_tokens][width] the beam each goes on from: of a stream of the request's own."""
        rng = np.random.default_rng([self.seed, crc32(b"workload.beams"), request])
        chosen = rng.integers(width, size=(num_tokens, width))
        stays = rng.random((num_tokens, width)) < self.persistence
        parents: list[list[int]] = np.where(stays, np.arange(width), chosen).tolist()
        return parents


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTable:
    """Requests in arrival order; every column has one entry a request."""

    arrival_ns: Ints  # non-decreasing; when the client has the request, not when it is sent
    prompt_tokens: Ints  # >= 1
    output_tokens: Ints  # >= 1; the truth, hidden from schedulers
    priority: Ints | None = None  # smaller is served first (vLLM)
    client: Ints | None = None
    session: Ints | None = None
    # Closed loops. A request is sent at max(arrival, finish of `parent` + delay), and not before
    # fewer than `max_concurrency` requests are in flight.
    parent: Ints | None = None  # index of an earlier request, -1 = none
    delay_ns: Ints | None = None  # think time after the parent's finish
    max_concurrency: int = 0  # 0 = unlimited
    # Prefix identity. Ids of request i: hash_ids[hash_offsets[i]:hash_offsets[i + 1]], one for each
    # hash_block_tokens of prompt (the last may be partial), then optionally of output. Equal ids
    # mean equal content and equal preceding blocks.
    hash_ids: Ints | None = None
    hash_offsets: Ints | None = None  # [num_requests + 1]
    hash_block_tokens: int = 0
    # Several answers to one prompt: parallel sampling, or the beams of a search.
    num_samples: Ints | None = None  # >= 1 of each request; None = one
    sample_tokens: Ints | None = None  # of every sample, flat; None = all as output_tokens, which
    beams: Beams | None = None  # are else the most of a request's. None = samples are independent
    leader: Ints | None = None  # where a row is a sample: row of its request's first one
    name: str = "workload"
    notes: tuple[str, ...] = field(default=())  # what the reader dropped or changed, for people

    def __post_init__(self) -> None:
        count = len(self.arrival_ns)
        if count == 0:
            raise ConfigError(f"{self.name}: the workload has no requests")
        for name in ("prompt_tokens", "output_tokens"):
            column = getattr(self, name)
            if len(column) != count or int(column.min()) < 1:
                raise ConfigError(f"{self.name}: {name} must be >= 1 in all {count} requests")
        if count > 1 and bool((np.diff(self.arrival_ns) < 0).any()):
            raise ConfigError(f"{self.name}: arrivals must not decrease")

    def __len__(self) -> int:
        return len(self.arrival_ns)

    @property
    def samples_many(self) -> bool:
        """Some request is answered more than once."""
        return self.num_samples is not None and int(self.num_samples.max()) > 1

    @property
    def answer_tokens(self) -> Ints:
        """Output tokens of each request, over all its samples."""
        if self.num_samples is None:
            return self.output_tokens
        if self.sample_tokens is None:
            return self.output_tokens * self.num_samples
        first = np.cumsum(self.num_samples) - self.num_samples
        return np.add.reduceat(self.sample_tokens, first)

    @property
    def is_open_loop(self) -> bool:
        """True where every arrival is known before the run."""
        return self.parent is None and self.max_concurrency == 0

    @property
    def duration_s(self) -> float:
        return float(self.arrival_ns[-1] - self.arrival_ns[0]) / 1e9


class Sequence:
    """A request inside a replica: mutable, owned by one lane at a time."""

    __slots__ = (
        "allocation",
        "blocks",
        "cached_tokens",
        "computed_tokens",
        "decode_since",
        "finish_iteration",
        "generated_tokens",
        "id",
        "lane",
        "output_tokens",
        "prefill_tokens",
        "priority",
        "prompt_tokens",
        "span_start",
    )

    def __init__(self, id: int, prompt_tokens: int, output_tokens: int, priority: int = 0) -> None:
        self.id = id
        self.prompt_tokens = prompt_tokens
        self.output_tokens = output_tokens  # the truth: only the lane reads it, never a policy
        self.priority = priority
        self.prefill_tokens = prompt_tokens  # to compute before decoding; grows on recompute
        self.computed_tokens = 0  # tokens with KV while prefilling
        self.cached_tokens = 0  # prefix-cache hits of the latest admission
        self.generated_tokens = 0  # up to the latest start of decoding; the lane's counter adds on
        self.decode_since = 0  # lane iteration of the first decode since then
        self.finish_iteration = 0  # lane iteration whose end finishes the request
        self.lane = -1  # key of the lane it runs in
        self.blocks = 0  # KV blocks held while prefilling; the decode calendar adds on
        self.allocation: object = None  # the allocator's own record
        self.span_start = -1  # lane iteration of the first token of the current span
