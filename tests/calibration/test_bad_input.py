"""Every way a table can be wrong is one clear line that names the file."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from calibration.tables import grid_hash, read_tables
from simulator.catalog import load_gpu
from simulator.costs.fitted import tables_of
from simulator.errors import ConfigError
from simulator.spec import EngineSettings

from .tables_support import gemm_folder

Lines = list[str]


def cut_row(lines: Lines) -> Lines:
    return [*lines[:40], lines[40][: lines[40].rindex(",")]]


def nan_time(lines: Lines) -> Lines:
    return [*lines[:9], lines[9].rsplit(",", 1)[0] + ",nan", *lines[10:]]


def negative_size(lines: Lines) -> Lines:
    kernel, fmt, tokens, rest = lines[5].split(",", 3)
    return [*lines[:5], f"{kernel},{fmt},-{tokens},{rest}", *lines[6:]]


def measured_twice(lines: Lines) -> Lines:
    return [*lines, lines[-1]]


def fewer_rows(lines: Lines) -> Lines:
    return lines[:-3]


def times(factor: float) -> Callable[[Lines], Lines]:
    def scaled(lines: Lines) -> Lines:
        cells = (line.rsplit(",", 1) for line in lines[1:])
        return [lines[0], *(f"{head},{float(time) * factor:.6g}" for head, time in cells)]

    return scaled


def renamed(lines: Lines) -> Lines:
    return [lines[0].replace("time_s", "time_ms"), *lines[1:]]


def no_rows(lines: Lines) -> Lines:
    return lines[:1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut_row, r"line 41: time_s: expected seconds > 0 \(got nothing\): file cut short\?"),
        (nan_time, r"line 10: time_s: expected seconds > 0 \(got nan\)"),
        (negative_size, r"line 6: num_tokens: expected a whole number >= 0 \(got -"),
        (measured_twice, r"measured twice: format=bf16, num_tokens="),
        (fewer_rows, r"expected 396 rows, as in meta.yaml \(got 393\)"),
        (times(1e3), r"are these milliseconds\?"),
        (times(1e6), r"no kernel takes .* s: expected seconds"),
        (renamed, r"no column 'time_s' .*got .*time_ms"),
        (no_rows, r"no rows"),
    ],
)
def test_a_wrong_table_is_one_line(
    tmp_path: Path, change: Callable[[Lines], Lines], message: str
) -> None:
    path = gemm_folder(tmp_path) / "gemm.csv.gz"
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress("\n".join(change(lines)).encode()))
    with pytest.raises(ConfigError, match=message) as error:
        read_tables(tmp_path)
    assert "gemm.csv.gz" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_cut_short_is_named(tmp_path: Path) -> None:
    path = gemm_folder(tmp_path) / "gemm.csv.gz"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ConfigError, match=r"gemm\.csv\.gz: cut short"):
        read_tables(tmp_path)


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    (gemm_folder(tmp_path) / "gemm.csv.gz").unlink()
    with pytest.raises(ConfigError, match=r"tables\.gemm: gemm\.csv\.gz does not exist"):
        read_tables(tmp_path)


def test_other_points_than_stated_are_refused(tmp_path: Path) -> None:
    path = gemm_folder(tmp_path) / "gemm.csv.gz"
    text = gzip.decompress(path.read_bytes()).decode()
    path.write_bytes(gzip.compress(text.replace(",bf16,1,", ",bf16,3,").encode()))
    with pytest.raises(ConfigError, match="grid_hash differs"):
        read_tables(tmp_path)


@pytest.mark.parametrize("key", ["gpu", "source", "licence", "version", "engine", "date"])
def test_missing_provenance_is_refused(tmp_path: Path, key: str) -> None:
    meta = gemm_folder(tmp_path) / "meta.yaml"
    data = yaml.safe_load(meta.read_text())
    del data[key]
    meta.write_text(yaml.safe_dump(data))
    with pytest.raises(ConfigError, match=rf"meta\.yaml: {key}: missing provenance"):
        read_tables(tmp_path)


def test_tables_without_meta_are_refused(tmp_path: Path) -> None:
    (gemm_folder(tmp_path) / "meta.yaml").unlink()
    with pytest.raises(ConfigError, match="without provenance are not used"):
        read_tables(tmp_path)


def test_another_gpus_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gpu: expected H100-SXM \(got H200-SXM\)"):
        read_tables(gemm_folder(tmp_path), gpu="H100-SXM")


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    table = read_tables(gemm_folder(tmp_path)).ops["gemm"]
    assert grid_hash("gemm", table) == grid_hash("gemm", table.sample(frac=1.0, random_state=1))


def settings(folder: Path) -> EngineSettings:
    return EngineSettings(max_num_batched_tokens=8, max_num_seqs=8, calibration=str(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 2, "gpu": "H2', "not JSON, cut short"),
        ('{"format": 9}', "expected fitted curves of format 2"),
        ('{"format": 2, "gpu": "H200-SXM", "curves": [1]}', "source: missing"),
        ('{"format": 2, "gpu": "L4", "source": "s", "curves": [1]}', "expected tables of H200-SXM"),
        ('{"format": 2, "gpu": "H200-SXM", "source": "s", "curves": [{}]}', "curves: not usable"),
    ],
)
def test_wrong_curves_are_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "curves.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        tables_of(load_gpu("H200-SXM"), settings(tmp_path))


def test_a_folder_without_curves_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="headway calibrate fit"):
        tables_of(load_gpu("H200-SXM"), settings(tmp_path))
