"""Importer of the measured database inside the `aiconfigurator-core` wheel (Apache-2.0).

Reads `systems/data/<system>/<family>/<engine>/<version>/<table>_perf.parquet` directly. Its
latencies are milliseconds (means of six CUDA-graph replays; one for power-law MoE), its
`message_size` counts elements, and small tensors stay in L2 between replays.
"""

from __future__ import annotations

import datetime
import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from calibration.columns import KERNEL, TIME
from calibration.gate import gate
from calibration.importing import clean
from calibration.tables import Tables
from simulator.catalog import load_gpu
from simulator.errors import ConfigError, unknown_name

PACKAGE = "aiconfigurator_core"
LICENCE = "Apache-2.0 (NVIDIA CORPORATION & AFFILIATES)"
MS = 1e-3
SYSTEMS: Mapping[str, str] = {
    "a100_sxm": "A100-80-SXM",
    "h100_sxm": "H100-SXM",
    "h200_sxm": "H200-SXM",
    "b200_sxm": "B200-SXM",
    "l40s": "L40S",
    "rtx_pro_6000_server": "RTX-PRO-6000",
}
ENGINES = ("vllm", "trtllm", "sglang")
FORMATS: Mapping[str, str] = {
    "bfloat16": "bf16",
    "float16": "bf16",
    "int8_wo": "int8_wo",
    "int4_wo": "int4_g128",
    "sq": "int8",
    "w4a16_mxfp4": "mxfp4",
}
# Experts with one up-projection (squared ReLU): Nemotron 3. TRT-LLM's tables mark them, vLLM's not.
NOT_GATED = ((2688, 1856), (2048, 5120), (8192, 5120), (1024, 2688))
Table = pd.DataFrame


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One table of the wheel and how to read it."""

    family: str
    file: str
    read: Callable[[Table], Table]
    engine: str = ""  # "" = the one asked for


def _common(raw: Table, fmt: str) -> Table:
    kernel = raw["kernel_source"].str.replace(",", ";")
    formats = raw[fmt].map(lambda name: FORMATS.get(name, name))
    return pd.DataFrame({KERNEL: kernel, "format": formats, TIME: raw["latency"] * MS})


def read_gemm(raw: Table) -> Table:
    """m, n, k as tokens, outputs, inputs."""
    sizes = {"num_tokens": raw["m"], "out_size": raw["n"], "in_size": raw["k"]}
    return _common(raw, "gemm_dtype").assign(**sizes)


def _attention(raw: Table) -> Table:
    table = _common(raw, "kv_cache_dtype").rename(columns={"format": "kv_format"})
    return table.assign(
        num_seqs=raw["batch_size"],
        num_q_heads=raw["num_heads"],
        num_kv_heads=raw["num_key_value_heads"],
        head_dim=raw["head_dim"],
        window=raw.get("window_size", 0),
    )


def read_prefill(raw: Table) -> Table:
    """isl new tokens of each sequence after `step` cached ones."""
    compute = raw["attn_dtype"].map(lambda name: FORMATS.get(name, name))
    table = _attention(raw)
    return table.assign(compute_format=compute, num_tokens=raw["isl"], context_tokens=raw["step"])


def read_decode(raw: Table) -> Table:
    """`step` cached tokens and the new one."""
    return _attention(raw).assign(kv_tokens=raw["isl"] + raw["step"])


def _mla(raw: Table) -> Table:
    kv_formats = raw["kv_cache_dtype"].map(lambda name: FORMATS.get(name, name))
    sizes = {"num_seqs": raw["batch_size"], "num_q_heads": raw["num_heads"]}
    return _common(raw, "gemm_type").assign(kv_format=kv_formats, **sizes)


def read_mla_prefill(raw: Table) -> Table:
    """isl new tokens of each sequence; nothing cached was measured."""
    return _mla(raw[raw["step"] == 0]).assign(num_tokens=raw["isl"])


def read_mla_decode(raw: Table) -> Table:
    """`step` counts the new token here: its values are powers of two, one less in kernel tables."""
    return _mla(raw).assign(kv_tokens=raw["step"])


def read_moe(raw: Table) -> Table:
    """Slices over moe_tp and experts over moe_ep, as one GPU sees them."""
    kernel, hidden, ffn = raw["kernel_source"], raw["hidden_size"], raw["inter_size"]
    shapes = pd.Series(list(zip(hidden, ffn, strict=True)), index=raw.index)
    gated = ~(kernel.str.contains("nongated") | shapes.isin(NOT_GATED))
    power = raw["distribution"].str.extract(r"power_law_([\d.]+)", expand=False)
    return _common(raw, "moe_dtype").assign(
        num_tokens=raw["num_tokens"],
        hidden_size=hidden,
        ffn_size=ffn // raw["moe_tp_size"],
        num_experts=raw["num_experts"],
        local_experts=raw["num_experts"] // raw["moe_ep_size"],
        experts_per_token=raw["topk"],
        is_gated=gated.astype(int),
        skew_percent=(power.astype(float).fillna(0.0) * 100).round().astype(int),
    )


def read_all_reduce(raw: Table) -> Table:
    """message_size is elements of the 16-bit dtype, not bytes."""
    table = _common(raw, "allreduce_dtype").drop(columns="format")
    eager = raw["kernel_source"].str.contains("eager")
    return table.assign(
        launch=np.where(eager, "eager", "graph"),
        num_gpus=raw["num_gpus"],
        payload_bytes=raw["message_size"] * 2,
    )


def read_nccl(raw: Table) -> Table:
    """message_size is elements of the whole tensor; the engines' all-reduce is a table apart."""
    raw = raw[(raw["nccl_dtype"] == "half") & (raw["op_name"] != "all_reduce")]
    return pd.DataFrame(
        {
            KERNEL: raw["kernel_source"],
            "kind": raw["op_name"].replace("alltoall", "all_to_all"),
            "num_gpus": raw["num_gpus"],
            "payload_bytes": raw["message_size"] * 2,
            TIME: raw["latency"] * MS,
        }
    )


SOURCES: Mapping[str, Source] = {
    "gemm": Source(family="gemm", file="gemm", read=read_gemm),
    "prefill_attention": Source(family="attention", file="context_attention", read=read_prefill),
    "decode_attention": Source(family="attention", file="generation_attention", read=read_decode),
    "mla_prefill_block": Source(family="mla", file="mla_context_module", read=read_mla_prefill),
    "mla_decode_block": Source(family="mla", file="mla_generation_module", read=read_mla_decode),
    "moe": Source(family="moe", file="moe", read=read_moe),
    "all_reduce": Source(family="comm", file="custom_allreduce", read=read_all_reduce),
    "collective": Source(family="comm", file="nccl", read=read_nccl, engine="nccl"),
}


def import_tables(system: str, engine: str, root: Path | None = None) -> Tables:
    """Tables of one system and engine, newest version of each, through the gate.

    Raises:
        ConfigError: unknown system or engine, the package is not installed, nothing measured.
    """
    if system not in SYSTEMS:
        raise unknown_name("system", system, SYSTEMS)
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)
    root, package_version = (root, _version_beside(root)) if root else _installed()
    gpu = load_gpu(SYSTEMS[system])
    ops, versions, notes = {}, [], {}
    for op, source in SOURCES.items():
        folder = root / "data" / system / source.family / (source.engine or engine)
        path = _newest(folder, source.file)
        if path is None:
            notes[op] = "not measured"
            continue
        table = clean(op, source.read(_read(path)), notes)
        copied = _copied_from(op, table, path)
        if copied:
            notes[op] = f"all rows: times equal {copied}'s, copied rather than measured"
            continue
        ops[op] = gate(op, table, gpu, notes)
        versions.append(f"{op} {path.parent.name}")
    if all(SOURCES[op].engine for op in ops):
        raise ConfigError(f"{root / 'data' / system}: nothing measured for {engine}")
    provenance = {
        "gpu": gpu.name,
        "engine": engine,
        "version": "; ".join(versions),
        "source": f"aiconfigurator-core {package_version}, {system}; mean of 6 graph replays",
        "licence": LICENCE,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    kept = {op: table for op, table in ops.items() if len(table)}
    return Tables(provenance=provenance, ops=kept, refused=notes)


def _installed() -> tuple[Path, str]:
    from importlib.metadata import version

    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            "aiconfigurator-core is not installed: pip install 'headway[aiconfigurator]', or "
            "--source with its systems folder"
        )
    return Path(spec.submodule_search_locations[0]) / "systems", version("aiconfigurator-core")


def _version_beside(root: Path) -> str:
    """Version of an unpacked wheel, by its .dist-info folder."""
    found = sorted(root.parents[1].glob(f"{PACKAGE}-*.dist-info")) if len(root.parents) > 1 else []
    return found[-1].name.split("-")[1].removesuffix(".dist") if found else "of unknown version"


def _newest(folder: Path, file: str) -> Path | None:
    """The table of the highest version that is complete: half the rows of the largest, or more."""
    found = {path: _num_rows(path) for path in folder.glob(f"*/{file}_perf.parquet")}
    complete = [path for path, rows in found.items() if 2 * rows >= max(found.values())]
    return max(complete, key=lambda path: _version_key(path.parent.name), default=None)


def _version_key(version: str) -> tuple[int, ...]:
    """1.3.0rc20 before 1.3.0, after 1.3.0rc11; development builds (x.devN) last of all."""
    head, candidate, rest = version.partition("rc")
    numbers = [int(part) for part in re.findall(r"\d+", head.split("dev")[0])[:3]]
    numbers += [0] * (3 - len(numbers))
    last = int((re.findall(r"\d+", rest) or ["0"])[0]) if candidate else 10**6
    return (*numbers, last)


def _read(path: Path) -> Table:
    from pyarrow import ArrowInvalid, parquet

    try:
        return pd.DataFrame(parquet.read_table(path).to_pandas())
    except (OSError, ArrowInvalid) as error:
        raise ConfigError(f"{path}: not a parquet table ({error})") from None


def _num_rows(path: Path) -> int:
    from pyarrow import ArrowInvalid, parquet

    try:
        return int(parquet.read_metadata(path).num_rows)
    except (OSError, ArrowInvalid) as error:
        raise ConfigError(f"{path}: not a parquet table ({error})") from None


def _copied_from(op: str, table: Table, path: Path) -> str:
    """The other engine whose all-reduce times these are, to the last digit; "" = none."""
    if op != "all_reduce":
        return ""
    engine_folder = path.parent.parent
    for other in sorted(set(ENGINES) - {engine_folder.name}):
        for twin in (engine_folder.parent / other).glob(f"*/{path.name}"):
            times = set((_read(twin)["latency"] * MS).tolist())
            if len(table) and table[TIME].isin(times).mean() > 0.5:
                return other
    return ""
