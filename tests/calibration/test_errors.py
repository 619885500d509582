"""Errors of prices: found on shapes left out, and intervals that hold as often as they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calibration.columns import TIME
from calibration.coverage import DECODES, Misses, coverage, halves, layers, points
from calibration.errors import misses_in, profile_of, served, write_errors
from calibration.evaluate import misses_of
from calibration.fit import COMPACT, fit_curve, rows_of
from calibration.tables import Tables, read_tables
from simulator.catalog import CONFIGS, load_gpu
from simulator.costs.error import read_errors
from simulator.costs.fitted import read_curves, tables_of
from simulator.errors import ConfigError
from simulator.spec import EngineSettings

from .tables_support import GEMM_TRUTH, H200, PROVENANCE, gemm_rows, timed

GPUS = ("A100-80-SXM", "H100-SXM", "H200-SXM", "B200-SXM")
POINTS = Path(__file__).parent / "points"
SETTINGS = EngineSettings(max_num_batched_tokens=2048, max_num_seqs=256)


def stated(gpu: str) -> dict[str, dict[str, dict[str, object]]]:
    path = CONFIGS / "calibrated" / gpu.lower() / "errors.json"
    found: dict[str, dict[str, dict[str, object]]] = json.loads(path.read_text())
    return found


def noisy(sigma: float, seed: int) -> pd.DataFrame:
    """Times of the form, off by an independent error a point."""
    table = timed("gemm", gemm_rows(), GEMM_TRUTH)
    shake = np.random.default_rng(seed).normal(0.0, sigma, len(table))
    return table.assign(**{TIME: table[TIME] * np.exp(shake)})


def made_up(seed: int, families: int = 60, sigma: float = 0.06) -> Misses:
    """Errors of families over ten octaves, the time of a call growing with the octave."""
    rng = np.random.default_rng(seed)
    octave = np.tile(np.arange(10), families)
    errors = rng.normal(0.0, sigma, len(octave))
    times = 1e-5 * 2.0**octave * rng.lognormal(0.0, 0.5, len(octave))
    family = np.repeat(np.arange(families), 10)
    return Misses(family=family, octave=octave, measured_s=times, log_ratio=errors)


@pytest.mark.parametrize("gpu", GPUS)
def test_every_embedded_curve_has_errors_whose_intervals_hold(gpu: str) -> None:
    folder = CONFIGS / "calibrated" / gpu.lower()
    curves = read_curves(folder / "curves.json")["curves"]
    found = stated(gpu)
    names = {f"{curve['op']} {curve['label']}".strip() for curve in curves}
    assert names == set(found["ops"]) == set(found["coverage_80"]["points"])
    # A100's experts were measured unequally popular only, which the roofline does not price.
    ops = {"gemm", "moe", "all_reduce", "decode_attention", "prefill_attention"}
    assert ops - ({"moe"} if gpu == "A100-80-SXM" else set()) == set(found["roofline"])
    for name, share in found["coverage_80"]["points"].items():
        assert isinstance(share, float)
        # NCCL was measured at three sizes of group only, a shape family each: two to learn from.
        assert (0.65 if name.startswith("collective") else 0.70) < share < 0.90, name
    layer = found["coverage_80"]["layers"]
    assert isinstance(layer, float)
    assert 0.70 < layer < 0.90
    assert (folder / "errors.json").stat().st_size < 100_000


@pytest.mark.parametrize("gpu", GPUS)
def test_the_sampled_measurements_lie_in_the_stated_intervals(gpu: str) -> None:
    # The embedded curves were fitted to these points too, so more than 80 % of them should.
    sample = read_tables(POINTS / gpu.lower(), gpu=gpu)
    tables = tables_of(load_gpu(gpu), SETTINGS)
    assert tables is not None
    inside = []
    for op in ("gemm", "moe", "all_reduce"):
        for label in [label for name, label in tables.curves if name == op]:
            rows = rows_of(op, sample.ops[op], label)
            ratio = -np.log1p(misses_of(tables.curves[op, label], rows))
            ends = stated(gpu)["ops"][f"{op} {label}"]["quantiles"]
            assert isinstance(ends, dict)
            inside += list((100 * ratio >= ends["p10"]) & (100 * ratio <= ends["p90"]))
    assert len(inside) >= 120
    assert 0.75 < np.mean(inside) < 0.97


def test_noise_of_a_known_size_comes_out_and_its_interval_holds_fresh_points(
    tmp_path: Path,
) -> None:
    sigma = 0.08
    tables = Tables(provenance=PROVENANCE, ops={"gemm": noisy(sigma, 1)})
    path, data = write_errors(tables, tmp_path)
    found = data["ops"]["gemm bf16"]["quantiles"]
    # The curve follows some of the noise, so its own errors come on top.
    assert 1.0 < (found["p90"] - found["p10"]) / (100 * sigma * 2 * 1.2816) < 1.4
    assert 0.70 < data["coverage_80"]["points"]["gemm bf16"] < 0.90
    assert 0.68 < data["coverage_80"]["layers"] < 0.92

    curve = fit_curve("gemm", "bf16", tables.ops["gemm"], H200, COMPACT)
    fresh = served("gemm", noisy(sigma, 2))
    errors = -100 * np.log1p(misses_of(curve, fresh))
    inside = ((errors >= found["p10"]) & (errors <= found["p90"])).mean()
    assert 0.72 < inside < 0.88

    profile = read_errors(path).ops["gemm bf16"]
    assert 0 == profile.first_octave
    assert (25, 14) == profile.rows.shape  # shapes of 1,024 and more, 1 to 8,192 tokens
    assert profile.rows.std() == pytest.approx(1.2 * sigma, rel=0.25)


def test_the_error_of_a_whole_family_stays_with_the_family() -> None:
    table = timed("gemm", gemm_rows(), GEMM_TRUTH)
    shapes = table.groupby(["out_size", "in_size"]).ngroup().to_numpy()
    off = np.random.default_rng(3).normal(0.0, 0.1, shapes.max() + 1)[shapes]
    misses = misses_in("gemm", table.assign(priced_s=table[TIME] * np.exp(-off)))
    rows = profile_of("gemm bf16", misses).rows
    assert rows.std(axis=1).max() < 1e-9
    assert rows.mean(axis=1).std() > 0.07


def test_an_octave_a_family_lacks_repeats_its_nearest() -> None:
    misses = Misses(
        family=np.array([0, 0, 1]),
        octave=np.array([2, 5, 3]),
        measured_s=np.ones(3),
        log_ratio=np.array([0.1, 0.2, -0.3]),
    )
    profile = profile_of("gemm bf16", misses)
    assert 2 == profile.first_octave
    assert [[0.1, 0.1, 0.2, 0.2], [-0.3] * 4] == profile.rows.tolist()
    sizes = np.array([0.0, 1.0, 8.0, 31.0, 32.0, 1e6])
    assert [0.1, 0.1, 0.1, 0.2, 0.2, 0.2] == profile.at(0, sizes).tolist()


def test_honest_errors_cover_and_understated_ones_do_not() -> None:
    misses = made_up(0)
    found = coverage({"gemm bf16": misses, "all_reduce graph": made_up(1)})
    assert found["points"]["gemm bf16"] == pytest.approx(0.8, abs=0.05)
    assert found["layers"] == pytest.approx(0.8, abs=0.08)

    split = halves("gemm bf16", misses, 0)
    known, asked = split
    understated = misses.log_ratio.copy()
    understated[known] /= 4.0
    wrong = Misses(
        family=misses.family,
        octave=misses.octave,
        measured_s=misses.measured_s,
        log_ratio=understated,
    )
    assert points(misses, known, asked) > 0.7 > 0.4 > points(wrong, known, asked)
    assert layers({"gemm bf16": wrong}, {"gemm bf16": split}) < 0.5
    assert 4 == DECODES["gemm"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not errors of prices"),
        ('{"format": 2, "ops": {}, "roofline": {}}', "format 2"),
        ('{"format": 1, "ops": {"gemm": {"first_octave": 0, "rows": [[1], [2, 3]]}}}', "not err"),
        ('{"format": 1, "ops": {"a": {"first_octave": 0, "rows": []}}, "roofline": {}}', "rows"),
    ],
)
def test_a_file_that_is_not_one_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "errors.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_errors(path)
