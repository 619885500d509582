"""Plan search: which parallel plan and settings serve a workload best on a cluster.

`candidates` enumerates, `bounds` prunes, `runner` simulates on all cores, `rank` and `reasons` turn
metrics into an answer; `search.run_search` is the whole of it.
"""

from __future__ import annotations

from simulator.search.outcome import PlanRecord, SearchOutcome
from simulator.search.search import Progress, run_search
from simulator.search.spec import SearchSpec

__all__ = ["PlanRecord", "Progress", "SearchOutcome", "SearchSpec", "run_search"]
