"""What the emulated model says: a fixed round of words, one a token, so that losses show."""

from __future__ import annotations

_ROUND = """
amber birch cedar delta ember fjord grove heron inlet jade kelp larch maple north ocean pine quartz
river stone tide umber vale willow yarrow zephyr aspen brook cliff dune elm fern glade
"""
WORDS = tuple(f" {word}" for word in _ROUND.split())
BYTES_A_TOKEN = 4
TOKENS_A_MESSAGE = 4  # role and separators of a chat template


def text_of(first: int, end: int) -> str:
    """Tokens `first` to `end` (left out) of an answer."""
    return "".join(WORDS[i % len(WORDS)] for i in range(first, end))


def tokens_of(text: str) -> int:
    """Length of a prompt: four bytes of UTF-8 a token, rounded up; at least one."""
    return max(1, -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_A_TOKEN))
