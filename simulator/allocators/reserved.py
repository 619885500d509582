"""Reservation before PagedAttention: a request gets its place whole, at admission.

How much: `max` (the model's longest context), `pow2` (prompt, and the output rounded up to a power
of two), `oracle` (prompt and output exactly): the three Orca variants of the PagedAttention paper
(SOSP'23, section 6.1). Where: in one piece by first or best fit, in one piece by the buddy
algorithm, or `anywhere` (as token pools do). Nothing grows afterwards, so nothing runs out and
nobody is preempted for memory. `pow2` and `oracle` are told the true lengths, which real systems
do not know.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from simulator.request import Ints, RequestTable, Sequence


class Space(Protocol):
    """Places for pieces of so many pages."""

    def has(self, num_pages: int) -> bool: ...
    def take(self, num_pages: int) -> int:
        """The place of a new piece."""
        ...

    def give(self, place: int, num_pages: int) -> None: ...


class AnywhereSpace:
    """Pages without addresses: only their number matters."""

    __slots__ = ("_free",)

    def __init__(self, num_pages: int) -> None:
        self._free = num_pages

    def has(self, num_pages: int) -> bool:
        return num_pages <= self._free

    def take(self, num_pages: int) -> int:
        self._free -= num_pages
        return 0

    def give(self, place: int, num_pages: int) -> None:
        self._free += num_pages


class FitSpace:
    """One address range; a piece goes into the first, or the smallest, hole that holds it."""

    __slots__ = ("_best", "_holes")

    def __init__(self, num_pages: int, best: bool = False) -> None:
        self._best = best
        self._holes = [(0, num_pages)]  # (start, size), by start, never adjoining

    def has(self, num_pages: int) -> bool:
        return any(size >= num_pages for _, size in self._holes)

    def take(self, num_pages: int) -> int:
        fitting = [index for index, hole in enumerate(self._holes) if hole[1] >= num_pages]
        index = min(fitting, key=lambda i: self._holes[i][1]) if self._best else fitting[0]
        start, size = self._holes[index]
        rest = [(start + num_pages, size - num_pages)] if size > num_pages else []
        self._holes[index : index + 1] = rest
        return start

    def give(self, place: int, num_pages: int) -> None:
        holes = self._holes
        index = sum(start < place for start, _ in holes)
        end = place + num_pages
        if index < len(holes) and holes[index][0] == end:
            end += holes.pop(index)[1]
        if index and sum(holes[index - 1]) == place:
            index -= 1
            place = holes.pop(index)[0]
        holes.insert(index, (place, end - place))


class BuddySpace:
    """Knuth's buddy algorithm; a pool of any size is cut into its powers of two."""

    __slots__ = ("_free",)

    def __init__(self, num_pages: int) -> None:
        self._free: list[set[int]] = [set() for _ in range(num_pages.bit_length())]
        start = 0
        for order in reversed(range(num_pages.bit_length())):
            if num_pages >> order & 1:
                self._free[order].add(start)
                start += 1 << order

    def has(self, num_pages: int) -> bool:
        return any(self._free[buddy_order(num_pages) :])

    def take(self, num_pages: int) -> int:
        wanted = order = buddy_order(num_pages)
        while not self._free[order]:
            order += 1
        place = min(self._free[order])  # the lowest address, so that runs repeat
        self._free[order].remove(place)
        while order > wanted:
            order -= 1
            self._free[order].add(place + (1 << order))
        return place

    def give(self, place: int, num_pages: int) -> None:
        order = buddy_order(num_pages)
        while place ^ 1 << order in self._free[order]:
            self._free[order].remove(place ^ 1 << order)
            place &= ~(1 << order)
            order += 1
        self._free[order].add(place)


def buddy_order(num_pages: int) -> int:
    """Exponent of the smallest power of two that holds so many pages."""
    return max(0, num_pages - 1).bit_length()


def reserved_tokens(reserve: str, table: RequestTable, max_model_len: int) -> Ints:
    """Tokens set aside for each request: [num_requests]."""
    if reserve == "max":
        return np.full(len(table), max_model_len, dtype=np.int64)
    output = table.output_tokens
    if reserve == "pow2":
        exponents = np.array([buddy_order(n) for n in output.tolist()], dtype=np.int64)
        output = np.left_shift(np.int64(1), exponents)
    tokens: Ints = np.minimum(table.prompt_tokens + output, max_model_len)
    return tokens


class ReservedAllocator:
    """Gives each request its pages at admission, and takes them back at its end."""

    __slots__ = ("_pieces", "_space", "free_pages", "num_pages")

    def __init__(self, num_pages: int, space: Space, pieces: list[int]) -> None:
        self.num_pages = num_pages
        self.free_pages = num_pages
        self._space = space
        self._pieces = pieces  # [num_requests] pages

    def match(self, seq: Sequence) -> tuple[int, int, int]:
        """No tokens are cached; the pages of the piece come out of the free ones.

        Where no place is large enough the request needs more than there is.
        """
        piece = self._pieces[seq.id]
        return 0, 0, piece if self._space.has(piece) else self.num_pages + 1

    def claim(self, seq: Sequence, num_pages: int) -> None:
        piece = self._pieces[seq.id]
        seq.allocation = self._space.take(piece)
        self.free_pages -= piece

    def take(self, num_pages: int) -> None:
        self.free_pages -= num_pages

    def computed(self, seq: Sequence, num_tokens: int) -> None:
        return None

    def release(self, seq: Sequence, num_pages: int) -> None:
        piece, place = self._pieces[seq.id], seq.allocation
        assert isinstance(place, int)
        self._space.give(place, piece)
        self.free_pages += piece
        seq.allocation = None
