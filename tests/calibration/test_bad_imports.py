"""Every way a foreign profile can be wrong is one clear line, exit 2, and nothing written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from simulator.cli import run

from . import foreign_support as foreign

Change = Callable[[pd.DataFrame], pd.DataFrame]
GPU = ["--gpu", "H200-SXM"]


def refused(
    capsys: pytest.CaptureFixture[str], source: str, path: Path, *options: str, gpu: str = ""
) -> str:
    """The one line of an import that is refused."""
    out = path.parent / "never"
    chosen = ["--gpu", gpu or "H200-SXM", *options, "--out", str(out)]
    code = run(["calibrate", "import", source, str(path), *chosen])
    error = capsys.readouterr().err
    assert (2, 1) == (code, error.count("\n")), error
    assert not out.exists()
    return error


def rewritten(path: Path, change: Change) -> Path:
    change(pd.read_csv(path, dtype=str, keep_default_na=False)).to_csv(path, index=False)
    return path


def scaled(column: str, factor: float) -> Change:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        columns = [name for name in table.columns if name.startswith(column)]
        times = {name: table[name].astype(float) * factor for name in columns}
        return table.assign(**times)

    return change


def cell(row: int, column: str, value: str) -> Change:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[row, column] = value
        return table

    return change


UP = "time_stats.mlp_up_proj.median"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mlp", cell(3, UP, "nan"), f"mlp.csv: line 5: {UP}: expected milliseconds > 0 (got nan)"),
        ("mlp", cell(2, "n_embd", "-4096"), "line 4: n_embd: expected a whole number >= 0"),
        ("mlp", cell(2, "num_tokens", "1.5"), "line 4: num_tokens: expected a whole number"),
        ("mlp", lambda t: t.drop(columns=[UP]), f"no column '{UP}'"),
        ("mlp", lambda t: t.head(0), "mlp.csv: no rows"),
        ("mlp", scaled("time_stats", 1e-3), "are not milliseconds: half of them take under"),
        ("mlp", scaled("time_stats", 1e3), "are not milliseconds: the fastest takes 0.0"),
        ("mlp", scaled("time_stats", 1e-1), "gemm bf16: all 64 rows: "),
        ("attention", cell(0, "time_stats.attn_decode.median", ""), "line 2: time_stats.attn_dec"),
        ("attention", lambda t: t.drop(columns="is_prefill"), "no column 'is_prefill'"),
        ("all_reduce", scaled("time_stats", 1e-3), "all_reduce: the times of 18 points are not"),
    ],
)
def test_a_wrong_vidur_file_is_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    change: Change,
    message: str,
) -> None:
    foreign.vidur(tmp_path / "p")
    path = rewritten(tmp_path / "p" / f"{name}.csv", change)
    assert message in refused(capsys, "vidur", path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cell(4, "gpu", "A100-SXM-80GB"), "gpu: expected H200-SXM (got A100-SXM-80GB)"),
        (cell(4, "gpu", ""), "gpu: expected H200-SXM (got nothing)"),
        (cell(4, "time(us)", "nan"), "line 6: time(us): expected microseconds > 0 (got nan)"),
        (scaled("time(us)", 1e-3), "are not microseconds: half of them take under"),
        (scaled("time(us)", 1e3), "are not microseconds: the fastest takes"),
        (lambda t: t.assign(dtype="float"), "nothing to calibrate with (gemm_0: 32 rows: 32-bit"),
        (lambda t: t.rename(columns={"time(us)": "time(ms)"}), "no column 'time(us)'"),
    ],
)
def test_a_wrong_apex_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change, message: str
) -> None:
    foreign.apex(tmp_path / "p")
    path = rewritten(tmp_path / "p" / "gemm_0.csv", change)
    assert message in refused(capsys, "apex", path)


def test_files_cut_short_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign.vidur(tmp_path / "p")
    path = tmp_path / "p" / "mlp.csv"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 20])  # inside a row
    assert "cut short?" in refused(capsys, "vidur", path)
    path.write_bytes(whole[:-2])  # inside the last number
    assert "cut short? its last line, 17, has no end" in refused(capsys, "vidur", path)
    path.write_bytes(b"")
    assert "not a CSV table" in refused(capsys, "vidur", path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    assert "no column" in refused(capsys, "vidur", path)


def test_points_measured_twice_are_merged_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.apex(tmp_path / "p")
    path = rewritten(tmp_path / "p" / "gemm_0.csv", lambda t: pd.concat([t, t.head(3)]))
    out = tmp_path / "out"
    assert 0 == run(["calibrate", "import", "apex", str(path), *GPU, "--out", str(out), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert "3 rows: merged into their median" == found["refused"]["gemm repeats"]


def test_another_gpus_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "compute" / "a100" / "llama"
    foreign.vidur(folder)
    message = refused(capsys, "vidur", folder / "mlp.csv")
    assert "gpu: expected H200-SXM (got a100's, by its folder)" in message
    message = refused(capsys, "vidur", tmp_path / "compute")
    assert "mlp.csv: 1 files: another device's folder" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: "[{", "results.json: not JSON, cut short?"),
        (lambda data: "{}", "expected a list of cases"),
        (lambda data: json.dumps([{"case": "x"}]), "[0]: not a case of `vllm bench forward`"),
        (lambda data: json.dumps([data[0] | {"requests": []}]), "[0]: expected requests"),
        (lambda data: json.dumps([data[0] | {"median_us": float("nan")}]), "times >= 0"),
        (
            lambda data: json.dumps([data[0] | {"requests": [{"query_len": 5, "kv_len": 1}]}]),
            "query_len 5, kv_len 1",
        ),
        (
            lambda data: json.dumps([data[0] | {"ranks": [{"num_tokens": 1}]}]),
            "nothing to calibrate with (forwards: 1 cases: a whole one is not divided into ops; "
            "kernels: 1 cases: no profile (--profile-dir))",
        ),
    ],
)
def test_a_wrong_forward_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[..., str], message: str
) -> None:
    foreign.forward(tmp_path / "p")
    path = tmp_path / "p" / "results.json"
    path.write_text(change(json.loads(path.read_text())))
    shape = ("--model", "llama-3.1-8b", "--tp", "2")
    assert message in refused(capsys, "vllm-forward", path, *shape)


def test_kernel_times_in_another_unit_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign.forward(tmp_path / "p")
    for file in (tmp_path / "p").glob("*.kernels.json"):
        data = json.loads(file.read_text())
        for kernel in data["kernels"]:
            kernel["us"] /= 1e3
        file.write_text(json.dumps(data))
    path = tmp_path / "p" / "results.json"
    shape = ("--model", "llama-3.1-8b", "--tp", "2")
    assert "are not microseconds" in refused(capsys, "vllm-forward", path, *shape)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["vidur"], "calibrate import vidur: expected PATH (got none)"),
        (["vidur", "/nowhere"], "calibrate import vidur: expected --gpu (got none)"),
        (["vidur", "/nowhere", *GPU], "calibrate import vidur: expected --out (got none)"),
        (["vidur", "/nowhere", *GPU, "--out", "x"], "/nowhere: does not exist"),
        (["apex", "/nowhere", "--gpu", "V100", "--out", "x"], "unknown GPU 'V100'"),
        (["vllm-forward", "/no", *GPU, "--out", "x"], "expected --model (got none)"),
        (
            ["vllm-forward", "/no", *GPU, "--model", "llama-3.1-8b", "--tp", "0", "--out", "x"],
            "--tp: expected a whole number >= 1 (got 0)",
        ),
        (
            ["vllm-forward", "/no", *GPU, "--model", "llama-3.1-8b", "--tp", "3", "--out", "x"],
            "--tp: 3 does not divide the 32 heads of llama-3.1-8b",
        ),
        (["vllm-forward", "/no", *GPU, "--model", "llama-3.1-8b", "--out", "x"], "cannot be read"),
        (["aiconfigurator", "x", "--system", "a"], "expected no further argument (got x)"),
    ],
)
def test_bad_arguments_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert 2 == run(["calibrate", "import", *arguments])
    error = capsys.readouterr().err
    assert message in error
    assert 1 == error.count("\n")
    assert not Path("x").exists()
