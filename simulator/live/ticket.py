"""Requests of a live engine as their owners see them, and what has become of all of them."""

from __future__ import annotations

from collections.abc import Callable

from simulator.request import Sequence


class Ticket:
    """One request of a live engine, as its owner sees it. Times are engine ns; -1 = not yet."""

    __slots__ = (
        "asked",
        "change",
        "finish_ns",
        "first_ns",
        "given",
        "is_dropped",
        "latest_ns",
        "preemptions",
        "priority",
        "prompt_tokens",
        "rank",
        "scheduled_ns",
        "sent_ns",
        "seq",
    )

    def __init__(
        self, prompt_tokens: int, asked: int, priority: int, change: Callable[[], None]
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.asked = asked  # output tokens
        self.priority = priority
        self.given = 0  # of them, so far
        self.change = change  # called when there are more
        self.seq: Sequence | None = None  # None = gone
        self.sent_ns = self.scheduled_ns = self.first_ns = self.latest_ns = self.finish_ns = -1
        self.preemptions = self.rank = 0
        self.is_dropped = False  # nobody waits for it any more

    @property
    def is_done(self) -> bool:
        return self.finish_ns >= 0


class Totals:
    """What has happened since the start; it only grows."""

    __slots__ = ("dropped", "finished", "iterations", "preemptions", "tokens")

    def __init__(self) -> None:
        self.finished = self.dropped = self.tokens = self.iterations = self.preemptions = 0
