"""Inter-token gaps and token counts, from iteration ranges instead of token times.

All lanes' iterations are laid end to end, so a token span is a range of one flat array. A gap
between two iterations belongs to every span that covers both of its ends, and the number of those
is the running sum of span starts minus span ends: O(iterations + spans), never O(tokens). A
preempted request has one more gap, from the last token of a span to the first of the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from simulator.recorder import Result

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLog:
    """Iteration ends of all lanes in one array, and the spans of completed requests in it."""

    end_ns: Ints  # [num_iterations], lane after lane
    request: Ints  # [num_spans], sorted by request, then time
    first: Ints  # [num_spans] indices into end_ns
    last: Ints
    emitted: Ints | None = None  # [num_iterations] tokens, of a run that speculates
    paused: NDArray[np.bool_] | None = None  # spans after which the decodes waited; None = none

    def tokens_per_iteration(self) -> Ints:
        """Output tokens of completed requests at each iteration's end.

        With speculation, of all requests: an iteration gives a sequence one token or several.
        """
        if self.emitted is not None:
            return self.emitted
        return self._covering(self.first)

    def resumptions(self) -> tuple[Ints, Ints]:
        """Request and gap (ns) of every preemption: last token of a span to the next span."""
        later = self.after_gaps()
        if self.paused is not None:
            later = later[~self.paused[later - 1]]
        return self.request[later], self._gap_ns(later)

    def after_gaps(self) -> Ints:
        """Spans before which their request got no token for a while."""
        return np.flatnonzero(self.request[1:] == self.request[:-1]) + 1

    def _gap_ns(self, later: Ints) -> Ints:
        return self.end_ns[self.first[later]] - self.end_ns[self.last[later - 1]]

    def gaps(self) -> tuple[Ints, Ints]:
        """Distinct gaps (ns) between consecutive tokens of a request, and how many of each."""
        values, counts, _ = self.ended_gaps()
        return values, counts

    def ended_gaps(self) -> tuple[Ints, Ints, Ints]:
        """As `gaps`, and the iteration that ended each."""
        covered = self._covering(self.first + 1)  # iterations whose token has one before it
        used, later = np.flatnonzero(covered), self.after_gaps()
        resumed_ns = self._gap_ns(later)
        values = np.concatenate((self.end_ns[used] - self.end_ns[used - 1], resumed_ns))
        counts = np.concatenate((covered[used], np.ones(len(resumed_ns), dtype=np.int64)))
        return values, counts, np.concatenate((used, self.first[later]))

    def _covering(self, first: Ints) -> Ints:
        size = len(self.end_ns) + 1
        steps = np.bincount(first, minlength=size) - np.bincount(self.last + 1, minlength=size)
        return np.cumsum(steps)[:-1].astype(np.int64)


def token_log(result: Result) -> TokenLog:
    """The spans of completed requests; what others produced is not a served token.

    Where requests have several answers, those of each answer: `request` then counts samples.
    """
    result = result.samples or result
    lengths = [len(lane.end_ns) for lane in result.lanes]
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    end_ns = np.concatenate([np.empty(0, np.int64), *(lane.end_ns for lane in result.lanes)])
    request = np.asarray(result.spans["span_request"], dtype=np.int64)
    served = np.flatnonzero(result.completed[request])
    shift = offsets[np.asarray(result.spans["span_lane"], dtype=np.int64)[served]]
    first = np.asarray(result.spans["span_first"], dtype=np.int64)[served] + shift
    last = np.asarray(result.spans["span_last"], dtype=np.int64)[served] + shift
    request = request[served]
    order = np.lexsort((end_ns[last], end_ns[first], request))
    emitted = paused = None
    if any(lane.speculation is not None for lane in result.lanes):
        emitted = np.concatenate([lane.segments["sampled"] for lane in result.lanes])
    if result.pauses is not None and len(result.pauses):
        paused = np.isin(served, result.pauses)[order]
    return TokenLog(
        end_ns=end_ns,
        request=request[order],
        first=first[order],
        last=last[order],
        emitted=emitted,
        paused=paused,
    )


def token_times(log: TokenLog, num_requests: int) -> Iterator[Ints]:
    """Token times (ns) of each request in turn, empty where it did not complete: O(tokens)."""
    edges = np.searchsorted(log.request, np.arange(num_requests + 1)).tolist()
    first, last = log.first.tolist(), (log.last + 1).tolist()
    nothing = np.empty(0, np.int64)
    for begin, end in pairwise(edges):
        parts = [log.end_ns[first[span] : last[span]] for span in range(begin, end)]
        yield parts[0] if len(parts) == 1 else np.concatenate([nothing, *parts])


def statistics(
    values: Floats, percentiles: Sequence[float], counts: Ints | None = None
) -> dict[str, float]:
    """mean, median, std and percentiles of `values`, each taken `counts` times (once by default).

    Percentiles are numpy's linear definition on the pooled multiset, equal to `np.percentile` on
    the expanded array bit for bit. Every entry is NaN where there is nothing to summarise.
    """
    names = ["median", *(percentile_name(q) for q in percentiles)]
    if len(values) == 0:
        return dict.fromkeys(["mean", "std", *names], float("nan"))
    if counts is None:
        counts = np.ones(len(values), dtype=np.int64)
    total = int(counts.sum())
    mean = float(np.dot(values, counts)) / total
    variance = float(np.dot((values - mean) ** 2, counts)) / total
    found = _pooled_percentiles(values, counts, (50.0, *percentiles)).tolist()
    return {"mean": mean, "std": variance**0.5, **dict(zip(names, found, strict=True))}


def percentile_name(percentile: float) -> str:
    """'p99' or 'p99.9', as vllm bench serve names them."""
    return f"p{int(percentile)}" if int(percentile) == percentile else f"p{percentile}"


def _pooled_percentiles(values: Floats, counts: Ints, percentiles: Sequence[float]) -> Floats:
    order = np.argsort(values)
    ranked, upto = values[order], np.cumsum(counts[order])
    top = int(upto[-1]) - 1
    position = np.true_divide(np.asarray(percentiles, dtype=np.float64), 100.0) * top
    below = np.floor(position)
    fraction = position - below
    low = ranked[np.searchsorted(upto, below, side="right")]
    high = ranked[np.searchsorted(upto, np.minimum(below + 1, top), side="right")]
    # numpy interpolates from the nearer end, and so do we: results agree bit for bit.
    rise = high - low
    nearer: Floats = np.where(fraction >= 0.5, high - rise * (1 - fraction), low + rise * fraction)
    return nearer
