"""Which cost tables price a GPU: the embedded ones, a calibration of one's own, or none.

Embedded: `configs/calibrated/<gpu>/curves.json`, Headway's own fit to published measurements; its
`meta.yaml` states source, licence and held-out error. A GPU without curves is priced by the
roofline with the shares of `simulator.costs.efficiency`.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from simulator.catalog import CONFIGS
from simulator.costs.curve import curve_of
from simulator.costs.efficiency import efficiency_of
from simulator.costs.tables import CostTables
from simulator.errors import ConfigError
from simulator.spec import EngineSettings, GpuSpec

CURVES = "curves.json"
FORMAT = 2  # of curves.json
ROOFLINE = "roofline"  # the calibration that uses no tables
EMBEDDED = CONFIGS / "calibrated"


def tables_of(gpu: GpuSpec, settings: EngineSettings) -> CostTables | None:
    """The tables of a GPU under these settings; None = the roofline.

    Raises:
        ConfigError: a calibration that cannot be used, or is another GPU's.
    """
    folder = fitted_folder(gpu, settings)
    if folder is None:
        return None
    path = folder / CURVES
    extrapolate = settings.extrapolate or not settings.calibration
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        raise ConfigError(
            f"{path}: does not exist; `headway calibrate fit {path.parent}` writes it"
        ) from None
    return _tables(path, changed, _Peaks(gpu), extrapolate)


def fitted_folder(gpu: GpuSpec, settings: EngineSettings) -> Path | None:
    """Where the curves of a GPU lie under these settings, and their errors; None = no curves."""
    if settings.calibration == ROOFLINE:
        return None
    if settings.calibration:
        return Path(settings.calibration)
    folder = EMBEDDED / gpu.name.lower()
    return folder if (folder / CURVES).exists() else None


def source_of(gpu: GpuSpec, settings: EngineSettings) -> str:
    """Which cost tables price a GPU, in one line."""
    tables = tables_of(gpu, settings)
    return tables.source if tables else efficiency_of(gpu).source


class _Peaks:
    """A GPU as a key: equal where everything a curve asks of it is."""

    def __init__(self, gpu: GpuSpec) -> None:
        self.gpu = gpu
        self.key = (
            gpu.name,
            gpu.memory_bytes_per_s,
            gpu.num_sms,
            gpu.l2_bytes,
            gpu.gpu_link.bytes_per_s,
            tuple(sorted(gpu.flops_per_s.items())),
        )

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Peaks) and self.key == other.key


@lru_cache(maxsize=64)
def _tables(path: Path, changed: int, peaks: _Peaks, extrapolate: bool) -> CostTables:
    gpu = peaks.gpu
    data = read_curves(path)
    if data["gpu"] != gpu.name:
        raise ConfigError(f"{path}: gpu: expected tables of {gpu.name} (got {data['gpu']})")
    try:
        curves = [curve_of(entry, gpu) for entry in data["curves"]]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"{path}: curves: not usable ({type(error).__name__}: {error})") from None
    return CostTables(
        gpu=gpu,
        source=str(data["source"]),
        curves={(curve.op, curve.label): curve for curve in curves},
        extrapolate=extrapolate,
    )


def read_curves(path: Path) -> dict[str, Any]:
    """curves.json as it is, its format and heading checked."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON, cut short? ({error})") from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise ConfigError(
            f"{path}: expected fitted curves of format {FORMAT}; "
            f"`headway calibrate fit {path.parent}` writes it"
        )
    for key in ("gpu", "source", "curves"):
        if not data.get(key):
            raise ConfigError(f"{path}: {key}: missing")
    return data
