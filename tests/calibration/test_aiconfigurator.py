"""The importer, on a tiny database of the same layout made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calibration.aiconfigurator import import_tables
from calibration.tables import read_tables, write_tables
from simulator.errors import ConfigError

GEMM = {"kernel_source": "cublas", "op_name": "gemm", "device": "NVIDIA H200"}


def put(root: Path, family: str, engine: str, version: str, name: str, rows: pd.DataFrame) -> None:
    folder = root / "data" / "h200_sxm" / family / engine / version
    folder.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(folder / f"{name}_perf.parquet")


def gemm(fmt: str, floor_ms: float, factor: float = 1.0) -> pd.DataFrame:
    grid = [(m, n, k) for m in (1, 64, 4096) for n in (1024, 8192) for k in (1024, 8192)]
    table = pd.DataFrame(grid, columns=["m", "n", "k"]).assign(gemm_dtype=fmt, **GEMM)
    streamed = 2.0 * table.n * table.k / 4e12 + 2.0 * table.m * table.n * table.k / 6e14
    return table.assign(latency=floor_ms + factor * streamed * 1e3)


def all_reduce() -> pd.DataFrame:
    sizes = [2**power for power in range(8, 20)]
    rows = [
        (g, s, f"vLLM_custom_{how}") for g in (2, 8) for s in sizes for how in ("graph", "eager")
    ]
    table = pd.DataFrame(rows, columns=["num_gpus", "message_size", "kernel_source"])
    slow = np.where(table.kernel_source.str.contains("eager"), 0.02, 0.005)
    wire = 2.0 * table.message_size / 2e11 * 1e3
    return table.assign(allreduce_dtype="bfloat16", latency=slow + wire * table.num_gpus)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rows = pd.concat([gemm("bfloat16", 0.003), gemm("fp8", 0.005, 0.6), gemm("fp8_block", 0.06)])
    put(tmp_path, "gemm", "vllm", "0.24.0", "gemm", rows)
    put(tmp_path, "gemm", "vllm", "0.9.1", "gemm", gemm("bfloat16", 0.004))
    put(tmp_path, "comm", "vllm", "0.24.0", "custom_allreduce", all_reduce())
    return tmp_path


def test_milliseconds_become_seconds_and_elements_bytes(root: Path) -> None:
    found = import_tables("h200_sxm", "vllm", root)
    gemm_table, sums = found.ops["gemm"], found.ops["all_reduce"]
    assert gemm_table["time_s"].min() == pytest.approx(3e-6 + 2.0 * 2**20 / 4e12, rel=0.01)
    assert sums["payload_bytes"].min() == 512
    assert found.gpu == "H200-SXM"
    assert "gemm 0.24.0" in found.provenance["version"]


def test_a_format_timed_with_its_launches_is_refused(root: Path) -> None:
    found = import_tables("h200_sxm", "vllm", root)
    assert sorted(found.ops["gemm"]["format"].unique()) == ["bf16", "fp8"]
    assert "timed eagerly: floor 60." in found.refused["gemm fp8_block"]
    assert set(found.ops["all_reduce"]["launch"]) == {"graph"}


def test_rows_no_chip_can_produce_are_refused(root: Path) -> None:
    rows = gemm("bfloat16", 0.003)
    big = pd.concat([rows] * 20, ignore_index=True)
    big["n"] += np.arange(len(big)) // len(rows) * 64
    big["latency"] *= 3.0
    big.loc[2, "latency"] = 1e-3  # m = 1, n = 8192, k = 1024 fits in L2: stays
    big.loc[11, "latency"] = 1e-3  # m = 4096, n = k = 8192 in a microsecond
    put(root, "gemm", "vllm", "0.25.0", "gemm", big)
    found = import_tables("h200_sxm", "vllm", root)
    assert found.refused["gemm bf16"] == f"1 of {len(big)} rows: faster than the roofline"
    assert len(found.ops["gemm"]) == len(big) - 1


def test_copied_all_reduce_times_are_refused(root: Path) -> None:
    put(root, "comm", "sglang", "0.5", "custom_allreduce", all_reduce())
    found = import_tables("h200_sxm", "vllm", root)
    assert "all_reduce" not in found.ops
    assert "copied" in found.refused["all_reduce"]


def test_an_unfinished_newer_version_does_not_replace_a_whole_one(root: Path) -> None:
    put(root, "gemm", "vllm", "0.26.0", "gemm", gemm("bfloat16", 0.001).head(2))
    assert "gemm 0.24.0" in import_tables("h200_sxm", "vllm", root).provenance["version"]


def test_points_measured_twice_count_once(root: Path) -> None:
    twice = pd.concat([gemm("bfloat16", 0.003), gemm("bfloat16", 0.005)])
    put(root, "gemm", "vllm", "1.0.0", "gemm", twice)
    found = import_tables("h200_sxm", "vllm", root)
    assert len(found.ops["gemm"]) == 12
    assert found.refused["gemm repeats"] == "12 rows: merged into their median"


def test_what_is_written_is_read_back(root: Path, tmp_path: Path) -> None:
    found = import_tables("h200_sxm", "vllm", root)
    write_tables(found, tmp_path / "out")
    again = read_tables(tmp_path / "out", gpu="H200-SXM")
    assert again.provenance == found.provenance
    assert again.refused == found.refused
    for op, table in found.ops.items():
        assert len(again.ops[op]) == len(table)
        times = np.sort(table["time_s"].to_numpy())
        assert np.allclose(np.sort(again.ops[op]["time_s"].to_numpy()), times, rtol=1e-5)


def test_moe_shapes_are_those_of_one_gpu(root: Path) -> None:
    rows = pd.DataFrame(
        {
            "kernel_source": "moe_torch_flow_cutlass",
            "moe_dtype": "bfloat16",
            "num_tokens": [1, 64],
            "hidden_size": 4096,
            "inter_size": 14336,
            "topk": 2,
            "num_experts": 8,
            "moe_tp_size": [1, 4],
            "moe_ep_size": [4, 1],
            "distribution": ["balanced", "power_law_1.2"],
            "latency": [0.3, 0.9],
        }
    )
    put(root, "moe", "vllm", "0.24.0", "moe", rows)
    table = import_tables("h200_sxm", "vllm", root).ops["moe"].sort_values("num_tokens")
    assert table["local_experts"].tolist() == [2, 8]
    assert table["ffn_size"].tolist() == [14336, 3584]
    assert table["skew_percent"].tolist() == [0, 120]


def moe(tokens: list[int], latency: list[float]) -> pd.DataFrame:
    names = {"kernel_source": "moe", "moe_dtype": "bfloat16", "distribution": "balanced"}
    sizes = {"hidden_size": 4096, "inter_size": 1024, "topk": 2, "num_experts": 8}
    table = pd.DataFrame({"num_tokens": tokens, "latency": latency})
    return table.assign(**names, **sizes, moe_tp_size=1, moe_ep_size=1)


def test_points_slower_than_a_larger_problem_are_refused(root: Path) -> None:
    wide = moe([1, 16, 256], [0.20, 0.21, 0.22]).assign(inter_size=2048)
    narrow = moe([1, 16, 256], [0.15, 0.29, 0.21])  # 0.29 > 1.25 x the 0.21 and 0.22 of more work
    put(root, "moe", "vllm", "0.24.0", "moe", pd.concat([wide, narrow]))
    found = import_tables("h200_sxm", "vllm", root)
    assert len(found.ops["moe"]) == 5
    assert found.ops["moe"]["time_s"].max() == pytest.approx(0.22e-3)
    assert found.refused["moe bf16"] == (
        "1 of 6 rows: over 1.25x the time of a larger problem, so badly tuned"
    )


def test_blocks_of_latent_attention_count_the_heads_of_one_gpu(root: Path) -> None:
    rows = pd.DataFrame({"batch_size": [1, 8], "num_heads": [16, 128], "latency": [1.0, 99.0]})
    rows = rows.assign(kernel_source="FLASHMLA", gemm_type="fp8_block", kv_cache_dtype="fp8")
    put(root, "mla", "vllm", "1", "mla_generation_module", rows.assign(isl=1, step=[1024, 2048]))
    put(root, "mla", "vllm", "1", "mla_context_module", rows.assign(isl=[512, 4096], step=0))
    ops = import_tables("h200_sxm", "vllm", root).ops
    assert ops["mla_decode_block"]["kv_tokens"].tolist() == [1024, 2048]
    assert ops["mla_prefill_block"]["num_tokens"].tolist() == [512, 4096]
    for op in ("mla_decode_block", "mla_prefill_block"):
        assert ops[op]["num_q_heads"].tolist() == [16, 128]
        assert set(ops[op]["format"] + " " + ops[op]["kv_format"]) == {"fp8_block fp8"}


def test_nccl_serves_every_engine_with_its_other_kinds(root: Path) -> None:
    kinds = ["all_gather", "alltoall", "all_reduce"]
    rows = pd.DataFrame({"op_name": kinds, "latency": [0.1, 0.2, 0.3], "message_size": 2**20})
    rows = rows.assign(kernel_source="NCCL", nccl_dtype="half", num_gpus=8)
    both = pd.concat([rows, rows.assign(nccl_dtype="int8")])
    put(root, "comm", "nccl", "2.29.2", "nccl", both)
    table = import_tables("h200_sxm", "vllm", root).ops["collective"]
    assert table["kind"].tolist() == ["all_gather", "all_to_all"]
    assert table["payload_bytes"].tolist() == [2**21, 2**21]
    with pytest.raises(ConfigError, match="nothing measured for sglang"):
        import_tables("h200_sxm", "sglang", root)


@pytest.mark.parametrize(
    ("system", "engine", "message"),
    [
        ("h200", "vllm", "unknown system 'h200'; did you mean 'h200_sxm'"),
        ("h200_sxm", "vlm", "unknown engine 'vlm'; did you mean 'vllm'"),
        ("h100_sxm", "vllm", "nothing measured"),
    ],
)
def test_unknown_names_are_one_line(root: Path, system: str, engine: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        import_tables(system, engine, root)


def test_a_file_that_is_not_parquet_is_named(root: Path) -> None:
    (root / "data/h200_sxm/gemm/vllm/0.24.0/gemm_perf.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(ConfigError, match=r"gemm_perf\.parquet: not a parquet table"):
        import_tables("h200_sxm", "vllm", root)
