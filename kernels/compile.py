"""Ahead-of-time compilation: shared memory, registers and spills of a kernel, without a GPU.

A kernel is named by text (`"kernels.gemm:gemm_kernel"`) so that a job can be sent to another
process. That matters for tests: with TRITON_INTERPRET=1 a decorated kernel is an interpreted
function and cannot be compiled, so `compile_all` runs its jobs in fresh processes where the
variable is removed before triton is imported. `compile_for` itself needs an uninterpreted process.

    jobs = [AotJob(kernel="kernels.gemm:gemm_kernel", target=90, config="m128n256k64",
                   signature={"a": "*fp16", "M": "i32"}, constants={"BLOCK_M": 128}, num_warps=8)]
    reports = compile_all(jobs)          # in the order of the jobs
    assert not any(r.problem for r in reports)
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

TARGETS = (80, 90, 100)
KIB = 1024


@dataclass(frozen=True)
class Limits:
    """What one thread block, or one thread, may use at most."""

    shared_bytes: int
    registers: int = 255
    tensor_memory_columns: int = 0


LIMITS = {
    80: Limits(163 * KIB),
    90: Limits(227 * KIB),
    100: Limits(227 * KIB, tensor_memory_columns=512),
}


@dataclass(frozen=True, kw_only=True)
class AotJob:
    """One kernel, one configuration, one chip.

    `signature` maps each run-time argument to its Triton type: "*bf16", "i32", "fp32", or
    "tensordesc<bf16[128,64]>"; `constants` holds the constexpr arguments. Pointers are taken to be
    16-byte aligned, as torch allocates them; `divisible` names integers that are multiples of 16.
    """

    kernel: str
    config: str
    target: int
    signature: Mapping[str, str]
    constants: Mapping[str, object]
    num_warps: int = 4
    num_stages: int = 3
    divisible: tuple[str, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AotReport:
    """What the compiler made of one job. `spills` is bytes of local memory per thread, which is
    also what Triton's own launcher calls spilling; None where no disassembler is at hand."""

    kernel: str
    target: int
    config: str
    shared_bytes: int = 0
    registers: int | None = None
    spills: int | None = None
    tensor_memory_columns: int = 0
    error: str = ""

    @property
    def problem(self) -> str:
        """Empty if the configuration fits its chip without spilling, else one line."""
        limits = LIMITS[self.target]
        where = f"{self.kernel} [{self.config}] for sm_{self.target}"
        if self.error:
            return f"{where} does not compile: {self.error}"
        if self.shared_bytes > limits.shared_bytes:
            return f"{where}: {self.shared_bytes} bytes of shared memory > {limits.shared_bytes}"
        if self.tensor_memory_columns > limits.tensor_memory_columns:
            return f"{where}: {self.tensor_memory_columns} columns of tensor memory"
        if (self.registers or 0) > limits.registers:
            return f"{where}: {self.registers} registers > {limits.registers}"
        if self.spills:
            return f"{where}: spills {self.spills} bytes"
        return ""


def compile_for(job: AotJob) -> AotReport:
    """Compile one job in this process (which must not be interpreting)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module, name = job.kernel.split(":")
    kernel = getattr(importlib.import_module(module), name)
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, arg in enumerate(kernel.arg_names)
        if job.signature.get(arg, "").startswith("*") or arg in job.divisible
    }
    known = {**job.signature, **dict.fromkeys(job.constants, "constexpr")}
    source = ASTSource(
        fn=kernel,
        signature={arg: known[arg] for arg in kernel.arg_names},
        constexprs=dict(job.constants),
        attrs=aligned,
    )
    options = {"num_warps": job.num_warps, "num_stages": job.num_stages, **job.options}
    report = AotReport(kernel=job.kernel, target=job.target, config=job.config)
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", job.target, 32), options=options)
    except Exception as error:  # a compiler's failure is the result we report
        text = str(error).strip().splitlines() or [""]
        return replace(report, error=f"{type(error).__name__}: {text[-1]}"[:500])
    registers, spills = _resources(compiled.asm["cubin"])
    return replace(
        report,
        shared_bytes=compiled.metadata.shared,
        registers=registers,
        spills=spills,
        tensor_memory_columns=getattr(compiled.metadata, "tmem_size", None) or 0,
    )


def compile_all(jobs: Iterable[AotJob], workers: int | None = None) -> list[AotReport]:
    """Compile many jobs in fresh, uninterpreted processes; reports in the order of the jobs."""
    context = multiprocessing.get_context("spawn")
    count = workers or min(os.cpu_count() or 1, 8)
    with ProcessPoolExecutor(count, mp_context=context, initializer=_uninterpreted) as pool:
        return list(pool.map(compile_for, jobs, chunksize=4))


def _uninterpreted() -> None:
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # what 3.6 does; 3.9 warns when unset


def _resources(cubin: bytes) -> tuple[int | None, int | None]:
    """Registers and local bytes per thread, read from the machine code by Triton's cuobjdump."""
    import triton.backends.nvidia as nvidia

    tool = Path(next(iter(nvidia.__path__))) / "bin" / "cuobjdump"
    if not tool.exists():
        return None, None
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    if "REG" not in usage:
        return None, None
    return int(usage["REG"]), max(int(usage.get("STACK", 0)), int(usage.get("LOCAL", 0)))
