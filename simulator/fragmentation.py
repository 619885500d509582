"""Where the KV slots of a run are, over time: used, reserved, internal, external, free.

The categories of figure 2 of the PagedAttention paper (SOSP'23). Of the slots given to a request,
those that hold a token are used, those its later tokens will use are reserved, and the rest of what
it asked for is internal waste. What an allocator gives beyond what was asked for, and what nobody
holds although somebody waits, is external; without anybody waiting it is free.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ConfigError
from simulator.itl import TokenLog, token_log
from simulator.occupancy import Floats, kv_utilisation, running_and_waiting
from simulator.recorder import Result
from simulator.segments import segment_table

Ints = NDArray[np.int64]
PARTS = ("used", "reserved", "internal", "external", "free")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragmentation:
    """Shares of the pool at each moment, which add up to 1."""

    time_ns: Ints  # [num_moments]
    used: Floats
    reserved: Floats
    internal: Floats
    external: Floats
    free: Floats

    def means(self) -> dict[str, float]:
        """Mean of each share over the moments."""
        return {name: float(getattr(self, name).mean()) for name in PARTS}


def fragmentation(result: Result, time_ns: Ints) -> Fragmentation:
    """Shares of all KV slots at these moments, in increasing order.

    Of completed requests that share no prefix; a prompt counts from its admission, a token from the
    start of the iteration that computes its KV, and a recomputation after a preemption not at all.

    Raises:
        ConfigError: pages of a model with attention windows, which hold no fixed number of tokens,
            or that several answers share.
    """
    if result.samples is not None:
        raise ConfigError("fragmentation: expected one answer a request (workload.n = 1)")
    if result.pages_per_block != 1:
        raise ConfigError("fragmentation: expected a model without attention windows")
    slots = sum(result.num_blocks) * result.block_tokens
    log, table = token_log(result), result.table
    final = table.prompt_tokens + table.output_tokens - 1  # the last token needs no KV
    used, held = np.zeros(len(time_ns)), np.zeros(len(time_ns))
    asked, reserved = np.zeros(len(time_ns)), np.zeros(len(time_ns))
    for request, now, tokens in _holdings(result, log, time_ns):
        used[now] += tokens
        if result.given_tokens is None or result.asked_tokens is None:
            blocks = np.ceil(tokens / result.block_tokens) * result.block_tokens
            held[now] += blocks
            asked[now] += blocks
        else:
            held[now] += result.given_tokens[request]
            asked[now] += result.asked_tokens[request]
            reserved[now] += final[request] - tokens
    waits = running_and_waiting(result, log)[1].at(time_ns) > 0
    idle = slots - held
    parts = {
        "used": used,
        "reserved": reserved,
        "internal": asked - used - reserved,
        "external": held - asked + np.where(waits, idle, 0.0),
        "free": np.where(waits, 0.0, idle),
    }
    return Fragmentation(time_ns=time_ns, **{name: part / slots for name, part in parts.items()})


def kv_parts(result: Result, time_ns: Ints) -> Fragmentation:
    """Shares of the KV memory of any run, as far as its log tells them.

    Where an allocator sets slots aside for a request, those of `fragmentation`. Where pages come
    one by one, what is held is counted as it was (a shared prefix once, recomputed and unfinished
    requests too), internal waste is what lies behind the last token of each completed request, and
    no free page is out of anyone's reach: nothing is reserved or external. Of a model with
    attention windows, whose pages hold no fixed number of tokens, internal waste counts as used.
    """
    has_windows = result.pages_per_block != 1
    if result.given_tokens is not None and not has_windows:
        return fragmentation(result, time_ns)
    held = kv_utilisation(result, segment_table(result))[0].at(time_ns)
    nothing = np.zeros(len(time_ns))
    behind = nothing if has_windows else fragmentation(result, time_ns).internal
    internal = np.minimum(behind, held)
    return Fragmentation(
        time_ns=time_ns,
        used=held - internal,
        reserved=nothing,
        internal=internal,
        external=nothing,
        free=1.0 - held,
    )


def _holdings(
    result: Result, log: TokenLog, time_ns: Ints
) -> Iterator[tuple[int, slice, Ints | int]]:
    """Request, moments, and its tokens at them: in its prompt, its spans, its pauses."""
    prompt, output = result.table.prompt_tokens.tolist(), result.table.output_tokens.tolist()

    def between(begin_ns: int, end_ns: int) -> slice:
        return slice(*np.searchsorted(time_ns, (begin_ns, end_ns)).tolist())

    for request in np.flatnonzero(result.completed).tolist():
        moments = between(result.scheduled_ns[request], result.first_token_ns[request])
        yield request, moments, prompt[request]
    before, previous = 0, -1
    paused = [False] * len(log.request) if log.paused is None else log.paused.tolist()
    spans = zip(log.request.tolist(), log.first.tolist(), log.last.tolist(), strict=True)
    for span, (request, first, last) in enumerate(spans):
        ends = log.end_ns[first : last + 1]
        if request != previous:
            before = 0
        elif paused[span - 1]:
            moments = between(log.end_ns[log.last[span - 1]], ends[0])
            yield request, moments, prompt[request] + before - 1
        moments = between(ends[0], ends[-1])
        given = np.searchsorted(ends, time_ns[moments], side="right")
        tokens = prompt[request] + before + given
        yield request, moments, np.minimum(tokens, prompt[request] + output[request] - 1)
        before, previous = before + last - first + 1, request
