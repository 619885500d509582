"""Bundled GPUs: figures in SI units with their sources; clusters by text; bad files."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from simulator.catalog import CONFIGS, gpu_names, load_gpu, parse_cluster
from simulator.errors import ConfigError
from simulator.gpu_file import read_gpu_file
from simulator.spec import WEIGHT_FORMATS

H100 = CONFIGS / "hardware" / "h100-sxm.yaml"
GIB = 2.0**30

# name: bf16, fp8, int8 in TFLOP/s, GB/s, capacity in datasheet GB, GB/s per direction between GPUs
# (NVLink: half of the datasheet's), TDP in W; the mechanisms tables, section 19.
FIGURES = {
    "A100-40-SXM": (312, None, 624, 1555, 40, 300, 400),
    "A100-80-SXM": (312, None, 624, 2039, 80, 300, 400),
    "A10G": (70, None, 140, 600, 24, 31.5, 300),
    "L4": (121, 242, 242, 300, 24, 31.5, 72),
    "L40S": (362, 733, 733, 864, 48, 31.5, 350),
    "RTX-A6000": (154.8, None, 309.7, 768, 48, 31.5, 300),
    "H100-SXM": (989, 1979, 1979, 3350, 80, 450, 700),
    "H100-PCIe": (756, 1513, 1513, 2000, 80, 63, 350),
    "H200-SXM": (989, 1979, 1979, 4800, 141, 450, 700),
    "B200-SXM": (2250, 4500, 4500, 7700, 192, 900, 1000),
    "T4": (65, None, 130, 320, 16, 15.8, 70),
    "MI300X": (1307, 2615, 2615, 5300, 192, 448, 750),
    "RTX-PRO-6000": (467.8, 935.6, 935.6, 1792, 96, 63, 600),
    "RTX-4090": (165.2, 330.3, 660.6, 1008, 24, 31.5, 450),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_match_the_datasheet(name):
    bf16, fp8, int8, hbm, capacity, link, tdp = FIGURES[name]
    gpu = load_gpu(name)
    rates = {key: rate / 1e12 for key, rate in gpu.flops_per_s.items()}
    assert rates["bf16"] == pytest.approx(bf16, rel=0.001)
    assert rates.get("fp8") == (None if fp8 is None else pytest.approx(fp8, rel=0.001))
    assert rates["int8"] == pytest.approx(int8, rel=0.001)
    assert gpu.memory_bytes_per_s / 1e9 == pytest.approx(hbm)
    assert gpu.gpu_link.bytes_per_s / 1e9 == pytest.approx(link)
    assert gpu.tdp_w == tdp
    assert 0.9 * capacity * GIB < gpu.memory_bytes <= capacity * GIB


def test_every_gpu_is_plausible_and_sourced():
    assert sorted(FIGURES) == gpu_names()
    for name in gpu_names():
        gpu = load_gpu(name)
        assert name == gpu.name
        assert 0 < gpu.idle_w < gpu.tdp_w / 2
        assert 0 < gpu.price_per_hour < 20
        assert re.fullmatch(r"20\d\d(-\d\d)?", gpu.price_date)
        assert 1e6 < gpu.l2_bytes < 1e9
        assert 40 <= gpu.num_sms <= 304
        assert gpu.host_link.bytes_per_s <= 64e9
        assert 1e-6 <= gpu.gpu_link.latency_s <= gpu.inter_node.latency_s <= 1e-4
        assert "memory: " in gpu.source
        for number_format in WEIGHT_FORMATS.values():
            assert gpu.compute_flops_per_s(number_format) > 0


def test_capacity_is_what_the_device_reports():
    assert load_gpu("H200-SXM").memory_bytes == 139.8 * GIB
    assert load_gpu("H100-SXM").memory_bytes == 79.11 * GIB


def test_weight_only_formats_run_in_bf16_where_the_gpu_lacks_the_arithmetic():
    a100, h100 = load_gpu("A100-80-SXM"), load_gpu("H100-SXM")
    assert a100.compute_flops_per_s(WEIGHT_FORMATS["fp8"]) == 312e12
    assert h100.compute_flops_per_s(WEIGHT_FORMATS["fp8"]) == 1979e12
    assert h100.compute_flops_per_s(WEIGHT_FORMATS["mxfp4"]) == 989e12


def test_aliases_and_prefixes():
    expected = {
        "h100": "H100-SXM",
        "H100-SXM-80GB": "H100-SXM",
        "NVIDIA H100 80GB HBM3": "H100-SXM",
        "a100-80gb": "A100-80-SXM",
        "A100-SXM4-40GB": "A100-40-SXM",
        "H200-SXM-141GB": "H200-SXM",
        "RTXPRO6000-96GB": "RTX-PRO-6000",
        "l4": "L4",
        "mi3": "MI300X",
        "4090": "RTX-4090",
    }
    assert expected == {alias: load_gpu(alias).name for alias in expected}


def test_no_two_gpus_share_an_alias():
    files = [read_gpu_file(path) for path in (CONFIGS / "hardware").glob("*.yaml")]
    owned = [{name.lower() for name in (file.gpu.name, *file.aliases)} for file in files]
    assert sum(len(names) for names in owned) == len(set().union(*owned))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("H", "ambiguous (could be H100-PCIe, H100-SXM, H200-SXM)"),
        ("H100-SMX", "did you mean 'H100-SXM'"),
        ("", "expected a name"),
        ("missing.yaml", "missing.yaml: cannot be read"),
    ],
)
def test_unknown_gpu(name, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_gpu(name)


@pytest.mark.parametrize(
    ("text", "name", "shape"),
    [
        ("8xH100-SXM", "8xH100-SXM", [(1, 8)]),
        ("4xh100", "4xH100-SXM", [(1, 4)]),
        ("16xH100-SXM", "16xH100-SXM", [(2, 8)]),
        ("2x8xH100-SXM", "16xH100-SXM", [(2, 8)]),
        ("2x4xH100-SXM", "2x4xH100-SXM", [(2, 4)]),
        (" 8 x 4090 ", "8xRTX-4090", [(1, 8)]),
        ("8xH100-SXM+16xA100-80-SXM", "8xH100-SXM+16xA100-80-SXM", [(1, 8), (2, 8)]),
    ],
)
def test_cluster_text(text, name, shape):
    cluster = parse_cluster(text)
    assert name == cluster.name
    assert shape == [(group.num_nodes, group.gpus_per_node) for group in cluster.groups]
    assert cluster == parse_cluster(cluster.name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected text such as '8xH100-SXM'"),
        ("H100-SXM", "expected COUNTxGPU"),
        ("8xH100-SXM+", "expected COUNTxGPU"),
        ("-8xH100-SXM", "expected COUNTxGPU"),
        ("1.5xH100-SXM", "expected COUNTxGPU"),
        ("0xH100-SXM", "counts must be between 1 and 100000 (got 0)"),
        ("0x8xH100-SXM", "counts must be between 1 and 100000 (got 0)"),
        ("1000000000xH100-SXM", "counts must be between 1 and 100000"),
        ("99999x8xH100-SXM", "at most 100000 GPUs (got 799992)"),
        ("9" * 5000 + "xH100-SXM", "at most 1000 characters"),
        ("12xH100-SXM", "expected at most one node or whole nodes (got 12 GPUs)"),
        ("18xH100-SXM", "expected at most one node or whole nodes (got 18 GPUs)"),
        ("2x16xH100-SXM", "at most 8 GPUs (got 16)"),
        ("8xFoo", "unknown GPU 'Foo'"),
    ],
)
def test_bad_cluster_text(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        parse_cluster(text)
    assert "\n" not in str(error.value)


def edited(tmp_path: Path, **changes: object) -> Path:
    document = yaml.safe_load(H100.read_text())
    document |= {key: value for key, value in changes.items() if value is not None}
    for key in [key for key, value in changes.items() if value is None]:
        del document[key]
    path = tmp_path / "gpu.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memroy": "80 GB"}, "unknown key 'memroy'; did you mean 'memory'?"),
        ({"tdp": None}, "missing key 'tdp'"),
        ({"memory": 80}, "memory: expected bytes with a unit, such as '80 GB' (got 80)"),
        ({"memory": "80 GB/s"}, "memory: expected bytes with a unit"),
        ({"memory": "0 GB"}, "memory: must be > 0"),
        ({"memory_bandwidth": "nan TB/s"}, "memory_bandwidth: expected bytes/s"),
        ({"tdp": "-700 W"}, "tdp: must be finite and >= 0"),
        ({"idle": "900 W"}, "idle: must be at most tdp"),
        ({"flops": {"fp8": "1 TFLOP/s"}}, "flops: expected a mapping with at least bf16"),
        ({"flops": {"bf16": "1 TFLOP/s", "bf17": "1 TFLOP/s"}}, "unknown key 'bf17'"),
        ({"num_sms": 0}, "num_sms: expected an int between 1 and 100000 (got 0)"),
        ({"gpus_per_node": True}, "gpus_per_node: expected an int"),
        ({"price": 2.95}, "price: expected a price such as '2.95 USD/h' (got 2.95)"),
        ({"price_date": 2026}, "price_date: expected text"),
        ({"family": "hoper"}, "unknown family 'hoper'; did you mean 'hopper'?"),
        ({"gpu_link": {"name": "x", "rate": "1 GB/s"}}, "gpu_link: missing key 'latency'"),
        ({"gpu_link": "NVLink"}, "gpu_link: expected a mapping of name, rate, latency"),
        ({"sources": {"memory": "x"}}, "sources: missing key 'memory_bandwidth'"),
        ({"aliases": "h100"}, "aliases: expected a list of names"),
    ],
)
def test_bad_file_is_one_line_with_file_and_key(tmp_path, changes, message):
    path = edited(tmp_path, **changes)
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        load_gpu(str(path))
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (H100.read_text() + "tdp: 1 W\n", "key 'tdp' is given twice"),
        ("a: &x [1]\nb: *x\n", "anchors and aliases are not supported"),
        ("a: [", "not valid YAML"),
        ("\x00", "not valid YAML"),
        ("", "expected a mapping"),
        ("x" * 200_000, "expected at most 100000 bytes"),
    ],
)
def test_text_that_is_no_gpu(tmp_path, text, message):
    path = tmp_path / "gpu.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        load_gpu(str(path))
    assert "\n" not in str(error.value)


def test_a_gpu_of_ones_own(tmp_path):
    path = edited(tmp_path, name="H300", tdp="1.2 kW")
    assert (load_gpu(str(path)).name, load_gpu(str(path)).tdp_w) == ("H300", 1200.0)
