"""The trie of Lookahead (KDD 2024): branches of tokens seen before, with how often.

A tree a first token. Retrieval walks the last tokens of the text and takes the most frequent nodes
below, up to a decoding length; verification then accepts the longest of their paths. Above its
capacity the trie halves all counts and forgets what was seen once.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

CAPACITY = 1 << 18  # nodes of the whole trie; the authors keep 65,536 in each first token's tree
SUFFIX = 2  # tokens of context a retrieval tries to match, then fewer


class Node:
    """How often a token followed the path above it, and what followed then."""

    __slots__ = ("children", "count")

    def __init__(self) -> None:
        self.count = 0.0
        self.children: dict[int, Node] = {}


class Trie:
    """Branches of `branch_length` tokens from every position of the texts put in."""

    __slots__ = ("branch_length", "capacity", "num_nodes", "roots")

    def __init__(self, branch_length: int, capacity: int = CAPACITY) -> None:
        self.branch_length = branch_length
        self.capacity = capacity
        self.num_nodes = 0
        self.roots: dict[int, Node] = {}

    def put(self, tokens: Sequence[int]) -> None:
        """Branches that begin at every position."""
        depth = self.branch_length + SUFFIX
        for start in range(len(tokens)):
            self.num_nodes += grow(self.roots, tokens[start : start + depth])
        while self.num_nodes > self.capacity:
            self.num_nodes = _squeeze(self.roots)

    def below(self, suffix: Sequence[int]) -> Node | None:
        """The node at the end of the longest known suffix that anything follows."""
        for length in range(min(SUFFIX, len(suffix)), 0, -1):
            children, node = self.roots, None
            for token in suffix[-length:]:
                node = children.get(token)
                if node is None:
                    break
                children = node.children
            if node is not None and node.children:
                return node
        return None


class OwnText:
    """A request's own prompt and answer so far: the branches a trie of them would hold.

    They are looked up by their last token when needed, and leave with the request.
    """

    __slots__ = ("_after", "branch_length", "tokens")

    def __init__(self, branch_length: int, tokens: Sequence[int]) -> None:
        self.branch_length = branch_length
        self.tokens: list[int] = []
        self._after: dict[int, list[int]] = {}  # token -> positions behind it
        self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        for token in tokens:
            self.tokens.append(token)
            self._after.setdefault(token, []).append(len(self.tokens))

    def below(self) -> Node | None:
        """As `Trie.below`, of the text's own last tokens."""
        tokens, size = self.tokens, len(self.tokens)
        places = [place for place in self._after[tokens[-1]] if place < size]
        before = tokens[-2] if size > 1 else None
        both = [place for place in places if place > 1 and tokens[place - 2] == before]
        root = Node()
        for place in both or places:
            grow(root.children, tokens[place : place + self.branch_length])
        return root if root.children else None


def grow(children: dict[int, Node], branch: Sequence[int]) -> int:
    """Count one more branch below; returns the nodes that are new."""
    added = 0
    for token in branch:
        node = children.get(token)
        if node is None:
            node = children[token] = Node()
            added += 1
        node.count += 1.0
        children = node.children
    return added


def _squeeze(children: dict[int, Node]) -> int:
    """Halve all counts and drop what falls below one; returns the nodes left."""
    left = 0
    for token in list(children):
        node = children[token]
        node.count /= 2.0
        if node.count < 1.0:
            del children[token]
        else:
            left += 1 + _squeeze(node.children)
    return left


def longest_path(node: Node, truth: Sequence[int], budget: int, most: int) -> tuple[int, int]:
    """Tokens of `truth` on one path of the `budget` most frequent nodes below; nodes taken.

    No path is longer than `most`.
    """
    # Frontier: (-count, depth, order, token, node); `path` = the node is on the true path.
    frontier: list[tuple[float, int, int, int, Node, bool]] = []
    order = taken = found = 0

    def open_up(parent: Node, depth: int, on_path: bool) -> None:
        nonlocal order
        expected = truth[depth] if on_path and depth < len(truth) else None
        for token, child in parent.children.items():
            entry = (-child.count, depth, order, token, child, token == expected)
            heappush(frontier, entry)
            order += 1

    open_up(node, 0, True)
    while frontier and taken < budget:
        _, depth, _, _, child, on_path = heappop(frontier)
        taken += 1
        if on_path:
            found = max(found, depth + 1)
        if depth + 1 < most:
            open_up(child, depth + 1, on_path)
    return found, taken
