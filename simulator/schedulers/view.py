"""What a scheduler may see and do: the lane it plans for."""

from __future__ import annotations

from typing import Protocol

from simulator.request import Sequence


class WaitingQueue(Protocol):
    """Requests not yet admitted; [0] is next. A deque for FCFS, a heap for priorities."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Sequence: ...
    def append(self, seq: Sequence, /) -> None: ...
    def appendleft(self, seq: Sequence, /) -> None: ...
    def popleft(self) -> Sequence: ...


class LaneView(Protocol):
    """One lane: a batch of sequences that iterate together, on one attention rank."""

    key: int  # index among all lanes of the run
    waiting: WaitingQueue  # of the rank, shared by its lanes; next to admit first
    prefilling: list[Sequence]  # admitted, prompt not yet computed, in admission order
    max_num_tokens: int  # token budget of an iteration
    max_num_seqs: int  # running sequences of the rank, over its lanes
    paused: bool  # its decodes did not gain a token in the latest iteration

    @property
    def num_pages(self) -> int:
        """Pages of the rank's pool."""
        ...

    @property
    def block_tokens(self) -> int:
        """Tokens of a KV block."""
        ...

    @property
    def kv_tokens(self) -> int:
        """Tokens whose KV the rank's pool holds, if nothing of them is freed early."""
        ...

    @property
    def now_ns(self) -> int:
        """Time at which the iteration is planned."""
        ...

    def sent_ns(self, seq: Sequence) -> int:
        """When the client sent the request; its TTFT begins then."""
        ...

    @property
    def decode_iterations(self) -> int:
        """Iterations so far in which this lane's decodes gained a token."""
        ...

    @property
    def num_decode(self) -> int:
        """Decoding sequences of this lane."""
        ...

    @property
    def decode_tokens(self) -> int:
        """Tokens they take of the budget in the coming iteration, drafts to verify included."""
        ...

    @property
    def num_running(self) -> int:
        """Admitted sequences of the rank, over its lanes."""
        ...

    @property
    def has_work(self) -> bool:
        """The coming iteration computes something."""
        ...

    def decode(self) -> int:
        """Let every decoding sequence gain a token if pages last; else the pages that lack."""
        ...

    def extend(self, seq: Sequence, num_tokens: int) -> bool:
        """Compute `num_tokens` more prompt tokens of a prefilling sequence; False: no pages."""
        ...

    def cached(self, seq: Sequence) -> int:
        """Prompt tokens of a waiting sequence that are in the prefix cache.

        -1: it has left `waiting` until its KV has been loaded from host memory.
        """
        ...

    def admit(
        self,
        seq: Sequence,
        cached_tokens: int,
        num_tokens: int,
        reserve: bool,
        spare_pages: int = 0,
    ) -> bool:
        """Take the head of `waiting` in with a first chunk; False: no pages.

        `reserve`: refuse unless pages for the whole prompt are free now; and `spare_pages` more.
        """
        ...

    def preempt_last(self) -> bool:
        """`preempt` the youngest running sequence of the rank."""
        ...

    def preempt(self, seq: Sequence) -> bool:
        """Evict `seq` for recomputation, to the head of `waiting`; False: it is in flight."""
        ...

    @property
    def num_swapped(self) -> int:
        """Sequences of this lane whose KV is on the host."""
        ...

    def swap_in(self, spare_pages: int) -> None:
        """Bring back who was swapped out, the first to go first, while pages last."""
        ...

    def stall(self) -> None:
        """Wait for pages that a batch in flight holds; nobody is admitted meanwhile."""
        ...

    @property
    def may_admit(self) -> bool:
        """No lane of the rank waits for pages."""
        ...

    def generated(self, seq: Sequence) -> int:
        """Output tokens of a sequence so far."""
        ...

    def running(self) -> list[Sequence]:
        """Running sequences of the rank in admission order; O(batch), for rare decisions."""
        ...
