"""What a run leaves behind: append-only columns while it runs, plain numpy columns after it.

Iterations are logged as segments (a run of identical decode iterations is one row) plus one end
time each; a request logs the ranges of lane iterations that gave it a token. Token times are
therefore a look-up, and memory is O(iterations), not O(tokens).
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from simulator.request import RequestTable, Sequence

Ints = NDArray[np.int64]

COMPLETED, REJECTED, UNFINISHED = 0, 1, 2

SEGMENT_COLUMNS = (
    "iterations",  # number of identical iterations in the segment
    "num_decode",  # decoding sequences, each gains one token an iteration
    "decode_kv_tokens",  # context read by them in the first iteration, summed
    "num_prefill",  # prefill chunks
    "prefill_tokens",
    "prefill_pairs",  # query-key pairs of the chunks under full causal attention
    "sampled",  # tokens sampled an iteration: decodes + prompts that end
    "used_blocks",  # KV blocks referenced after the first iteration's allocation
    "waiting",  # requests waiting when it was planned
)

SPECULATION_COLUMNS = (
    "drafts",  # sequences that had a draft verified
    "asked",  # tokens each was to draft
    "draft_tokens",  # tokens verified beside one a sequence
    "accepted_tokens",  # of the drafts, also where a request ended before them
    "draft_ns",  # time of the drafter, at the start of the iteration
)
MIGRATION_COLUMNS = ("request", "source", "target", "begin_ns", "left_ns", "resumed_ns", "stages",
                     "pages")  # fmt: skip  # ranks; -1 = never, as of one that was given up


def as_ints(column: array[int]) -> Ints:
    """The column as numpy sees it, without a copy: a million requests log gigabytes."""
    return np.frombuffer(column, dtype=np.int64)


class LaneLog:
    """Iteration columns of one lane (one of pp batches in flight of one attention rank)."""

    __slots__ = ("end_ns", "saved_pages", "segments", "speculation", "start_ns")

    def __init__(self, end_ns: array[int]) -> None:
        self.end_ns = end_ns  # one entry an iteration; lanes that iterate together share it
        self.start_ns = array("q")  # one entry a segment
        self.segments = array("q")  # len(SEGMENT_COLUMNS) entries a segment
        self.speculation = array("q")  # len(SPECULATION_COLUMNS) a segment of a lane that drafts
        self.saved_pages = array("q")  # one a segment of a lane whose sequences fork


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneResult:
    """One lane's iterations as numpy columns."""

    replica: int
    rank: int
    lane: int
    end_ns: Ints  # [num_iterations]
    segment_start_ns: Ints  # [num_segments] when the segment's first iteration was dispatched
    segments: dict[str, Ints]  # [num_segments] for each of SEGMENT_COLUMNS
    # Of a lane that speculates: [num_segments] for each of SPECULATION_COLUMNS, and the number of
    # drafts of which 0, 1, ... tokens were accepted.
    speculation: dict[str, Ints] | None = None
    accepted_at: Ints | None = None
    # Of a lane whose sequences fork, [num_segments]: blocks that they would hold beyond those used
    # if they shared none.
    saved_blocks: Ints | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Everything a run produced. Times are engine ns; -1 where it never happened."""

    table: RequestTable
    status: Ints  # COMPLETED, REJECTED (can never fit) or UNFINISHED (cut by the horizon)
    sent_ns: Ints  # arrival at the router; TTFT and E2E start here
    scheduled_ns: Ints  # first admission
    first_token_ns: Ints
    finish_ns: Ints
    cached_tokens: Ints  # prompt tokens found in the prefix cache at the first admission
    preemptions: Ints
    target: Ints  # index of the attention rank that served it, over all replicas; -1 = rejected
    lanes: tuple[LaneResult, ...]
    # Token spans: request, lane index, first and last lane iteration whose ends gave it tokens.
    spans: dict[str, Ints]  # span_request, span_lane, span_first, span_last
    num_blocks: tuple[int, ...]  # KV blocks of each rank
    block_tokens: int
    end_ns: int  # end of the last iteration
    notes: tuple[str, ...] = field(default=())
    pauses: Ints | None = None  # spans that end because the decodes waited or moved, KV kept
    # Of a router that moves requests: a row a migration with MIGRATION_COLUMNS, and a row a time
    # that a rank was up (rank, from ns, to ns).
    migrations: Ints | None = None
    uptime: Ints | None = None
    # Of allocators that set pages aside at admission: tokens asked for, and slots given.
    counters: dict[str, int] = field(default_factory=dict)  # of allocators and lanes, by name
    pages_per_block: int = 1  # more for models with attention windows
    asked_tokens: Ints | None = None
    given_tokens: Ints | None = None
    # Where requests have several answers: the same of every sample, to which lanes and spans refer.
    samples: Result | None = None

    @property
    def completed(self) -> NDArray[np.bool_]:
        return np.equal(self.status, COMPLETED)


class Recorder:
    """Columns a run appends to; `-1` = never happened."""

    __slots__ = (
        "cached_tokens",
        "finish_ns",
        "first_token_ns",
        "num_finished",
        "pauses",
        "preemptions",
        "scheduled_ns",
        "sent_ns",
        "spans",
        "status",
        "target",
    )

    def __init__(self, num_requests: int) -> None:
        unset = array("q", [-1]) * num_requests
        zero = array("q", [0]) * num_requests
        self.sent_ns = unset[:]
        self.scheduled_ns = unset[:]
        self.first_token_ns = unset[:]
        self.finish_ns = unset[:]
        self.target = unset[:]
        self.cached_tokens = zero[:]
        self.preemptions = zero[:]
        self.status = array("q", [UNFINISHED]) * num_requests
        self.spans = array("q")  # request, lane key, first, last
        self.pauses = array("q")  # numbers of spans
        self.num_finished = 0

    def admitted(self, seq: Sequence, cached_tokens: int, now_ns: int) -> None:
        if self.scheduled_ns[seq.id] < 0:
            self.scheduled_ns[seq.id] = now_ns
            self.cached_tokens[seq.id] = cached_tokens

    def finished(self, seq: Sequence, lane: int, iteration: int, end_ns: int) -> None:
        self.finish_ns[seq.id] = end_ns
        self.status[seq.id] = COMPLETED
        self.num_finished += 1
        self.spans.extend((seq.id, lane, seq.span_start, iteration))

    def preempted(self, seq: Sequence, lane: int, iteration: int) -> None:
        self.preemptions[seq.id] += 1
        self.span(seq, lane, iteration)

    def span(self, seq: Sequence, lane: int, iteration: int) -> None:
        """The iterations that gave `seq` tokens end with this one, for now."""
        if 0 <= seq.span_start <= iteration:
            self.spans.extend((seq.id, lane, seq.span_start, iteration))
        seq.span_start = -1

    def paused(self, seq: Sequence, lane: int, iteration: int) -> None:
        """As `span`, but `seq` keeps its KV and goes on later."""
        if 0 <= seq.span_start <= iteration:
            self.pauses.append(len(self.spans) // 4)
        self.span(seq, lane, iteration)

    def columns(self) -> dict[str, Ints]:
        """Per-request columns of a `Result`."""
        names = [name for name in self.__slots__ if name not in ("spans", "pauses", "num_finished")]
        return {name: as_ints(getattr(self, name)) for name in names}
