"""Tile configurations as data: `tiles_linear.json`, one list of rows per op and chip.

A row is a configuration and the largest shape it is meant for:

    {"m_max": 16, "BLOCK_M": 16, "BLOCK_N": 32, ..., "num_warps": 4, "num_stages": 5}

`pick` returns the first row whose bounds (`m_max`, `n_max`, `k_max`; absent = no bound) hold, so
rows are ordered from small to large and the last has no bound. Rows with `TMA` read through tensor
descriptors and are passed over when the operands' alignment does not allow that. Tuning is the
profiler's business: it times `configurations(op, chip)` and the winner is written into the data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

import torch

DATA = Path(__file__).with_name("tiles_linear.json")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Tiles of one launch. Names in capitals are the kernels' constexpr arguments."""

    BLOCK_M: int = 1
    BLOCK_N: int = 1
    BLOCK_K: int = 1
    GROUP_M: int = 8
    SPLIT_K: int = 1
    TMA: bool = False
    num_warps: int = 4
    num_stages: int = 3

    def __post_init__(self) -> None:
        if self.TMA and self.SPLIT_K != 1:
            raise ValueError("a TMA configuration is persistent and does not split K")

    def tiles(self, *names: str) -> dict[str, object]:
        """The named constexpr arguments."""
        return {name: getattr(self, name) for name in names}

    @property
    def label(self) -> str:
        """For example "m128n256k64-g8-tma-w8s3"."""
        tma = "-tma" if self.TMA else ""
        split = f"-s{self.SPLIT_K}" if self.SPLIT_K > 1 else ""
        return (
            f"m{self.BLOCK_M}n{self.BLOCK_N}k{self.BLOCK_K}-g{self.GROUP_M}{split}{tma}"
            f"-w{self.num_warps}s{self.num_stages}"
        )


@cache
def _table() -> Mapping[str, Mapping[str, list[dict[str, int | bool]]]]:
    table: Mapping[str, Mapping[str, list[dict[str, int | bool]]]] = json.loads(DATA.read_text())
    return table


def _config(row: Mapping[str, int | bool]) -> Config:
    names = {field.name for field in fields(Config)}
    unknown = set(row) - names - {"m_max", "n_max", "k_max"}
    if unknown:
        raise ValueError(f"{DATA.name}: unknown keys {sorted(unknown)} in {dict(row)}")
    return Config(**{key: value for key, value in row.items() if key in names})  # type: ignore[arg-type]


def chips(op: str) -> list[int]:
    """The chips that `op` has configurations for, as capabilities."""
    return sorted(int(chip) for chip in _table()[op])


def rows(op: str, chip: int) -> list[dict[str, int | bool]]:
    """The table rows of the newest listed chip that is not newer than `chip`."""
    known = [c for c in chips(op) if c <= chip]
    if not known:
        raise ValueError(f"{op} needs sm_{min(chips(op))} or later, this is sm_{chip}")
    return _table()[op][str(max(known))]


def configurations(op: str, chip: int) -> list[Config]:
    """Every distinct configuration of `op` on `chip`, in table order; none if it cannot run."""
    if not any(c <= chip for c in chips(op)):
        return []
    return list(dict.fromkeys(_config(row) for row in rows(op, chip)))


def pick(op: str, chip: int, *, tma: bool = True, **sizes: int) -> Config:
    """The first row of the table that covers the given sizes (m, n, k)."""
    for row in rows(op, chip):
        fits = all(size <= row.get(f"{axis}_max", size) for axis, size in sizes.items())
        if fits and (tma or not row.get("TMA", False)):
            return _config(row)
    raise ValueError(f"{DATA.name}: {op} for sm_{chip} has no row for {sizes}, tma={tma}")


@cache
def capability(device: torch.device) -> int:
    """80, 90, 100 ... of a GPU; the newest of our tables on the interpreter."""
    if device.type != "cuda":
        return 100
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor
