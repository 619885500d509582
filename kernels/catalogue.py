"""Every op of this package: its benchmark cases and its compile jobs, by module."""

from __future__ import annotations

import importlib

from kernels.cases import Case
from kernels.compile import AotJob

LINEAR = (
    "gemm", "gemm_fp8", "gemm_int8", "gemm_int4", "grouped_gemm_cases", "quantize", "elementwise",
    "rope_kv", "sampling", "kv_copy",
)  # fmt: skip

ATTENTION = ("decode_cases", "prefill_cases")


def benchmark_cases(modules: tuple[str, ...] = LINEAR + ATTENTION) -> list[Case]:
    """The default cases of each module, in order."""
    return [case for m in modules for case in _module(m).benchmark_cases()]


def aot_jobs(target: int, modules: tuple[str, ...] = LINEAR + ATTENTION) -> list[AotJob]:
    """Every configuration of every kernel on one chip (80, 90 or 100)."""
    return [job for m in modules for job in _module(m).aot_jobs(target)]


def _module(name: str):
    return importlib.import_module(f"kernels.{name}")
