"""A batch as one block of int32: filled on the host, sent in one copy, read as views on the device.

The place of every field depends on the batch's sizes alone, so that a CUDA graph captured for a
size finds its inputs where it left them. Fields begin at 64 bytes: Triton compiles a kernel anew
for a pointer that is aligned differently.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.engine.lane import Batch, EngineLane

Ints32 = NDArray[np.int32]
Tensor = Any
ALIGNMENT = 16  # values
NOT_CACHED = -1  # slot of a padding token


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Of one batch: decodes first, one token each, then the tokens of the chunks."""

    decodes: int
    chunks: int
    tokens: int
    table_width: int  # blocks
    longest_chunk: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """The parts of the block: numpy arrays on the host, tensors on the device. B decodes, C chunks,
    T tokens, W blocks of a table's row."""

    tokens: Any  # [T]
    positions: Any  # [T]
    slots: Any  # [T] block * block_tokens + offset; negative: padding
    last: Any  # [B + C] row of the last token of each sequence
    decode_context: Any  # [B] tokens in the cache, the new one included; 0: padding
    decode_table: Any  # [B, W]
    chunk_context: Any  # [C]
    chunk_table: Any  # [C, W]
    chunk_starts: Any  # [C + 1] from the first chunk's first token


def shapes(sizes: Sizes) -> list[tuple[int, ...]]:
    """Of the fields, in their order."""
    b, c, t, w = sizes.decodes, sizes.chunks, sizes.tokens, sizes.table_width
    return [(t,), (t,), (t,), (b + c,), (b,), (b, w), (c,), (c, w), (c + 1,)]


def num_values(sizes: Sizes) -> int:
    """Length of the block."""
    return sum(_padded(_count(shape)) for shape in shapes(sizes))


def views(block: Any, sizes: Sizes) -> Fields:
    """The fields inside a flat array or tensor of at least `num_values`."""
    found, at = {}, 0
    for field, shape in zip(fields(Fields), shapes(sizes), strict=True):
        count = _count(shape)
        found[field.name] = block[at : at + count].reshape(shape)
        at += _padded(count)
    return Fields(**found)


def fill(block: Ints32, batch: Batch, lane: EngineLane, padded_decodes: int) -> Sizes:
    """Write a batch into the block; the decodes are padded to `padded_decodes`, in a batch of
    decodes alone."""
    b = len(batch.decodes)
    padding = max(padded_decodes - b, 0)
    sizes = Sizes(
        decodes=b + padding, chunks=len(batch.chunks), tokens=batch.num_tokens + padding,
        table_width=lane.table.shape[1], longest_chunk=max((n for _, n in batch.chunks), default=0),
    )  # fmt: skip
    host = views(block, sizes)
    ids = [seq.id for seq in batch.decodes]
    at = np.array([seq.computed_tokens for seq in batch.decodes], dtype=np.int32)
    host.tokens[:b] = [lane.tokens[i][p] for i, p in zip(ids, at.tolist(), strict=True)]
    host.positions[:b] = at
    host.decode_table[:b] = lane.table[ids]
    blocks = host.decode_table[np.arange(b), at // lane.block_tokens]
    host.slots[:b] = blocks * lane.block_tokens + at % lane.block_tokens
    host.decode_context[:b] = at + 1
    host.last[: sizes.decodes] = np.arange(sizes.decodes)
    if padding:
        host.tokens[b:] = host.positions[b:] = host.decode_context[b:] = 0
        host.decode_table[b:] = 0
        host.slots[b:] = NOT_CACHED
    _fill_chunks(host, batch, lane)
    return sizes


def _fill_chunks(host: Fields, batch: Batch, lane: EngineLane) -> None:
    first = at = len(batch.decodes)
    host.chunk_starts[0] = 0
    for number, (seq, num_tokens) in enumerate(batch.chunks):
        begin, end = seq.computed_tokens, seq.computed_tokens + num_tokens
        positions = np.arange(begin, end)
        row = lane.table[seq.id]
        host.tokens[at : at + num_tokens] = lane.tokens[seq.id][begin:end]
        host.positions[at : at + num_tokens] = positions
        host.slots[at : at + num_tokens] = (
            row[positions // lane.block_tokens] * lane.block_tokens + positions % lane.block_tokens
        )
        at += num_tokens
        host.last[first + number] = at - 1
        host.chunk_context[number] = end
        host.chunk_table[number] = row
        host.chunk_starts[number + 1] = at - first


def warm_up_inputs(block: Ints32, sizes: Sizes, context: int) -> None:
    """Any valid batch of these sizes: every sequence in the same first blocks of the cache, the
    chunks as even as can be, all decodes at `context`."""
    host = views(block, sizes)
    block[: num_values(sizes)] = 0
    tables = np.arange(sizes.table_width, dtype=np.int32)
    host.decode_table[:] = host.chunk_table[:] = tables
    b = sizes.decodes
    host.last[:b] = np.arange(b)
    host.positions[:b] = host.slots[:b] = context - 1
    host.decode_context[:] = context
    if sizes.chunks:
        ends = np.linspace(0, sizes.tokens - b, sizes.chunks + 1).astype(np.int32)
        host.chunk_starts[:] = ends
        host.chunk_context[:] = np.diff(ends)
        host.last[b:] = b + ends[1:] - 1
        positions = np.concatenate([np.arange(n) for n in np.diff(ends)])
        host.positions[b:] = host.slots[b:] = positions


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape))


def _padded(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT
