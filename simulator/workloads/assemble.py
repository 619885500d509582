"""From the columns of a reader to a RequestTable: dropped rows, order, time zero."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ConfigError
from simulator.request import Ints, RequestTable
from simulator.workloads.prefixes import Blocks


def trace_table(
    *,
    name: str,
    arrival_ns: Ints,
    prompt_tokens: Ints,
    output_tokens: Ints,
    keep: NDArray[np.bool_],
    notes: tuple[str, ...],
    labels: dict[str, Ints] | None = None,
    blocks: Blocks | None = None,
    block_tokens: int = 0,
) -> RequestTable:
    """The kept rows in arrival order, the first arriving at 0; ConfigError where none is left."""
    index = np.flatnonzero(keep)
    if not len(index):
        raise ConfigError(f"{name}: no requests left ({'; '.join(notes)})")
    arrivals = arrival_ns[index]
    if bool((np.diff(arrivals) < 0).any()):
        order = np.argsort(arrivals, kind="stable")
        index, arrivals = index[order], arrivals[order]
        notes = (*notes, "arrivals were not in order: sorted")
    kept = {label: column[index] for label, column in (labels or {}).items()}
    ids, offsets = (None, None) if blocks is None else blocks.take(index)
    return RequestTable(
        arrival_ns=arrivals - arrivals[0],
        prompt_tokens=prompt_tokens[index],
        output_tokens=output_tokens[index],
        priority=kept.get("priority"),
        client=kept.get("client"),
        session=kept.get("session"),
        num_samples=kept.get("n"),
        hash_ids=ids,
        hash_offsets=offsets,
        hash_block_tokens=0 if ids is None else block_tokens,
        name=name,
        notes=notes,
    )
