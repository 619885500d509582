"""KV allocators: who holds which pages. A dict literal registers a policy of each kind.

A page is what `PageLayout` counts (one KV block for a model with full attention only). Allocators
keep `free_pages`; the lane asks before it schedules, so `take` never fails.
"""

from __future__ import annotations

from simulator.allocators.host_tier import HostMemory
from simulator.allocators.policies import (
    AllocatorPolicy,
    Buddy,
    KVAllocator,
    Paged,
    Pool,
    PrefixCaching,
    RemotePrefill,
    Reserved,
    VAttention,
)
from simulator.allocators.typed_policies import Hybrid, Jenga, MaxPage, StaticPartition, Uniform

ALLOCATORS: dict[str, type] = {
    "paged": Paged,
    "prefix_caching": PrefixCaching,
    "reserved": Reserved,
    "buddy": Buddy,
    "vattention": VAttention,
    "uniform": Uniform,
    "max_page": MaxPage,
    "static_partition": StaticPartition,
    "vllm_hybrid": Hybrid,
    "jenga": Jenga,
}

__all__ = [
    "ALLOCATORS",
    "AllocatorPolicy",
    "Buddy",
    "HostMemory",
    "Hybrid",
    "Jenga",
    "KVAllocator",
    "MaxPage",
    "Paged",
    "Pool",
    "PrefixCaching",
    "RemotePrefill",
    "Reserved",
    "StaticPartition",
    "Uniform",
    "VAttention",
]
