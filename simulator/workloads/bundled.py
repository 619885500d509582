"""Workload files that ship with Headway, found by name."""

from __future__ import annotations

from pathlib import Path

from simulator.errors import ConfigError

_FOLDER = Path(__file__).resolve().parents[2] / "configs" / "workloads"
_SUFFIXES = (".csv.gz", ".jsonl.gz", ".csv", ".jsonl")


def bundled_workloads() -> dict[str, Path]:
    """Name and file of every bundled workload, by name."""
    found = {
        path.name.removesuffix(suffix): path
        for suffix in _SUFFIXES
        for path in _FOLDER.glob(f"*{suffix}")
    }
    return dict(sorted(found.items()))


def resolve(file: str | Path) -> Path:
    """`file` where it exists, else the bundled workload of that name."""
    try:
        path = Path(file).expanduser()
        if path.exists():
            return path
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(f"workload file {str(file)[:60]!r} is not usable ({error})") from None
    bundled = bundled_workloads()
    if str(file) in bundled:
        return bundled[str(file)]
    raise ConfigError(
        f"{path}: no such file (bundled workloads: {', '.join(bundled) or 'none'}; "
        "presets: headway workloads)"
    )
