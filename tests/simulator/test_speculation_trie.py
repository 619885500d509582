"""Lookahead's trie, and the text it is searched in."""

from __future__ import annotations

import numpy as np
import pytest

from simulator.errors import ConfigError
from simulator.speculation import Eagle, Lookahead, Speculation, TrieText
from simulator.speculation.text import TrieSource
from simulator.speculation.trie import Trie, longest_path

LENGTHS = np.full(60, 64)


def source(text: TrieText, longest: int = 12, decoding_length: int = 64) -> TrieSource:
    drafter = Lookahead(decoding_length=decoding_length)
    made = text.open(drafter, longest, 0, LENGTHS)
    assert isinstance(made, TrieSource)
    return made


def nodes_of(trie: Trie) -> int:
    stack, count = list(trie.roots.values()), 0
    while stack:
        node = stack.pop()
        count += 1
        stack += node.children.values()
    return count


def test_what_followed_before_is_found_by_the_longest_suffix() -> None:
    trie = Trie(branch_length=4)
    trie.put([1, 2, 3, 4, 5])
    trie.put([9, 2, 7])
    node = trie.below([1, 2])
    assert node is not None
    assert list(node.children) == [3]  # 1 2 is known as a pair, so 2 alone is not asked
    alone = trie.below([8, 2])
    assert alone is not None
    assert sorted(alone.children) == [3, 7]
    assert trie.below([8, 5]) is None
    assert trie.num_nodes == nodes_of(trie)


def test_the_longest_true_path_is_accepted_within_the_budget() -> None:
    trie = Trie(branch_length=6)
    for _ in range(3):
        trie.put([1, 2, 3, 4, 5, 6])
    trie.put([1, 2, 8, 9])
    node = trie.below([1, 2])
    assert node is not None
    assert longest_path(node, [3, 4, 5, 0], 64, 6) == (3, 6)
    assert longest_path(node, [8, 9, 1], 64, 6) == (2, 6)
    # The frequent branch fills a budget of three.
    assert longest_path(node, [8, 9, 1], 3, 6) == (0, 3)
    assert longest_path(node, [3, 4, 5], 64, 2)[0] == 2


def test_a_full_trie_halves_its_counts_and_forgets_what_was_seen_once() -> None:
    trie = Trie(branch_length=2, capacity=40)
    for _ in range(5):
        trie.put([1, 2, 3, 4])
    trie.put(list(range(100, 140)))
    assert trie.num_nodes <= 40
    assert trie.num_nodes == nodes_of(trie)
    assert trie.below([1, 2]) is not None
    assert trie.below([100, 101]) is None


def test_the_trie_learns_phrases_and_finds_copies_at_once() -> None:
    shared = source(TrieText(copied=0.0, shared=1.0, span_tokens=8, num_phrases=40))
    means = []
    for request in range(60):
        runs, _ = shared.outcomes(request)
        means.append(runs[1:].mean())
        shared.finished(request)
    assert means[0] < 0.1
    assert np.mean(means[30:]) > 4.0
    copied = source(TrieText(copied=1.0, shared=0.0, span_tokens=20, prompt_tokens=64))
    assert copied.outcomes(0)[0][1:].mean() > 2.0
    new = source(TrieText(copied=0.0, shared=0.0))
    runs, limits = new.outcomes(0)
    assert runs.sum() == 0
    assert limits.sum() == 0  # nothing known follows: nothing is drafted


def test_accepted_tokens_are_true_ones_of_finished_answers_only() -> None:
    """Nothing is drafted from an answer that has not ended, however alike."""
    text = TrieText(copied=0.0, shared=1.0, span_tokens=30, num_phrases=2, prompt_tokens=1)
    together, apart = source(text), source(text)
    for request in range(4):
        together.outcomes(request)
    for request in range(4):
        apart.outcomes(request)
        apart.finished(request)
    assert together.outcomes(3)[0].sum() < apart.outcomes(4)[0].sum()


def test_runs_go_down_by_one_along_a_draft() -> None:
    runs, limits = source(TrieText()).outcomes(7)
    assert len(runs) == len(limits) == 64
    position = 1
    while position < 64:
        end = min(64, position + int(runs[position]) + 1)
        assert runs[position:end].tolist() == list(
            range(int(runs[position]), int(runs[position]) - (end - position), -1)
        )
        position = end


def test_text_needs_the_trie_and_shares_that_add_up() -> None:
    with pytest.raises(ConfigError, match="trie_text is of the lookahead drafter"):
        Speculation(drafter=Eagle(), acceptance=TrieText())
    with pytest.raises(ConfigError, match=r"copied \+ shared <= 1 \(got 1.3\)"):
        TrieText(copied=0.8, shared=0.5)
