"""The device as found, and its ceilings.

Ceilings need torch alone: copies by size, large GEMMs a format, launches eager and in a graph,
small kernels on several streams, copies to and from the host by size and by number of blocks.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from calibration.measure import Call, Cell, Made, Trial, torch_module
from calibration.suites import MIB, SUITES, Point, point

# The catalogue's names (configs/hardware) of devices as they call themselves.
CATALOGUE = {
    "NVIDIA A100-SXM4-40GB": "a100-40-sxm",
    "NVIDIA A100-SXM4-80GB": "a100-80-sxm",
    "NVIDIA H100 80GB HBM3": "h100-sxm",
    "NVIDIA H100 PCIe": "h100-pcie",
    "NVIDIA H200": "h200-sxm",
    "NVIDIA B200": "b200-sxm",
    "NVIDIA L4": "l4",
    "NVIDIA L40S": "l40s",
    "NVIDIA A10G": "a10g",
    "NVIDIA RTX A6000": "rtx-a6000",
    "NVIDIA GeForce RTX 4090": "rtx-4090",
    "Tesla T4": "t4",
}
SMI = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU as torch and the driver describe it."""

    name: str
    capability: int  # 80, 90, 100 ...
    num_sms: int
    memory_bytes: int
    l2_bytes: int
    driver: str
    clocks: str  # as found: nobody locked them
    torch: str
    triton: str
    cuda: str


def probe() -> Device:
    """Describe device 0.

    Raises:
        RuntimeError: no CUDA device, or no Triton; one line.
    """
    try:
        torch = torch_module()
    except ImportError:
        raise RuntimeError("torch is not installed") from None
    if not torch.cuda.is_available():
        raise RuntimeError("no CUDA device: kernels are measured on the GPU that they run on")
    properties = torch.cuda.get_device_properties(0)
    found = _smi()
    clocks = ", ".join(f"{name} {value}" for name, value in found.items() if "." in name)
    return Device(
        name=properties.name,
        capability=10 * properties.major + properties.minor,
        num_sms=properties.multi_processor_count,
        memory_bytes=properties.total_memory,
        l2_bytes=getattr(properties, "L2_cache_size", 0) or 64 << 20,
        driver=found.get("driver_version", "unknown"),
        clocks=clocks or "unknown",
        torch=torch.__version__,
        triton=_version("triton"),
        cuda=str(torch.version.cuda),
    )


def _smi() -> dict[str, str]:
    """What the driver's own tool says of device 0; nothing where it is absent."""
    command = ["nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader", "-i", "0"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(SMI, (cell.strip() for cell in done.stdout.split(",")), strict=False))


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def ceilings(suite: str) -> list[Point]:
    """The ceilings' points of a suite: first of all, and all of them."""
    size = SUITES.index(suite)
    sizes = ([64], [1, 4, 16, 64, 256, 1024, 4096], [2**i for i in range(-2, 14)])[size]
    formats = ("bf16",) if size == 0 else ("bf16", "fp16", "fp8", "int8")
    edges = ([4096], [4096, 8192], [2048, 4096, 8192, 16384])[size]
    streams = ([1, 4], [1, 2, 4, 8, 16], [1, 2, 4, 8, 16, 32])[size]
    blocks = ([1, 64], [1, 16, 256, 2048], [1, 4, 16, 64, 256, 1024, 4096])[size]
    totals = ([64], [1, 64], [1, 16, 64, 512])[size]
    return [
        *(point("copy_bandwidth", "copy_bandwidth", num_bytes=int(n * MIB)) for n in sizes),
        *(point("gemm_ceiling", "gemm_ceiling", format=f, edge=n) for f in formats for n in edges),
        *(point("launch", "launch", num_kernels=n, mode=m)
          for n in (1, 32, 256)[: size + 1] for m in ("eager", "graph")),
        *(point("streams", "streams", num_streams=s, edge=e, num_kernels=64)
          for s in streams for e in (256, 1024)[: size + 1]),
        *(point("host_copy", "host_copy", num_bytes=t * MIB, num_blocks=b, direction=d)
          for t in totals for b in blocks for d in ("to_host", "to_device")),
    ]  # fmt: skip


def ceiling(wanted: Point, l2_bytes: int) -> Made:
    """Trials of a ceiling."""
    arguments = dict(wanted.arguments)
    made = CEILINGS[wanted.maker](l2_bytes=l2_bytes, **arguments)
    return arguments, [made]


def _copy_bandwidth(*, num_bytes: int, l2_bytes: int) -> Trial:
    torch = torch_module()
    sets = 2 if num_bytes < 2**30 else 1
    pairs = [torch.zeros(2, num_bytes, dtype=torch.uint8, device="cuda") for _ in range(sets)]
    return Trial(
        kernel="torch",
        calls=[lambda p=p: p[1].copy_(p[0]) for p in pairs],  # type: ignore[misc]
        flush=2 * num_bytes * sets < 3 * l2_bytes,
    )


def _gemm_ceiling(*, format: str, edge: int, l2_bytes: int) -> Trial:
    torch = torch_module()
    kinds = {"fp8": torch.float8_e4m3fn, "int8": torch.int8, "fp16": torch.float16}
    kind = kinds.get(format, torch.bfloat16)
    # Data decide the power drawn, so no zeros: normal values, as a model's.
    a, b = (torch.randn(edge, edge, device="cuda") for _ in "ab")
    a, b = ((20 * x).clamp(-127, 127).to(kind) if format == "int8" else x.to(kind) for x in (a, b))
    one = torch.ones((), device="cuda")
    calls: Mapping[str, Call] = {
        "fp8": lambda: torch._scaled_mm(
            a, b.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True
        ),
        "int8": lambda: torch._int_mm(a, b.T),
    }
    return Trial(kernel="torch", calls=[calls.get(format, lambda: torch.mm(a, b.T))])


def _launch(*, num_kernels: int, mode: str, l2_bytes: int) -> Trial:
    x = torch_module().zeros(1, device="cuda")

    def call() -> None:
        for _ in range(num_kernels):
            x.add_(1)

    return Trial(kernel="torch", calls=[call], units=num_kernels, graph=mode == "graph")


def _streams(*, num_streams: int, edge: int, num_kernels: int, l2_bytes: int) -> Trial:
    """`num_kernels` independent GEMMs [64, edge] x [edge, edge] dealt to the streams."""
    torch = torch_module()
    side = [torch.cuda.Stream() for _ in range(num_streams)]
    a = torch.randn(num_kernels, 64, edge, device="cuda").bfloat16()
    b = torch.randn(num_kernels, edge, edge, device="cuda").bfloat16()
    out = torch.empty_like(a)

    def call() -> None:
        main = torch.cuda.current_stream()
        for s, stream in enumerate(side):
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                for i in range(s, num_kernels, num_streams):
                    torch.mm(a[i], b[i], out=out[i])
        for stream in side:
            main.wait_stream(stream)

    return Trial(kernel="torch", calls=[call], units=num_kernels)


def _host_copy(*, num_bytes: int, num_blocks: int, direction: str, l2_bytes: int) -> Trial:
    """Eager, as swapping does it: each block is a driver call and a transfer."""
    torch = torch_module()
    host = torch.zeros(num_blocks, num_bytes // num_blocks, dtype=torch.uint8).pin_memory()
    there = torch.zeros_like(host, device="cuda")
    source, target = (there, host) if direction == "to_host" else (host, there)

    def call() -> None:
        for i in range(num_blocks):
            target[i].copy_(source[i], non_blocking=True)

    return Trial(kernel="torch", calls=[call], graph=False)


CEILINGS: Mapping[str, Any] = {
    "copy_bandwidth": _copy_bandwidth,
    "gemm_ceiling": _gemm_ceiling,
    "launch": _launch,
    "streams": _streams,
    "host_copy": _host_copy,
}


def shape_of(columns: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Cell]:
    """A case's shape under the tables' column names."""
    return {names.get(key, key): value for key, value in columns.items()}
