"""Importer of APEX+'s profiling CSVs (microsoft/apex_plus, `profile/`, MIT).

Times are microseconds, cut to whole ones where a column is `int`; `gpu` names the GPU in each row.

gemm*.csv       [m, k] x [k, n]: m outputs, k inputs, n tokens; wall clock over 100 launches, so
                that small ones take as long as the host needs to launch them
mha*.csv        causal xformers attention of whole prompts, as many KV heads as query heads
all_reduce.csv  `size(kb)` of 1,024 bytes, whole ones, over `num_gpus_per_node` GPUs
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from calibration.columns import KERNEL, TIME
from calibration.importing import UNSTATED, Intake, csv_files, read_foreign
from calibration.tables import Tables, numbers
from simulator.catalog import load_gpu
from simulator.costs.forms import FORMS, points_of
from simulator.errors import ConfigError
from simulator.spec import GpuSpec

US = 1e-6
KB = 1024
MICROSECONDS = "time(us)"
CLOCK = "graph_clk_freq"  # MHz
HALF = ("half", "float16", "bfloat16")
IDLE_S = 0.5e-6  # GEMMs with less to do show what every launch takes
GRAPH_FLOOR_S = 6e-6  # no GEMM inside a CUDA graph has a floor above: the host launched these
LAUNCH_BOUND = 2.0  # times under so many floors are more launch than kernel


def import_tables(path: Path, gpu: GpuSpec) -> Tables:
    """Tables of one GPU from a file, or from every CSV of a folder.

    Raises:
        ConfigError: a file that cannot be used, another GPU's, or nothing of ours in it.
    """
    intake = Intake(gpu=gpu, unit="microseconds")
    for file in csv_files(path):
        kind = file.stem.split("_")[0]
        if kind == "gemm":
            _gemm(file, intake)
        elif kind == "mha":
            _mha(file, intake)
        elif file.stem == "all_reduce":
            _all_reduce(file, intake)
        else:
            why = "not causal" if kind == "bimha" else "none of our ops"
            intake.leave(file.name, len(read_foreign(file, ())), why)
    return intake.finish(
        path,
        {
            "engine": "torch",
            "version": UNSTATED,
            "source": f"APEX+ profile {path.name}",
            "licence": "not stated; of microsoft/apex_plus MIT",
        },
    )


def _rows(file: Path, sizes: tuple[str, ...], intake: Intake) -> pd.DataFrame:
    """16-bit rows at the highest clock: `sizes` as numbers, `TIME` in seconds."""
    raw = read_foreign(file, ("gpu", "dtype", *sizes, MICROSECONDS))
    for name in raw["gpu"].unique():
        if not _is(str(name), intake.gpu):
            raise ConfigError(f"{file}: gpu: expected {intake.gpu.name} (got {name or 'nothing'})")
    table = pd.DataFrame({n: numbers(raw[n], n, str(file), whole=True) for n in sizes})
    unit = {"whole": False, "unit": "microseconds"}
    table[TIME] = US * numbers(raw[MICROSECONDS], MICROSECONDS, str(file), **unit)  # type: ignore[arg-type]
    half = raw["dtype"].isin(HALF)
    intake.leave(file.stem, int((~half).sum()), "32-bit floats")
    if CLOCK in raw:
        clocks = numbers(raw[CLOCK], CLOCK, str(file), whole=False, unit="MHz")
        slow = clocks < clocks.max()
        intake.leave(file.stem, int((slow & half).sum()), f"clocks under {clocks.max():g} MHz")
        half &= ~slow
    return table[half]


def _is(name: str, gpu: GpuSpec) -> bool:
    """Whether a profile's name of a GPU is this one's."""
    if name.lower() == gpu.name.lower():
        return True
    try:
        return load_gpu(name).name == gpu.name
    except ConfigError:
        return False


def _gemm(file: Path, intake: Intake) -> None:
    rows = _rows(file, ("m", "k", "n"), intake)
    table = rows.rename(columns={"m": "out_size", "k": "in_size", "n": "num_tokens"})
    table = table.assign(**{KERNEL: "torch.matmul", "format": "bf16"})
    points = points_of("gemm", {name: table[name] for name in table.columns}, intake.gpu)
    idle = FORMS["gemm"].bounds(points, intake.gpu).least_s(0.0) < IDLE_S
    floor = float(rows[TIME][idle].median()) if idle.any() else 0.0
    if floor > GRAPH_FLOOR_S:
        bound = rows[TIME] < LAUNCH_BOUND * floor
        why = f"under {LAUNCH_BOUND * floor * 1e6:g} us, twice what the host takes to launch one"
        intake.leave(file.stem, int(bound.sum()), why)
        table = table[~bound]
    intake.take("gemm", table)


def _mha(file: Path, intake: Intake) -> None:
    rows = _rows(file, ("num_heads", "head_size", "batch_size", "seq_len"), intake)
    columns: Mapping[str, object] = {
        KERNEL: "xformers cutlass",
        "compute_format": "bf16",
        "kv_format": "bf16",
        "num_seqs": rows["batch_size"],
        "num_tokens": rows["seq_len"],
        "context_tokens": 0,
        "num_q_heads": rows["num_heads"],
        "num_kv_heads": rows["num_heads"],
        "head_dim": rows["head_size"],
        "window": 0,
        TIME: rows[TIME],
    }
    intake.take("prefill_attention", pd.DataFrame(columns, index=rows.index))


def _all_reduce(file: Path, intake: Intake) -> None:
    rows = _rows(file, ("num_nodes", "num_gpus_per_node", "size(kb)"), intake)
    gpus, kilobytes = rows["num_gpus_per_node"], rows["size(kb)"]
    one_node = (rows["num_nodes"] == 1) & (gpus > 1)
    intake.leave(file.stem, int((~one_node).sum()), "not among the GPUs of one node")
    intake.leave(file.stem, int((one_node & (kilobytes == 0)).sum()), "under 1 KB: size unknown")
    columns = {
        KERNEL: "nccl",
        "launch": np.full(len(rows), "graph", dtype=object),
        "num_gpus": gpus,
        "payload_bytes": KB * kilobytes,
        TIME: rows[TIME],
    }
    table = pd.DataFrame(columns, index=rows.index)
    intake.take("all_reduce", table[one_node & (kilobytes > 0)])
