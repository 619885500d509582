"""Acceptance from text: token ids are made up, and Lookahead's trie is really searched in them.

An answer is made of spans: copied out of its own prompt, phrases that all requests share (popular
ones by Zipf's law), and words nobody has said. The trie learns the phrases as requests finish, so
what is accepted rises over the first hundreds of them; it finds copied spans from a request's own
prompt at once, which is what retrieval-augmented generation lives by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar
from zlib import crc32

import numpy as np

from simulator.errors import ConfigError
from simulator.speculation.acceptance import Ints, Runs, Source, check_share
from simulator.speculation.drafters import Drafter, Lookahead
from simulator.speculation.trie import SUFFIX, OwnText, Trie, longest_path

ANSWERS = crc32(b"speculation.text")
PHRASES = crc32(b"speculation.phrases")
OWN_WORDS = 1 << 40  # ids of words nobody else says start here


@dataclass(frozen=True, slots=True, kw_only=True)
class TrieText:
    """Answers of copied spans, shared phrases and new words, drafted out of Lookahead's trie."""

    kind: ClassVar[str] = "trie_text"
    needs_drafter: ClassVar[str] = "lookahead"
    copied: float = 0.3  # share of spans copied from the prompt
    shared: float = 0.5  # share of spans that are phrases of all requests; the rest is new
    span_tokens: float = 8.0  # mean length of a span
    num_phrases: int = 2000
    zipf: float = 1.1  # exponent of the phrases' popularity
    prompt_tokens: int = 256  # of the text that can be copied

    def __post_init__(self) -> None:
        check_share("copied", self.copied)
        check_share("shared", self.shared)
        if self.copied + self.shared > 1.0:
            raise ConfigError(
                "speculation.acceptance.shared: expected copied + shared <= 1 "
                f"(got {self.copied + self.shared:g})"
            )
        if self.span_tokens < 1 or self.num_phrases < 1 or self.prompt_tokens < 1:
            raise ConfigError(
                "speculation.acceptance: expected span_tokens, num_phrases and prompt_tokens >= 1 "
                f"(got {self.span_tokens:g}, {self.num_phrases} and {self.prompt_tokens})"
            )
        if not self.zipf > 0.0:
            raise ConfigError(f"speculation.acceptance.zipf: expected > 0 (got {self.zipf})")

    def open(self, drafter: Drafter, longest: int, seed: int, lengths: Ints) -> Source:
        assert isinstance(drafter, Lookahead)
        return TrieSource(self, drafter, longest, seed, lengths)


class TrieSource:
    """The trie of one lane, and the answers of its requests."""

    __slots__ = ("_answers", "_drafter", "_lengths", "_longest", "_phrases", "_popularity", "_seed",
                 "_text", "has_limits", "trie")  # fmt: skip

    def __init__(
        self, text: TrieText, drafter: Lookahead, longest: int, seed: int, lengths: Ints
    ) -> None:
        self._text = text
        self._drafter = drafter
        self._longest = longest
        self._seed = seed
        self._lengths = lengths
        self.has_limits = True
        self.trie = Trie(longest)
        self._answers: dict[int, tuple[list[int], Runs, Runs]] = {}
        rng = np.random.default_rng([seed, PHRASES])
        sizes = rng.geometric(1.0 / text.span_tokens, text.num_phrases)
        ends = np.cumsum(sizes)
        words = rng.integers(0, 50_000, int(ends[-1]))
        self._phrases = [part.tolist() for part in np.split(words, ends[:-1])]
        weights = np.arange(1, text.num_phrases + 1) ** -text.zipf
        self._popularity = np.cumsum(weights) / weights.sum()

    def outcomes(self, request: int) -> tuple[Runs, Runs]:
        if request not in self._answers:
            prompt, answer = self._write(request)
            self._answers[request] = (answer, *self._read(prompt, answer))
        _, runs, limits = self._answers[request]
        return runs, limits

    def finished(self, request: int) -> None:
        """The answer joins the trie: others may say the same."""
        entry = self._answers.pop(request, None)
        if entry is not None:
            self.trie.put(entry[0])

    def _write(self, request: int) -> tuple[list[int], list[int]]:
        """A prompt of words of its own, and the answer."""
        text, length = self._text, int(self._lengths[request])
        rng = np.random.default_rng([self._seed, ANSWERS, request])
        own = OWN_WORDS + (request << 20)
        prompt = list(range(own, own + text.prompt_tokens))
        new, answer = own + text.prompt_tokens, [own + text.prompt_tokens]
        while len(answer) < length:
            pick, size = rng.random(), int(rng.geometric(1.0 / text.span_tokens))
            if pick < text.copied:
                start = int(rng.integers(text.prompt_tokens))
                answer += prompt[start : start + size]
            elif pick < text.copied + text.shared:
                rank = int(np.searchsorted(self._popularity, rng.random()))
                answer += self._phrases[min(rank, len(self._phrases) - 1)]
            else:
                answer += range(new + 1, new + 1 + size)
                new += size
        return prompt, answer[:length]

    def _read(self, prompt: list[int], answer: list[int]) -> tuple[Runs, Runs]:
        """Draft through the answer as it is written; positions inside a draft go on with it."""
        own = OwnText(self._longest, prompt + answer[:1])
        runs, limits = (np.zeros(len(answer), dtype=np.int8) for _ in range(2))
        position = 1
        while position < len(answer):
            run, has_draft = self._draft(own, answer[position:])
            end = min(position + run + 1, len(answer))
            limits[position:end] = self._longest if has_draft else 0
            runs[position:end] = np.arange(run, run - (end - position), -1)
            own.extend(answer[position:end])
            position = end
        return runs, limits

    def _draft(self, own: OwnText, truth: list[int]) -> tuple[int, bool]:
        """Tokens accepted out of the request's own text and the common trie; False: no draft."""
        budget, found = self._drafter.decoding_length, 0
        has_draft = False
        for node in (own.below(), self.trie.below(own.tokens[-SUFFIX:])):
            if node is not None and budget > 0:
                path, taken = longest_path(node, truth, budget, self._longest)
                found, budget, has_draft = max(found, path), budget - taken, True
        return found, has_draft
