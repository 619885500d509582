"""Distributions of lengths and of gaps: their statistics, and the mappings they refuse."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import ConfigError
from simulator.workloads.arrivals import Arrivals, parse_arrivals, unit_gaps, weibull_shape
from simulator.workloads.checks import stream
from simulator.workloads.distributions import parse_lengths


@pytest.mark.parametrize(
    ("process", "cv"),
    [
        ("poisson", 1),
        ("gamma", 0.3),
        ("gamma", 3),
        ("weibull", 0.3),
        ("weibull", 3),
        ("constant", 0),
    ],
)
def test_unit_gaps_have_mean_one_and_their_cv(process, cv):
    gaps = unit_gaps(stream(0, "test"), process, cv or 1.0, 400_000)
    assert abs(gaps.mean() - 1) < 0.02
    assert abs(gaps.std() - cv) < 0.05 * cv + 1e-12


@given(st.floats(0.02, 100))
def test_weibull_shape_gives_the_cv_back(cv):
    shape = weibull_shape(cv)
    log_ratio = math.lgamma(1 + 2 / shape) - 2 * math.lgamma(1 + 1 / shape)
    assert math.isclose(math.sqrt(math.expm1(log_ratio)), cv, rel_tol=1e-6)


def test_a_profile_moves_the_rate_within_the_period():
    arrivals = Arrivals(rate_per_s=50, profile=(1.0, 3.0, 2.0), period_s=30)
    times = arrivals.times_s(stream(0, "test"), duration_s=900)
    assert abs(len(times) / 45_000 - 1) < 0.02
    counts = np.histogram(times % 30, [0, 10, 20, 30])[0] / len(times)
    np.testing.assert_allclose(counts, [1 / 6, 3 / 6, 2 / 6], atol=0.01)
    assert (np.diff(times) >= 0).all()


def test_a_longer_run_begins_as_the_shorter_one():
    arrivals = Arrivals(process="gamma", rate_per_s=5, cv=4)
    few = arrivals.times_s(stream(0, "test"), num_requests=100)
    many = arrivals.times_s(stream(0, "test"), num_requests=1000)
    timed = arrivals.times_s(stream(0, "test"), num_requests=50, duration_s=1e6)
    np.testing.assert_allclose(many[:100], few)
    np.testing.assert_allclose(timed, few[:50])


@pytest.mark.parametrize(
    ("spec", "mean", "low", "high"),
    [
        (17, 17, 17, 17),
        ({"kind": "constant", "value": 17}, 17, 17, 17),
        ({"kind": "uniform", "low": 3, "high": 5}, 4, 3, 5),
        ({"kind": "normal", "mean": 100, "std": 10, "low": 60, "high": 140}, 100, 60, 140),
        ({"kind": "lognormal", "median": 100, "sigma": 0.5}, 113.3, 1, 5000),
        ({"kind": "exponential", "mean": 200}, 200, 1, 5000),
        ({"kind": "pareto", "low": 10, "alpha": 2.5, "high": 10_000}, 16.7, 10, 10_000),
        ({"kind": "zipf", "theta": 0, "low": 1, "high": 9}, 5, 1, 9),
        ({"kind": "zipf", "theta": 1, "low": 1, "high": 2}, 4 / 3, 1, 2),
        ({"kind": "empirical", "values": [10, 20], "weights": [1, 3]}, 17.5, 10, 20),
        ({"kind": "empirical", "values": [10, 20]}, 15, 10, 20),
        ({"kind": "quantiles", "p": [0, 0.5, 1], "tokens": [10, 20, 40]}, 22.5, 10, 40),
    ],
)
def test_length_distributions(spec, mean, low, high):
    drawn = parse_lengths("workload.output", spec).draw(stream(0, "test"), 50_000)
    assert drawn.dtype == np.int64
    assert low <= drawn.min() <= drawn.max() <= high
    assert abs(drawn.mean() / mean - 1) < 0.02


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (-1, "workload.output must be an int >= 0 (got -1)"),
        (True, "workload.output must be an int >= 0 or {kind: ...} (got True)"),
        (1.5, "workload.output must be an int >= 0 or {kind: ...} (got 1.5)"),
        ({"kind": "uniforn"}, "unknown workload.output.kind 'uniforn'; did you mean 'uniform'?"),
        ({"low": 1}, "workload.output.kind must be one of constant, uniform"),
        ({"kind": "uniform", "low": 1}, "workload.output: kind 'uniform' needs the key 'high'"),
        (
            {"kind": "uniform", "low": 1, "hihg": 2},
            "unknown workload.output key 'hihg'; did you mean 'high'?",
        ),
        (
            {"kind": "uniform", "low": 9, "high": 1},
            "workload.output: high must be an int >= 9 (got 1)",
        ),
        (
            {"kind": "normal", "mean": math.nan, "std": 1},
            "workload.output: mean must be a finite number >= 0 (got nan)",
        ),
        (
            {"kind": "empirical", "values": []},
            "workload.output: values must be a list that is not empty (got [])",
        ),
        (
            {"kind": "empirical", "values": [1], "weights": [0]},
            "workload.output: the sum of weights must be a finite number > 0 (got 0.0)",
        ),
        (
            {"kind": "quantiles", "p": [0.5, 0.1], "tokens": [1, 2]},
            "workload.output: p must not decrease (got [0.5, 0.1])",
        ),
    ],
)
def test_length_distributions_refuse(spec, expected):
    with pytest.raises(ConfigError) as caught:
        parse_lengths("workload.output", spec)
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({}, "workload.arrivals: process 'poisson' needs the key 'rate', such as '12 /s'"),
        (
            {"rate": 12},
            "workload.arrivals.rate: expected rate with a unit, such as '12 /s' (got 12)",
        ),
        ({"rate": "0 /s"}, "workload.arrivals.rate must be > 0 (got '0 /s')"),
        ({"rate": "inf"}, "workload.arrivals.rate must be finite; use process: burst"),
        ({"process": "poison", "rate": "1 /s"}, "unknown workload.arrivals.process 'poison'; did"),
        ({"rate": "1 /s", "cv": 2}, "workload.arrivals.cv is for gamma and weibull, not 'poisson'"),
        ({"rate": "1 /s", "rat": 2}, "unknown workload.arrivals key 'rat'; did you mean 'rate'?"),
        ({"process": "burst", "rate": "1 /s"}, "workload.arrivals: process 'burst' sends everyth"),
        ({"process": "gamma", "rate": "1 /s", "cv": 0}, "workload.arrivals.cv must be a finite nu"),
        (
            {"rate": "1 /s", "profile": [1, 0]},
            "workload.arrivals.profile must be a finite number >",
        ),
        ({"rate": "1 /s", "profile": "weekly"}, "unknown workload.arrivals.profile 'weekly'"),
    ],
)
def test_arrival_processes_refuse(spec, expected):
    with pytest.raises(ConfigError) as caught:
        parse_arrivals("workload.arrivals", spec)
    assert str(caught.value).startswith(expected)
