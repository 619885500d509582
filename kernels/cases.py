"""What a benchmark needs to know of one op at one shape: inputs, providers, truth, work.

A kernel module offers `benchmark_cases() -> list[Case]` and a constructor per op
(`gemm_case(m=..., n=..., k=..., dtype="bf16") -> Case`) for grids chosen elsewhere. Use:

    case = gemm_case(m=512, n=4096, k=4096, dtype="bf16")
    copies = [case.make_inputs(device, generator) for _ in range(case.copies(l2_bytes))]
    for name, run in case.providers.items():
        if problem := case.problem(run, copies[0]):     # "" or one line: then no number is kept
            continue
        time(lambda i: run(*copies[i % len(copies)]))   # rotating inputs defeat the L2 cache

A provider takes the inputs and returns its output (one tensor or a tuple of tensors). It may
allocate its output: under a CUDA graph that costs nothing. Inputs a provider updates in place
(`mutates`: a KV cache, a residual) are cloned for the check; timing may overwrite them at will.
A provider that a torch version or a chip lacks raises; the caller records that as "not available".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

Inputs = tuple[torch.Tensor | int | float | None, ...]
Output = torch.Tensor | tuple[torch.Tensor, ...]
Run = Callable[..., Output]

DTYPES: Mapping[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp32": torch.float32,
    "fp8": torch.float8_e4m3fn,
    "int8": torch.int8,
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One op at one shape. `shape` becomes the columns of the measured table.

    `flops` counts a multiply-add as 2; `bytes` is the least traffic to device memory (each input
    read once, each output written once). `capability` is the least chip that has the dtype.
    `tolerance` bounds |x - truth| / (|truth| + rms(truth)), elementwise, over every output.
    """

    op: str
    shape: Mapping[str, int | float | str]
    dtype: str
    flops: int
    bytes: int
    make_inputs: Callable[[torch.device, torch.Generator], Inputs]
    reference: Run
    providers: Mapping[str, Run]
    tolerance: float
    capability: int = 80
    mutates: tuple[int, ...] = field(default=())

    @property
    def name(self) -> str:
        """For example "gemm-bf16-m512-n4096-k4096"."""
        return "-".join([self.op, self.dtype, *(f"{k}{v}" for k, v in self.shape.items())])

    def copies(self, l2_bytes: int) -> int:
        """How many sets of inputs to rotate through so that each is cold when its turn comes."""
        return max(2, math.ceil(3 * l2_bytes / max(self.bytes, 1)))

    def problem(self, run: Run, inputs: Inputs) -> str:
        """Empty if `run` agrees with the reference on these inputs, else one line."""
        truth = self.reference(*self._fresh(inputs))
        found = run(*self._fresh(inputs))
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # a copy to the host may still be under way
        return disagreement(found, truth, self.tolerance)

    def _fresh(self, inputs: Inputs) -> Inputs:
        return tuple(
            _clone(x) if i in self.mutates and isinstance(x, torch.Tensor) else x
            for i, x in enumerate(inputs)
        )


def _clone(x: torch.Tensor) -> torch.Tensor:
    pinned = x.device.type == "cpu" and torch.cuda.is_available() and x.is_pinned()
    return x.clone().pin_memory() if pinned else x.clone()


def disagreement(found: Output, truth: Output, tolerance: float) -> str:
    """Empty if every output is finite where the truth is and close to it, else one line."""
    pairs = zip(_outputs(found), _outputs(truth), strict=True)
    for i, (x, y) in enumerate(pairs):
        if x.shape != y.shape:
            return f"output {i} has shape {tuple(x.shape)}, expected {tuple(y.shape)}"
        if x.numel() == 0:
            continue
        exact, actual = y.double(), x.double()
        scale = exact.abs() + exact.square().mean().sqrt() + 1e-30
        error = ((actual - exact).abs() / scale).nan_to_num(nan=math.inf)
        worst = int(error.argmax())
        if float(error.flatten()[worst]) > tolerance:
            return (
                f"output {i} at flat index {worst}: {float(actual.flatten()[worst]):.6g}, expected "
                f"{float(exact.flatten()[worst]):.6g} (relative error "
                f"{float(error.max()):.3g} > {tolerance:.3g})"
            )
    return ""


def _outputs(output: Output) -> tuple[torch.Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)
