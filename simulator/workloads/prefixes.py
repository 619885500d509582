"""Prefix identity in columns: ragged block ids, built and re-ordered without a Python loop.

Block j of a request covers tokens [j * block_tokens, (j + 1) * block_tokens) of prompt followed by
output; equal ids mean equal content and equal preceding blocks.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulator.request import Ints


class Blocks(NamedTuple):
    """Ids of all requests, flat, and where each request's begin."""

    ids: Ints
    offsets: Ints  # [num_requests + 1]

    def take(self, index: Ints) -> Blocks:
        """The blocks of the requests at `index`, in that order."""
        counts = np.diff(self.offsets)[index]
        offsets = offsets_of(counts)
        flat = np.repeat(self.offsets[index] - offsets[:-1], counts) + np.arange(offsets[-1])
        return Blocks(self.ids[flat], offsets)


def offsets_of(counts: Ints) -> Ints:
    """Running start of ragged rows; one entry more than rows."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets


def num_blocks(tokens: Ints, block_tokens: int) -> Ints:
    """Blocks that `tokens` touch, the partial last one included."""
    return -(-tokens // block_tokens)


def positions(offsets: Ints) -> Ints:
    """0, 1, 2, ... within each ragged row."""
    within: Ints = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
    return within


def shared_prefix(
    prompt_tokens: Ints, *, group: Ints, prefix_tokens: int, block_tokens: int
) -> Blocks:
    """Prompts whose first `prefix_tokens` are those of their group and whose rest is their own."""
    offsets = offsets_of(num_blocks(prompt_tokens, block_tokens))
    within = positions(offsets)
    shared_blocks = prefix_tokens // block_tokens  # a block that mixes prefix and rest is private
    first_private = (int(group.max()) + 1) * shared_blocks
    owner = np.repeat(group, np.diff(offsets))
    ids = first_private + np.arange(offsets[-1])
    return Blocks(np.where(within < shared_blocks, owner * shared_blocks + within, ids), offsets)
