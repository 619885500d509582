"""How a preempted request's KV goes to the host and comes back."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class SwapSpace:
    """Memory of the host for KV, and what copying a page costs beside its bytes.

    A page is two copies a layer (K and V); `group_pages` adjoining ones go in one copy of each, as
    FastSwitch's block groups do (arXiv 2411.18424).
    """

    pages: int  # of the host; 0 = as many as the GPU has
    copy_latency_s: float  # of one copy, however long
    group_pages: int

    def __post_init__(self) -> None:
        if self.pages < 0 or self.copy_latency_s < 0 or self.group_pages < 1:
            raise ConfigError(
                "scheduler: expected swap_pages >= 0, swap_copy_latency_s >= 0 and "
                f"swap_group_pages >= 1 (got {self.pages}, {self.copy_latency_s} and "
                f"{self.group_pages})"
            )

    def time_s(
        self, num_pages: int, num_layers: int, page_bytes: float, bytes_per_s: float
    ) -> float:
        """Copying so many pages of one sequence: copies x latency + bytes / bandwidth."""
        copies = 2 * num_layers * -(-num_pages // self.group_pages)
        return copies * self.copy_latency_s + num_pages * page_bytes / bytes_per_s
