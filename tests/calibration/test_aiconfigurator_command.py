"""`headway calibrate import aiconfigurator`, then a search with what it wrote.

Always with a small database of the same layout; with the real one where the extra is installed.
"""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from calibration.aiconfigurator import PACKAGE, import_tables
from calibration.columns import TIME
from calibration.fit import COMPACT
from calibration.tables import write_tables
from simulator.cli import run

from . import foreign_support as foreign
from .test_aiconfigurator import put

OPS = ("gemm", "prefill_attention", "decode_attention", "moe", "all_reduce")
ERRORS = {"mape", "p90_ape", "bias", "n"}
SEARCH = ["search", "--model", "llama-3.1-8b", "--cluster", "2xH200-SXM", "--trace", "chat-1k"]


def database(root: Path) -> Path:
    """Every table that is imported, from known points of our own forms."""
    gemm = foreign.gemm_points().rename(columns={"num_tokens": "m", "out_size": "n"})
    gemm = gemm.rename(columns={"in_size": "k"}).assign(gemm_dtype="bfloat16")
    parts = {("gemm", "gemm"): gemm, ("moe", "moe"): experts()}
    sums = foreign.all_reduce_points().rename(columns={"payload_bytes": "message_size"})
    sums = sums.assign(message_size=sums["message_size"] // 2, allreduce_dtype="bfloat16")
    parts["comm", "custom_allreduce"] = sums
    for op, table in foreign.attention_points().items():
        both = pd.concat([table, table.assign(num_seqs=2 * table["num_seqs"])])
        both = foreign.known(op, both)
        names = {"num_seqs": "batch_size", "num_q_heads": "num_heads", "window": "window_size"}
        both = both.rename(columns={**names, "num_kv_heads": "num_key_value_heads"})
        is_prefill = op == "prefill_attention"
        isl, step = ("num_tokens", "context_tokens") if is_prefill else ("kv_tokens", "")
        both = both.assign(isl=both[isl], step=both[step] if step else 0, attn_dtype="bfloat16")
        file = "context_attention" if is_prefill else "generation_attention"
        parts["attention", file] = both.assign(kv_cache_dtype="bfloat16")
    for (family, file), table in parts.items():
        table = table.assign(latency=1e3 * table[TIME], kernel_source="vLLM_graph")
        put(root, family, "vllm", "0.24.0", file, table)
    return root


def experts() -> pd.DataFrame:
    """Rows of the MoE table: eight experts on one GPU, or four of them."""
    grid = [(tokens, ep) for tokens in (1, 8, 64, 256, 1024, 2048, 4096, 8192) for ep in (1, 2)]
    rows = pd.DataFrame(grid, columns=["num_tokens", "moe_ep_size"])
    shape = {"hidden_size": 4096, "ffn_size": 14336, "num_experts": 8, "experts_per_token": 2}
    rows = rows.assign(local_experts=8 // rows["moe_ep_size"], is_gated=1, skew_percent=0, **shape)
    times = foreign.known("moe", rows.assign(format="bf16"))[TIME]
    wheel = {"inter_size": 14336, "topk": 2, "moe_tp_size": 1, "distribution": "balanced"}
    return rows.assign(**wheel, **{TIME: times}, moe_dtype="bfloat16")


def check_errors(found: dict[str, Any]) -> None:
    for op in OPS:
        errors = found["held_out"][op]
        assert set(errors) - {"by_format"} == ERRORS, op
        assert errors["n"] > 0
        assert 0.0 <= errors["mape"] < 30.0, op
        assert errors["mape"] <= errors["p90_ape"] * 10, op
        assert abs(errors["bias"]) <= errors["mape"], op


def search_with(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--max-requests", "20", "--calibration", str(folder), "--extrapolate", "--json"]
    assert 0 == run([*SEARCH, *options])
    best = json.loads(capsys.readouterr().out)["best"]
    assert "curves fitted to aiconfigurator-core" in best["metrics"]["cost_tables"]
    assert best["metrics"]["completed"] == 20


def test_import_states_the_error_of_each_op_and_a_search_uses_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibration.cli.PRECISE", COMPACT)  # a third of the time
    root, out = database(tmp_path / "systems"), tmp_path / "out"
    command = ["calibrate", "import", "aiconfigurator", "--system", "h200_sxm", "--engine", "vllm"]
    assert 0 == run([*command, "--source", str(root), "--out", str(out), "--json"])
    check_errors(json.loads(capsys.readouterr().out))
    search_with(out, capsys)


@pytest.mark.skipif(importlib.util.find_spec(PACKAGE) is None, reason="extra not installed")
@pytest.mark.parametrize(
    ("system", "engine"), [("h200_sxm", "vllm"), ("h100_sxm", "vllm"), ("h200_sxm", "trtllm")]
)
def test_the_real_database_is_imported_and_fitted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], system: str, engine: str
) -> None:
    """A sample of it: all of it takes minutes."""
    found = import_tables(system, engine)
    assert set(OPS) == set(found.ops)
    few = {
        op: table.sample(min(len(table), 1500), random_state=0) for op, table in found.ops.items()
    }
    write_tables(replace(found, ops=few), tmp_path)
    assert 0 == run(["calibrate", "fit", str(tmp_path), "--compact", "--json"])
    check_errors(json.loads(capsys.readouterr().out))
    if system == "h200_sxm":
        search_with(tmp_path, capsys)
