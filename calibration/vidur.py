"""Importer of Vidur's profiling CSVs (microsoft/vidur, `data/profiling`, MIT).

Layout: `compute/<device>/<model>/{mlp,attention}.csv`, `network/<device>_<links>/all_reduce.csv`,
or those files alone. `time_stats.<op>.median` is milliseconds of GPU kernels as the torch profiler
saw them (resolution 1 us): no launch of the host is in them. Everything ran in fp16 on one GPU; a
row of tensor-parallel degree t holds the shard that one of t GPUs would run.

mlp.csv       four GEMMs a row, by `n_embd`, `n_expanded_embd`, heads and degree
attention.csv `is_prefill`: a chunk of `prefill_chunk_size` after `kv_cache_size` tokens, else
              `batch_size` sequences decode, each with `kv_cache_size` tokens and the new one
all_reduce    `size` bytes over `num_workers` GPUs, NCCL; `devices_per_node` tells nodes apart
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from calibration.columns import KERNEL, TIME
from calibration.importing import UNSTATED, Intake, csv_files, read_foreign
from calibration.tables import Tables, numbers
from simulator.errors import ConfigError
from simulator.spec import GpuSpec

Counts = NDArray[np.int64]
MS = 1e-3
DEVICES = ("a40", "a100", "h100")  # how Vidur's folders name GPUs
GEMMS = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")
MLP_SIZES = ("n_head", "n_kv_head", "n_embd", "n_expanded_embd", "num_tokens")
TP = "num_tensor_parallel_workers"
ATTENTION_SIZES = ("n_embd", "n_q_head", "n_kv_head", TP, "batch_size", "prefill_chunk_size")
CACHE = "kv_cache_size"
SAVE = "attn_kv_cache_save"  # our attention includes the write of keys and values
OTHER_DEVICE = "another device's folder"


def import_tables(path: Path, gpu: GpuSpec) -> Tables:
    """Tables of one GPU from a file, or from every file of a folder that is of this GPU.

    Raises:
        ConfigError: a file that cannot be used, another GPU's, or nothing of ours in it.
    """
    if device := _other_device(path.resolve().parts, gpu):
        raise ConfigError(f"{path}: gpu: expected {gpu.name} (got {device}'s, by its folder)")
    intake = Intake(gpu=gpu, unit="milliseconds")
    for file in csv_files(path):
        parts = file.relative_to(path).parts if path.is_dir() else ()
        if _other_device(parts, gpu):
            intake.leave(parts[-1], 1, OTHER_DEVICE, "files")
        elif file.name == "mlp.csv":
            _mlp(file, intake)
        elif file.name == "attention.csv":
            _attention(file, intake)
        elif file.name == "all_reduce.csv":
            _all_reduce(file, intake)
        else:
            intake.leave(file.name, len(read_foreign(file, ())))
    return intake.finish(
        path,
        {
            "engine": "sarathi-serve",
            "version": UNSTATED,
            "source": f"Vidur profile {path.name}, medians of GPU kernel times",
            "licence": "not stated; of microsoft/vidur MIT",
        },
    )


def _other_device(parts: tuple[str, ...], gpu: GpuSpec) -> str:
    """The device a folder names that this GPU is not; "" = none."""
    named = [part.split("_")[0].lower() for part in parts]
    others = [name for name in named if name in DEVICES]
    own = gpu.name.lower().split("-")[0]
    return others[-1] if others and others[-1] != own else ""


def _mlp(file: Path, intake: Intake) -> None:
    """Four GEMMs a row; norms, rope, activation, sums and embedding are counted."""
    medians = [f"time_stats.{name}.median" for name in GEMMS]
    raw = read_foreign(file, (*medians, *MLP_SIZES, TP, "use_gated_mlp"))
    x = {n: numbers(raw[n], n, str(file), whole=True).to_numpy() for n in (*MLP_SIZES, TP)}
    tp, hidden, ffn = _at_least_one(x[TP]), x["n_embd"], x["n_expanded_embd"]
    heads, kv_heads = x["n_head"], x["n_kv_head"]
    head_dim = hidden // _at_least_one(heads)
    up = np.where(raw["use_gated_mlp"].str.lower() == "true", 2, 1) * ffn
    sizes = {
        "attn_pre_proj": ((heads + 2 * kv_heads) * head_dim // tp, hidden),
        "attn_post_proj": (hidden, heads * head_dim // tp),
        "mlp_up_proj": (up // tp, hidden),
        "mlp_down_proj": (hidden, ffn // tp),
    }
    for name, (out_size, in_size) in sizes.items():
        table = pd.DataFrame(
            {
                KERNEL: "sarathi linear",
                "format": "bf16",  # fp16: the same tensor cores
                "num_tokens": x["num_tokens"],
                "out_size": out_size,
                "in_size": in_size,
                TIME: _times(raw, name, file),
            }
        )
        intake.take("gemm", table)
    for name in _ops_of(raw):
        if name not in GEMMS:
            intake.leave(name, len(raw))


def _attention(file: Path, intake: Intake) -> None:
    """Decode and prefill rows apart; reshapes are counted."""
    raw = read_foreign(file, (*ATTENTION_SIZES, CACHE, "is_prefill", "attention_backend"))
    names = (*ATTENTION_SIZES, CACHE)
    x = pd.DataFrame({n: numbers(raw[n], n, str(file), whole=True) for n in names})
    heads = _heads(raw, x)
    is_prefill = raw["is_prefill"].str.lower() == "true"
    chunk, cached, whole = x["prefill_chunk_size"], x[CACHE], heads["num_kv_heads"] > 0
    prefill = is_prefill & (chunk > 0) & whole
    decode = ~is_prefill & (chunk == 0) & (cached > 0) & whole

    def take(op: str, chosen: pd.Series[bool], name: str, rows: pd.DataFrame) -> None:
        if chosen.any():
            times = _times(raw[chosen], name, file)
            if f"time_stats.{SAVE}.median" in raw:
                times = times + _times(raw[chosen], SAVE, file)
            intake.take(op, rows[chosen].assign(**{TIME: times}))

    take("decode_attention", decode, "attn_decode", heads.assign(kv_tokens=cached + 1))
    new = heads.assign(num_tokens=chunk, context_tokens=cached, compute_format="bf16")
    take("prefill_attention", prefill, "attn_prefill", new)
    left = ~(prefill | decode)
    intake.leave("attention", int((left & ~whole).sum()), "fewer KV heads than GPUs")
    intake.leave("attention", int((left & whole).sum()), "neither one decode nor one prefill")
    for name in _ops_of(raw):
        if name not in ("attn_prefill", "attn_decode", SAVE):
            intake.leave(name, len(raw))


def _heads(raw: pd.DataFrame, x: pd.DataFrame) -> pd.DataFrame:
    """What both kinds of rows have in common: the heads of one GPU."""
    tp = _at_least_one(x[TP].to_numpy())
    return pd.DataFrame(
        {
            KERNEL: raw["attention_backend"].str.split(".").str[-1].str.lower(),
            "kv_format": "bf16",
            "num_seqs": x["batch_size"],
            "num_q_heads": x["n_q_head"] // tp,
            "num_kv_heads": x["n_kv_head"] // tp,
            "head_dim": x["n_embd"] // _at_least_one(x["n_q_head"].to_numpy()),
            "window": 0,
        }
    )


def _all_reduce(file: Path, intake: Intake) -> None:
    """Sums inside one node; between nodes, or over pairs of linked GPUs, they are counted."""
    raw = read_foreign(file, ("num_workers", "size", "devices_per_node"))
    if "pair" in file.parent.name:
        intake.leave("all_reduce", len(raw), "a node linked in pairs")
        return
    names = ("num_workers", "size", "devices_per_node")
    x = pd.DataFrame({n: numbers(raw[n], n, str(file), whole=True) for n in names})
    local = (x["num_workers"] <= x["devices_per_node"]) & (x["num_workers"] > 1)
    intake.leave("all_reduce", int((~local).sum()), "between nodes")
    if local.any():
        table = pd.DataFrame(
            {
                KERNEL: "nccl",
                "launch": "graph",  # kernel times: no launch of the host is in them
                "num_gpus": x["num_workers"][local],
                "payload_bytes": x["size"][local],
                TIME: _times(raw[local], "all_reduce", file),
            }
        )
        intake.take("all_reduce", table)


def _times(raw: pd.DataFrame, name: str, file: Path) -> pd.Series[float]:
    """Seconds of an op's medians."""
    column = f"time_stats.{name}.median"
    if column not in raw:
        raise ConfigError(f"{file}: no column '{column}'")
    return MS * numbers(raw[column], column, str(file), whole=False, unit="milliseconds")


def _ops_of(raw: pd.DataFrame) -> list[str]:
    """Ops a file has medians of."""
    names = [str(column).split(".") for column in raw.columns]
    return [parts[1] for parts in names if parts[0] == "time_stats" and parts[-1] == "median"]


def _at_least_one(counts: Counts) -> Counts:
    return np.clip(counts, 1, None)
