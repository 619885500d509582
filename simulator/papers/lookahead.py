"""Lookahead: drafts out of a trie of everything said, verified as one tree."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from simulator.papers.case import Case, Changes, Line, Measure, Picture
from simulator.papers.drafting_speed import NO_DRAFTS, closed_loop, speed_up
from simulator.recorder import Result

# Make-up of the answers: assumed, as the data sets' texts are not part of this repository.
TEXTS: dict[str, dict[str, float]] = {
    "rag": {"copied": 0.8, "shared": 0.15, "span_tokens": 16.0},
    "code": {"copied": 0.4, "shared": 0.5, "span_tokens": 10.0},
    "gsm8k": {"copied": 0.3, "shared": 0.5, "span_tokens": 6.0},
    "chat": {"copied": 0.1, "shared": 0.5, "span_tokens": 4.0},
}
WARM_UP = 20  # first requests


def changes_of(text: str) -> Changes:
    return {"speculation.acceptance": {"kind": "trie_text", **TEXTS[text]}}


def gain(case: Case, text: str) -> float:
    """Tokens a second over decoding one by one, of the later half: the trie is warm then."""
    requests = case.choose(160, 50)
    none = closed_loop(case, NO_DRAFTS, 1, requests)
    return later_half_s(none) / later_half_s(closed_loop(case, changes_of(text), 1, requests))


def later_half_s(result: Result) -> float:
    """Time that the later half of the requests took, one after another."""
    ends = np.sort(result.finish_ns)
    return float(ends[-1] - ends[len(ends) // 2 - 1]) / 1e9


def in_batch(case: Case) -> float:
    """The same for 48 sequences at a time, GSM8K-like text, all requests."""
    return speed_up(case, changes_of("gsm8k"), 48, case.choose(150, 96))


def ordered(case: Case) -> float:
    """How many of the three neighbours in RAG > code > GSM8k > chat are in this order."""
    gains = [gain(case, text) for text in TEXTS]
    return sum(first > second for first, second in pairwise(gains))


def tokens_a_step(result: Result) -> np.ndarray:
    """Tokens an iteration gave each request on average, in the order of requests."""
    spans = result.spans
    length = spans["span_last"] - spans["span_first"]  # the prompt's own token left out
    steps = np.bincount(spans["span_request"], weights=length)
    gained: np.ndarray = (result.table.output_tokens - 1) / np.maximum(steps, 1)
    return gained


def warm_up(case: Case) -> float:
    """Tokens a step of later requests over those of the first, GSM8k-like text."""
    result = closed_loop(case, changes_of("gsm8k"), 1, case.choose(160, 50))
    each = tokens_a_step(result)
    return float(each[len(each) // 2 :].mean() / each[:WARM_UP].mean())


MEASURES: dict[str, Measure] = {
    **{f"gain_{text}": (lambda case, text=text: gain(case, text)) for text in TEXTS},  # type: ignore[misc]
    "ordered": ordered,
    "batch_48": in_batch,
    "warm_up": warm_up,
}


def picture(case: Case) -> Picture:
    """Tokens a step as requests go by, of each text."""
    lines = []
    for text in TEXTS:
        each = tokens_a_step(closed_loop(case, changes_of(text), 1, case.choose(160, 50)))
        block = max(1, len(each) // 10)
        means = each[: block * 10].reshape(10, block).mean(axis=1)
        x = tuple(float(block * (i + 1)) for i in range(10))
        lines.append(Line(label=text, x=x, y=tuple(means.tolist())))
    return Picture(
        title="Lookahead learns",
        x_label="requests served",
        y_label="tokens a step",
        lines=tuple(lines),
    )
