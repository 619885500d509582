"""Importers of other projects' profiles: known points out and in again, and a few real rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from calibration import apex, vidur, vllm_forward
from calibration.cli import import_command
from calibration.columns import TIME
from calibration.fit import COMPACT
from calibration.tables import read_tables
from simulator.catalog import load_gpu, load_model
from simulator.cli import run

from . import foreign_support as foreign
from .tables_support import H200

FOREIGN = Path(__file__).parent / "foreign"
LLAMA = load_model("llama-3.1-8b")


def test_vidurs_points_come_back(tmp_path: Path) -> None:
    points = foreign.vidur(tmp_path / "profile")
    found = vidur.import_tables(tmp_path / "profile", H200)
    assert sorted(points) == sorted(found.ops)
    for op, table in points.items():
        foreign.same_points(op, table, found.ops[op])
    assert found.refused == {
        "emb": "16 rows: none of our ops",
        "add": "16 rows: none of our ops",
        "attn_output_reshape": "21 rows: none of our ops",
    }


def test_apexs_points_come_back(tmp_path: Path) -> None:
    points = foreign.apex(tmp_path / "profile")
    found = apex.import_tables(tmp_path / "profile", H200)
    assert sorted(points) == sorted(found.ops)
    for op, table in points.items():
        foreign.same_points(op, table, found.ops[op])
    assert {} == found.refused


def test_the_kernels_of_vllm_forwards_come_back(tmp_path: Path) -> None:
    points = foreign.forward(tmp_path / "bench")
    found = vllm_forward.import_tables(tmp_path / "bench" / "results.json", H200, LLAMA, 2)
    for op, table in points.items():
        foreign.same_points(op, table, found.ops[op])
    sums = found.ops["all_reduce"]
    assert {2} == set(sums["num_gpus"])
    one = sums[sums["payload_bytes"] == 2 * 4096]
    assert 20.05e-6 == pytest.approx(one[TIME].item())  # the rank that waits less
    assert 2 * 4096 * 2048 == sums["payload_bytes"].max()
    assert "21 cases: a whole one is not divided into ops" == found.refused["forwards"]
    assert found.refused["other"].startswith("21 kernels: several shapes")


def test_forwards_that_are_no_points_are_counted(tmp_path: Path) -> None:
    def request(new: int, length: int, drafts: int = 0) -> dict[str, Any]:
        return {"query_len": new, "kv_len": length, "num_draft_tokens": drafts, "chunked": False}

    cases = {
        "mixed": [request(512, 512), request(1, 100)],
        "ragged": [request(1, 100), request(1, 150)],
        "verify": [request(4, 100, 3)],
        "whole": [request(1, 100)],
        "good": [request(1, 1000)] * 8,
    }
    data = [foreign.case_json(tmp_path, name, r, 1000.0) for name, r in cases.items()]
    for rank in data[3]["ranks"]:
        del rank["profile"]
    (tmp_path / "results.json").write_text(json.dumps(data))
    found = vllm_forward.import_tables(tmp_path / "results.json", H200, LLAMA, 2)
    assert [8] == found.ops["decode_attention"]["num_seqs"].tolist()
    assert "1 cases: no profile (--profile-dir)" == found.refused["kernels"]
    assert (
        "2 kernels: of prefills and decodes mixed; 2 kernels: of unequal requests "
        "(--kv-len-jitter 0); 2 kernels: of drafts being verified"
    ) == found.refused["attention"]


def test_real_rows_of_vidur() -> None:
    found = vidur.import_tables(FOREIGN / "vidur", load_gpu("A100-80-SXM"))
    gemm = found.ops["gemm"]
    assert {"gemm": 24, "prefill_attention": 4, "decode_attention": 3, "all_reduce": 9} == {
        op: len(table) for op, table in found.ops.items()
    }
    up = gemm[(gemm["out_size"] == 2 * 28672 // 8) & (gemm["num_tokens"] == 4096)]
    assert 8192 == up["in_size"].item()
    # 4.8e11 FLOP: 0.6 to 0.9 of the peak.
    assert 2e12 < 2 * 4096 * 7168 * 8192 / up[TIME].item() / 100 < 3e12
    decode = found.ops["decode_attention"].set_index("num_seqs")
    assert [1025] * 3 == decode["kv_tokens"].tolist()
    assert 0.192e-3 == pytest.approx(decode[TIME][128])
    assert "2 rows: none of our ops" == found.refused["send_recv.csv"]
    assert found.refused["all_reduce"].endswith("between nodes")


def test_real_rows_of_apex() -> None:
    found = apex.import_tables(FOREIGN / "apex", H200)
    sums = found.ops["all_reduce"].set_index(["num_gpus", "payload_bytes"])[TIME]
    assert 12 == len(sums)
    assert 710e-6 == pytest.approx(sums[8, 2**27])
    assert "3 rows: under 1 KB: size unknown" == found.refused["all_reduce"]


def test_launch_bound_gemms_are_refused(tmp_path: Path) -> None:
    foreign.apex(tmp_path / "p")
    path = tmp_path / "p" / "gemm_0.csv"
    table = pd.read_csv(path)
    tiny = table.head(3).assign(m=[1, 8, 16], k=16, n=1, **{"time(us)": 14})
    table = pd.concat([tiny, table])
    table.to_csv(path, index=False)
    found = apex.import_tables(path, H200)
    assert 28e-6 <= found.ops["gemm"][TIME].min() < 30e-6
    why = "under 28 us, twice what the host takes to launch one"
    assert f"{(table['time(us)'] < 28).sum()} rows: {why}" == found.refused["gemm_0"]


def test_slower_clocks_and_wider_floats_are_counted(tmp_path: Path) -> None:
    foreign.apex(tmp_path / "p")
    path = tmp_path / "p" / "gemm_0.csv"
    table = pd.read_csv(path)
    clocks = [table.assign(graph_clk_freq=clock) for clock in (810, 1980)]
    pd.concat([*clocks, clocks[1].assign(dtype="float")]).to_csv(path, index=False)
    found = apex.import_tables(path, H200)
    assert len(table) == len(found.ops["gemm"])
    assert "32 rows: 32-bit floats; 32 rows: clocks under 1980 MHz" == found.refused["gemm_0"]


def test_what_was_imported_is_fitted_and_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibration.cli.PRECISE", COMPACT)  # a third of the time
    foreign.vidur(tmp_path / "profile")
    out = str(tmp_path / "out")
    command = ["calibrate", "import", "vidur", str(tmp_path / "profile")]
    assert 0 == run([*command, "--gpu", "H200-SXM", "--out", out, "--json"])
    found = json.loads(capsys.readouterr().out)
    rows = {"gemm": 64, "decode_attention": 12, "prefill_attention": 9, "all_reduce": 18}
    assert rows == found["rows"]
    assert {"gemm", "all_reduce"} == set(found["held_out"])
    assert {"decode_attention": 12, "prefill_attention": 9} == found["too_few"]
    assert "Vidur profile profile" in read_tables(tmp_path / "out").provenance["source"]
    explain = ["explain", "--model", "llama-3.1-8b", "--cluster", "1xH200-SXM", "--decode", "4@512"]
    assert 0 == run([*explain, "--calibration", out, "--extrapolate"])
    assert "curves fitted to Vidur profile profile" in " ".join(capsys.readouterr().out.split())


def test_too_few_points_are_kept_and_not_fitted(tmp_path: Path) -> None:
    foreign.forward(tmp_path / "bench")
    path = str(tmp_path / "bench" / "results.json")
    shape = {"gpu": "H200-SXM", "model": "llama-3.1-8b", "tp": "2"}
    found = import_command("vllm-forward", path, out=str(tmp_path / "out"), **shape)
    assert "curves" not in found
    assert {"decode_attention", "prefill_attention", "all_reduce graph"} == set(found["too_few"])
    assert not (tmp_path / "out" / "curves.json").exists()
    assert 12 == len(read_tables(tmp_path / "out").ops["decode_attention"])
