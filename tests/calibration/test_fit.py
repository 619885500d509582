"""The fit finds what synthetic data was made from, and behaves where there is no data."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from calibration.boost import Boosting, boost
from calibration.evaluate import TURNS, errors_of, held_out, samples
from calibration.fit import fit_curve, fit_parameters
from simulator.costs.curve import curve_of
from simulator.costs.forms import FORMS, points_of

from .tables_support import GEMM_TRUTH, H200, gemm_rows, timed

QUICK = Boosting(trees=60, depth=4, rate=0.2)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_known_coefficients_are_recovered(noise: float) -> None:
    table = timed("gemm", gemm_rows(), GEMM_TRUTH, noise)
    points = points_of("gemm", {name: table[name] for name in table.columns}, H200)
    found = fit_parameters("gemm", points, table["time_s"].to_numpy(), H200)
    for name in ("floor_s", "compute", "memory"):
        assert found[name] == pytest.approx(GEMM_TRUTH[name], rel=0.06), name


def test_a_tenth_of_the_points_predicts_the_rest_of_a_physical_table() -> None:
    table = timed("gemm", gemm_rows(), GEMM_TRUTH, 0.01)
    errors = errors_of(held_out("gemm", table, H200, QUICK).values())
    assert errors.n == TURNS * (len(table) - round(0.1 * len(table)))  # the table is small
    assert errors.mape < 4.0
    assert abs(errors.bias) < 2.0


def test_a_small_table_is_left_out_in_five_different_tenths() -> None:
    table = timed("gemm", gemm_rows(), GEMM_TRUTH)
    taken = np.array(samples("gemm", "bf16", table))
    assert taken.sum(1).tolist() == [40] * TURNS
    assert taken.sum(0).max() == 1
    large = timed("gemm", pd.concat([gemm_rows()] * 2), GEMM_TRUTH)
    assert len(samples("gemm", "bf16", large)) == 1


@pytest.mark.parametrize("op", ["mla_decode_block", "mla_prefill_block"])
def test_latent_attention_recovers_its_coefficients(op: str) -> None:
    length = "kv_tokens" if op == "mla_decode_block" else "num_tokens"
    lengths = (64, 512, 2048, 8192)
    grid = [(b, n, h) for b in (1, 8, 64, 256) for n in lengths for h in (8, 16, 64, 128)]
    rows = pd.DataFrame(grid, columns=["num_seqs", length, "num_q_heads"])
    rows = rows.assign(format="bf16", kv_format="bf16", kernel="synthetic")
    truth = {name: parameter.start for name, parameter in FORMS[op].parameters.items()}
    truth |= {"floor_s": 8e-5, "compute": 0.6, "kv_compute": 0.5}
    table = timed(op, rows, truth)
    points = points_of(op, {name: table[name] for name in table.columns}, H200)
    found = fit_parameters(op, points, table["time_s"].to_numpy(), H200)
    for name in ("floor_s", "compute", "kv_compute"):
        assert found[name] == pytest.approx(truth[name], rel=0.1), name


@pytest.mark.parametrize("op", ["all_reduce", "collective"])
def test_collectives_never_get_faster_with_size(op: str) -> None:
    form = FORMS[op]
    payload = 2.0 ** np.arange(6.0, 34.0, 0.25)
    parameters = {name: parameter.start for name, parameter in form.parameters.items()}
    for gpus in (2.0, 4.0, 8.0):
        points = {"payload_bytes": payload, "num_gpus": np.full(len(payload), gpus)}
        times = form.time(parameters, points, H200)
        assert (np.diff(times) >= 0).all()
        assert (times >= form.bounds(points, H200).least_s(0.0)).all()


def test_trees_learn_a_step_the_form_does_not_know() -> None:
    features = np.stack([np.arange(200.0), np.random.default_rng(0).random(200)], axis=1)
    target = np.where(features[:, 0] > 120, 0.3, -0.1)
    trees = boost(features, target, Boosting(trees=80, depth=2, rate=0.3))
    missed = np.abs(trees.predict(features) - target)
    assert np.quantile(missed, 0.95) < 0.05  # a bin is three rows wide


def test_a_curve_survives_its_file() -> None:
    table = timed("gemm", gemm_rows(), GEMM_TRUTH, 0.05)
    curve = fit_curve("gemm", "bf16", table, H200, QUICK)
    again = curve_of(json.loads(json.dumps(curve.to_json())), H200)
    points = points_of("gemm", {name: table[name] for name in table.columns}, H200)
    assert np.allclose(curve.time_s(points), again.time_s(points), rtol=5e-3)


def test_outside_the_grid_a_curve_grows_as_its_form_and_keeps_the_roofline() -> None:
    table = timed("gemm", gemm_rows(), GEMM_TRUTH, 0.05)
    curve = fit_curve("gemm", "bf16", table, H200, QUICK)
    tokens = 8192.0 * 2.0 ** np.arange(0.0, 6.0)
    points = {
        "num_tokens": tokens,
        "out_size": np.full(6, 16384.0),
        "in_size": np.full(6, 16384.0),
        "weight_bits": np.full(6, 16.0),
        "peak_flops": np.full(6, H200.flops_per_s["bf16"]),
    }
    times = curve.time_s(points)
    physical = FORMS["gemm"].time(curve.parameters, points, H200)
    assert (np.diff(times) > 0).all()
    assert np.allclose(times / physical, times[0] / physical[0])
    assert (times >= FORMS["gemm"].bounds(points, H200).least_s(0.0)).all()


def test_the_same_table_gives_the_same_curve() -> None:
    table = timed("gemm", gemm_rows(), GEMM_TRUTH, 0.05)
    first, second = (fit_curve("gemm", "bf16", table, H200, QUICK).to_json() for _ in range(2))
    assert first == second
