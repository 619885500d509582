"""Tile configurations of the attention kernels as data: `tiles_attention.json`.

One list of rows per op and chip, from small to large; `pick` returns the first row whose bounds
hold (`rows_max`: query rows that share a KV head; `head_dim_max`; `features_max`: how many of
window, soft-cap, quantised KV and contiguous KV are in use, as each takes registers; absent = no
bound) among those of the newest listed chip that is not newer than the device. The linear kernels
keep theirs the same way (`configs.py`); tuning rewrites the data, never the kernels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from kernels.configs import capability

DATA = Path(__file__).with_name("tiles_attention.json")
BOUNDS = ("rows_max", "head_dim_max", "features_max")
OPS = ("paged_attention", "mla_decode", "prefill_attention", "block_sparse_attention")


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Tiles of one launch: query rows and keys per tile, threads and pipelining."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int

    @property
    def label(self) -> str:
        """For example "m128n64-w8s3"."""
        return f"m{self.block_m}n{self.block_n}-w{self.num_warps}s{self.num_stages}"


@cache
def _table() -> Mapping[str, Mapping[str, list[dict[str, int]]]]:
    table: Mapping[str, Mapping[str, list[dict[str, int]]]] = json.loads(DATA.read_text())
    return table


def table_rows(op: str, chip: int) -> list[tuple[dict[str, int], AttentionConfig]]:
    """(bounds, configuration) of each row that serves `chip` (80, 90, 100, ...)."""
    known = [int(c) for c in _table()[op] if int(c) <= chip]
    if not known:
        raise ValueError(f"{op} needs sm_{min(map(int, _table()[op]))} or later, not sm_{chip}")
    return [
        (
            {key: row[key] for key in BOUNDS if key in row},
            AttentionConfig(**{key: row[key] for key in row if key not in BOUNDS}),
        )
        for row in _table()[op][str(max(known))]
    ]


def pick(
    op: str, device: torch.device, *, head_dim: int, rows: int, features: int = 0
) -> AttentionConfig:
    """The first row of the table that covers the head size, the rows and the features."""
    size = {"rows_max": rows, "head_dim_max": head_dim, "features_max": features}
    for bounds, config in table_rows(op, capability(device)):
        if all(size[name] <= bound for name, bound in bounds.items()):
            return config
    raise ValueError(f"{DATA.name}: {op} has no row for head_dim {head_dim} and {rows} rows")
