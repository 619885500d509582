"""How much of a run's time was priced beyond what its tables measured.

With `engine.extrapolate` a folder's curves are used however far away; this is what makes that
visible. An op is beyond where any of its sizes is above the largest measured one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from simulator.costs.attention import attention_time
from simulator.costs.curve import Curve
from simulator.costs.form_base import Array, Points
from simulator.costs.ops import Machine, op_time
from simulator.costs.roofline import Layout
from simulator.costs.tables import UNORDERED, CostTables
from simulator.work import AttentionWork, Op

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class WatchedTables(CostTables):
    """Tables that note whether a question was beyond them."""

    seen: list[bool] = field(default_factory=list)

    def check(self, curve: Curve, points: Points) -> None:
        self.seen.append(
            any(
                float(points[name].max()) > high
                for name, (_, high) in curve.ranges.items()
                if name not in UNORDERED
            )
        )


def share_beyond(layout: Layout, load: Mapping[str, Array]) -> float:
    """Share of the priced time of the GPU, of iterations that `load` describes.

    `load`: columns of the recorder's segments; an iteration counts `iterations` times. Padding of
    CUDA graphs and skew of experts are left aside.
    """
    if layout.machine.tables is None:
        return 0.0
    times = list(_times(layout, load))
    total = sum(float((seconds * load["iterations"]).sum()) for seconds, _ in times)
    beyond = sum(float((seconds * load["iterations"])[far].sum()) for seconds, far in times)
    return beyond / total if total > 0 else 0.0


def _times(layout: Layout, load: Mapping[str, Array]) -> Iterator[tuple[Array, Mask]]:
    """Seconds of each op in each segment, and where it is beyond."""
    tokens = load["num_decode"] + load["prefill_tokens"]
    pooled = tokens * layout.plan.attention_dp
    for stage in layout.stages:
        ops = [(op, 1, tokens) for op in (*stage.before, *stage.after, *stage.send)]
        for kind, count in stage.counts:
            work = layout.kinds[kind]
            ops += [(op, count, tokens) for op in work.linear]
            ops += [(op, count, pooled) for op in work.expert]
            for seconds, far in _attention(work.attention, layout.machine, load):
                yield count * seconds, far & (not work.attention.mla)  # MLA has no table
        for op, count, rows in ops:
            yield _op(op, count, rows, layout.machine)
    for op in layout.logits:
        yield _op(op, 1, load["sampled"], layout.machine)


def _op(op: Op, count: int, tokens: Array, machine: Machine) -> tuple[Array, Mask]:
    seconds = np.where(tokens > 0, op_time(op, np.maximum(tokens, 1.0), machine), 0.0)
    return count * seconds, tokens > _last_within(op, machine, int(tokens.max(initial=1.0)))


def _last_within(op: Op, machine: Machine, most: int) -> int:
    """The largest number of tokens, up to `most`, that is not beyond; 0 = none."""
    assert machine.tables is not None
    own = {f.name: getattr(machine.tables, f.name) for f in fields(CostTables)}
    tables = WatchedTables(**own)
    watched = replace(machine, tables=tables)

    def within(tokens: int) -> bool:
        tables.seen.clear()
        op_time(op, np.array([float(tokens)]), watched)
        return not any(tables.seen)

    low, high = 0, most + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if within(middle) else (low, middle)
    return low


def _attention(
    work: AttentionWork, machine: Machine, load: Mapping[str, Array]
) -> Iterator[tuple[Array, Mask]]:
    """Decode and prefill of one layer; sums over sequences are taken as equal shares."""
    seqs, chunks, new = load["num_decode"], load["num_prefill"], load["prefill_tokens"]
    context = load["decode_kv_tokens"] / np.maximum(seqs, 1.0)
    seen = np.minimum(context, work.window) if work.window else context
    times = attention_time(work, seqs, machine)
    decode = np.where(seqs > 0, times.decode_base_s + times.decode_per_token_s * seen * seqs, 0.0)
    yield decode, _above("decode_attention", machine, num_seqs=seqs, kv_tokens=context)
    prefill = times.prefill_base_s + times.prefill_per_token_s * new
    prefill = prefill + times.prefill_per_pair_s * load["prefill_pairs"]
    length = new / np.maximum(chunks, 1.0)
    far = _above("prefill_attention", machine, num_seqs=chunks, num_tokens=length)
    yield np.where(chunks > 0, prefill, 0.0), far


def _above(op: str, machine: Machine, **sizes: Array) -> Mask:
    """Where a size is above the largest measured; nowhere without a curve."""
    curve = machine.tables.curve(op) if machine.tables else None
    far: Mask = np.zeros(len(next(iter(sizes.values()))), dtype=np.bool_)
    if curve is not None:
        for name, size in sizes.items():
            far |= size > curve.ranges[name][1]
    return far
