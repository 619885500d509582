"""EAGLE heads and token trees: what they gain alone, and what is left of it in a batch."""

from __future__ import annotations

from simulator.papers.case import Case, Changes, Line, Measure, Picture
from simulator.papers.drafting_speed import closed_loop, speed_up
from simulator.speculation.lengths import expected_tokens

CHAIN: Changes = {"speculation.drafter": "eagle", "speculation.num_speculative_tokens": 3}
# 20 candidates and the root: the default tree of the published EAGLE and Medusa heads is about so.
TREE: Changes = {
    "speculation.drafter": {"kind": "tree", "width": 4},
    "speculation.num_speculative_tokens": 5,
}
SIZES = (1, 4, 16, 64, 128)


def geometric_rate(accepted_length: float) -> float:
    """The rate whose draft of two tokens gives this length: a + a^2 = length - 1."""
    rate: float = ((1.0 + 4.0 * (accepted_length - 1.0)) ** 0.5 - 1.0) / 2.0
    return rate


def gain(case: Case, changes: Changes, num_seqs: int) -> float:
    return speed_up(case, changes, num_seqs, _requests(case, num_seqs))


def _requests(case: Case, num_seqs: int) -> int:
    return max(case.choose(48, 16), 4 * num_seqs)


def fading(case: Case) -> float:
    """Speed-up at 128 sequences over that of one."""
    return gain(case, CHAIN, 128) / gain(case, CHAIN, 1)


def verify_share(case: Case, num_seqs: int) -> float:
    """Per cent of the time in iterations that verify, the drafter's part taken off."""
    lane = closed_loop(case, CHAIN, num_seqs, _requests(case, num_seqs)).lanes[0]
    columns = lane.speculation
    assert columns is not None
    duration = lane.end_ns - lane.segment_start_ns  # one iteration a segment
    verifies = columns["draft_tokens"] > 0
    return 100.0 * float((duration - columns["draft_ns"])[verifies].sum() / duration.sum())


MEASURES: dict[str, Measure] = {
    "predicted_length": lambda case: expected_tokens(geometric_rate(1.89), 4),
    "alone": lambda case: gain(case, CHAIN, 1),
    "at_128": lambda case: gain(case, CHAIN, 128),
    "fading": fading,
    "tree_at_64": lambda case: gain(case, TREE, 64),
    "least_verification": lambda case: min(verify_share(case, n) for n in (1, 16, 128)),
    "most_verification": lambda case: max(verify_share(case, n) for n in (1, 16, 128)),
}


def picture(case: Case) -> Picture:
    """Speed-up over the number of sequences, of the chain and the tree."""
    sizes = tuple(float(n) for n in SIZES)
    drafts = {"EAGLE, 3 tokens": CHAIN, "tree of 21 tokens": TREE}
    return Picture(
        title="Llama-3.1-8B on an H100",
        x_label="sequences",
        y_label="speed-up",
        lines=tuple(
            Line(label=name, x=sizes, y=tuple(gain(case, changes, n) for n in SIZES))
            for name, changes in drafts.items()
        ),
    )
