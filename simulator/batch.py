"""The decode calendar: decoding sequences kept relative to their lane's iteration counter.

Every decoding sequence gains one token an iteration, so relative to the counter nothing about it
changes: its context is `counter - constant`, it finishes at a known iteration, it needs a KV block
whenever the counter is a known residue. Advancing k iterations therefore costs O(changes), not
O(batch). What stops growing (a context that has reached its attention window) is an event of the
same calendar.
"""

from __future__ import annotations

from heapq import heappop, heappush

from simulator.request import Sequence

FOREVER = 1 << 60
_LAST_BITS = 40  # of an iteration's number
_LAST = (1 << _LAST_BITS) - 1


class PageLayout:
    """KV pages a sequence of n tokens holds: vLLM's hybrid manager, one page size for all groups.

    `full` pages a block of `block_tokens` for layers that keep everything, and for each
    (window, weight) `weight` pages a block, of at most the window and one block more.
    """

    __slots__ = ("block_tokens", "full", "most", "windows")

    def __init__(
        self, block_tokens: int, full: int = 1, windows: tuple[tuple[int, int], ...] = ()
    ) -> None:
        self.block_tokens = block_tokens
        self.full = full
        self.windows = tuple((-(-w // block_tokens) + 1, weight) for w, weight in windows)
        self.most = full + sum(weight for _, weight in windows)  # pages a block

    def pages(self, num_tokens: int) -> int:
        blocks = -(-num_tokens // self.block_tokens)
        held = blocks * self.full
        if not self.windows:
            return held
        for most, weight in self.windows:
            held += min(blocks, most) * weight
        return held


class WindowTotal:
    """Sum over decoding sequences of min(context, window), and who still grows."""

    __slots__ = ("growing", "saturations", "tokens", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.tokens = 0
        self.growing = 0  # sequences whose context is below the window
        self.saturations: list[tuple[int, int, int]] = []  # heap: iteration, sequence, since

    def add(self, seq: Sequence, iteration: int) -> None:
        context = seq.prefill_tokens + 1
        self.tokens += min(context, self.window)
        if context < self.window:
            self.growing += 1
            heappush(self.saturations, (iteration + self.window - context, seq.id, iteration))

    def remove(self, seq: Sequence, context: int, iteration: int) -> None:
        self.tokens -= min(context, self.window)
        if context < self.window:
            self.growing -= 1
            saturation = iteration + self.window - context
            self.saturations.remove((saturation, seq.id, seq.decode_since))
            self.saturations.sort()  # a sorted list is a heap; removal before saturation is rare

    def next_change(self) -> int:
        return self.saturations[0][0] if self.saturations else FOREVER

    def advance(self, num_iterations: int, iteration: int) -> None:
        """Move on; the caller never steps past `next_change`."""
        self.tokens += num_iterations * self.growing
        while self.saturations and self.saturations[0][0] <= iteration:
            heappop(self.saturations)
            self.growing -= 1


class DecodeSet:
    """Decoding sequences of one lane; `iteration` counts the iterations that advanced them."""

    __slots__ = (
        "_ages",
        "_buckets",
        "_finish_at",
        "_finish_heap",
        "_gone",
        "_page_limits",
        "iteration",
        "kv_tokens",
        "layout",
        "num_seqs",
        "windows",
    )

    def __init__(
        self, layout: PageLayout, windows: tuple[int, ...] = (), tracks_longest: bool = True
    ) -> None:
        self.layout = layout
        self.iteration = 0
        self.num_seqs = 0
        self.kv_tokens = 0  # context read by the coming iteration, new tokens included
        self.windows = tuple(WindowTotal(window) for window in windows)
        self._buckets = [0] * layout.block_tokens  # pages needed when the counter has that residue
        self._page_limits: list[tuple[int, Sequence, int, int]] = []  # as in WindowTotal, + weight
        self._finish_at: dict[int, list[Sequence]] = {}
        self._finish_heap: list[int] = []
        # Heap of (iteration - context, which never changes; last iteration) in one int, so that
        # whoever has the longest context is on top; the finished go when they are met.
        self._ages: list[int] | None = [] if tracks_longest else None
        self._gone: dict[int, int] = {}  # how many of each were evicted before their last

    def add(self, seq: Sequence) -> None:
        """`seq` has its prompt's KV and one more token; it decodes from the coming iteration on."""
        t = self.iteration
        context = seq.prefill_tokens + 1
        seq.decode_since = t
        seq.finish_iteration = finish = t + seq.output_tokens - seq.generated_tokens - 1
        self.num_seqs += 1
        self.kv_tokens += context
        for total in self.windows:
            total.add(seq, t)
        if self._ages is not None:
            heappush(self._ages, (t - context << _LAST_BITS) | finish)
        residue = (t - context + 1) % self.layout.block_tokens
        layout = self.layout
        pages = self._growing_pages(seq, context) if layout.windows else layout.full
        self._buckets[residue] += pages
        due = self._finish_at.get(finish)
        if due is None:
            self._finish_at[finish] = [seq]
            heappush(self._finish_heap, finish)
        else:
            due.append(seq)

    def _growing_pages(self, seq: Sequence, context: int) -> int:
        pages = self.layout.full
        for most, weight in self.layout.windows:
            grows_for = most * self.layout.block_tokens - context
            if grows_for >= 0:
                pages += weight
                limit = (self.iteration + grows_for + 1, seq, seq.decode_since, weight)
                self._page_limits.append(limit)
        self._page_limits.sort(key=lambda limit: (limit[0], limit[1].id))
        return pages

    def context(self, seq: Sequence) -> int:
        """Context `seq` reads in the coming iteration."""
        return seq.prefill_tokens + 1 + self.iteration - seq.decode_since

    def remove(self, seq: Sequence) -> int:
        """Take `seq` out before the coming iteration; returns the pages it holds."""
        context = self.context(seq)
        self._leave(seq, context)
        if self._ages is not None:
            age = (self.iteration - context << _LAST_BITS) | seq.finish_iteration
            self._gone[age] = self._gone.get(age, 0) + 1
        due = self._finish_at.get(seq.finish_iteration)
        if due is not None and seq in due:
            due.remove(seq)
        return self.layout.pages(context - 1)

    def _leave(self, seq: Sequence, context: int) -> None:
        self.num_seqs -= 1
        self.kv_tokens -= context
        for total in self.windows:
            total.remove(seq, context, self.iteration)
        residue = (self.iteration - context + 1) % self.layout.block_tokens
        pages = self.layout.full
        if self._page_limits:
            mine = [limit for limit in self._page_limits if limit[1] is seq]
            self._page_limits = [limit for limit in self._page_limits if limit[1] is not seq]
            pages += sum(limit[3] for limit in mine)
        self._buckets[residue] -= pages

    def spread_tokens(self) -> int:
        """Tokens by which the contexts together fall short of the longest of them."""
        ages, gone, iteration = self._ages, self._gone, self.iteration
        assert ages is not None
        while (oldest := ages[0]) & _LAST < iteration or oldest in gone:
            heappop(ages)
            if oldest in gone:
                gone[oldest] -= 1
                if not gone[oldest]:
                    del gone[oldest]
        return self.num_seqs * (iteration - (oldest >> _LAST_BITS)) - self.kv_tokens

    def new_pages(self) -> int:
        """Pages the coming iteration must be given."""
        return self._buckets[self.iteration % self.layout.block_tokens]

    def pages_within(self, num_iterations: int) -> int:
        """Pages the coming `num_iterations` take together."""
        size = self.layout.block_tokens
        cycles, rest = divmod(num_iterations, size)
        first = self.iteration % size
        buckets = self._buckets
        pages = sum(buckets[first : first + rest]) + sum(buckets[: max(0, first + rest - size)])
        return pages + cycles * sum(buckets) if cycles else pages

    def iterations_within(self, pages: int, most: int) -> int:
        """Largest n <= `most` iterations that take at most `pages` together."""
        size = self.layout.block_tokens
        bound = self.num_seqs * self.layout.most * (most // size + 1)
        if bound <= pages or self.pages_within(most) <= pages:
            return most
        cycle = sum(self._buckets)
        num_iterations = pages // cycle * size
        pages %= cycle
        while True:
            pages -= self._buckets[(self.iteration + num_iterations) % size]
            if pages < 0:
                return num_iterations
            num_iterations += 1

    def iterations_to_finish(self) -> int:
        """Iterations up to and including the one whose end finishes somebody."""
        heap = self._finish_heap
        while not self._finish_at[heap[0]]:
            del self._finish_at[heappop(heap)]
        return heap[0] - self.iteration + 1

    def iterations_to_change(self) -> int:
        """Iterations for which prices stay affine and page needs keep their cycle."""
        change = min((total.next_change() for total in self.windows), default=FOREVER)
        if self._page_limits:
            change = min(change, self._page_limits[0][0])
        return change - self.iteration

    def advance(self, num_iterations: int) -> list[Sequence] | None:
        """Run `num_iterations`; nobody finishes before the last. Returns who finishes with it."""
        last = self.iteration + num_iterations - 1
        self.iteration = last + 1
        self.kv_tokens += num_iterations * self.num_seqs
        for total in self.windows:
            total.advance(num_iterations, self.iteration)
        while self._page_limits and self._page_limits[0][0] <= self.iteration:
            _, seq, since, weight = self._page_limits.pop(0)
            residue = (since - seq.prefill_tokens) % self.layout.block_tokens
            self._buckets[residue] -= weight
        finished = self._finish_at.pop(last, None)
        if finished is not None:
            heap = self._finish_heap
            while heap and heap[0] <= last:
                self._finish_at.pop(heappop(heap), None)
        return finished

    def drop(self, seq: Sequence) -> int:
        """Forget a sequence that has just finished; returns the pages it holds."""
        context = self.context(seq)
        seq.finish_iteration = -1
        self._leave(seq, context)
        return self.layout.pages(context - 1)
