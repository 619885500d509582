"""What the emulated model says: a fixed round of words, one a token, so that losses show."""

from __future__ import annotations

from itertools import accumulate

_ROUND = """
amber birch cedar delta ember fjord grove heron inlet jade kelp larch maple north ocean pine quartz
river stone tide umber vale willow yarrow zephyr aspen brook cliff dune elm fern glade
"""
WORDS = tuple(f" {word}" for word in _ROUND.split())
STARTS = (0, *accumulate(map(len, WORDS)))  # of each word in a round, and of the next round
BYTES_A_TOKEN = 4
TOKENS_A_MESSAGE = 4  # role and separators of a chat template


def text_of(first: int, end: int) -> str:
    """Tokens `first` to `end` (left out) of an answer."""
    return "".join(WORDS[i % len(WORDS)] for i in range(first, end))


def start_of(token: int) -> int:
    """Characters of an answer before a token."""
    rounds, word = divmod(token, len(WORDS))
    return rounds * STARTS[-1] + STARTS[word]


def stop_at(strings: tuple[str, ...]) -> tuple[int, int] | None:
    """Tokens until one of these strings is complete, and characters before it; None = never."""
    longest = max(map(len, strings), default=0)
    num_rounds = 2 + longest // STARTS[-1]
    text = text_of(0, num_rounds * len(WORDS))
    found = [(at + len(string), at) for string in strings if (at := text.find(string)) >= 0]
    if not found:
        return None
    end, first = min(found)
    return next(i for i in range(1, len(text)) if start_of(i) >= end), first


def tokens_of(text: str) -> int:
    """Length of a prompt: four bytes of UTF-8 a token, rounded up; at least one."""
    return max(1, -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_A_TOKEN))
