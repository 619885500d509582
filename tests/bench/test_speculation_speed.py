"""Speed with speculation: an array of 64 sequences instead of the decode calendar."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simulator.speculation import Beta, DraftModel, Eagle, Fixed, SmartSpec, Speculation
from tests.bench.regimes import bare_timeouts_per_s, experiment, measure, synthetic
from tests.bench.test_speed import show

pytestmark = pytest.mark.bench

ITERATIONS_PER_S = 30_000
POLICIES = {
    "eagle 4": Speculation(drafter=Eagle(), length=Fixed()),
    "eagle smartspec": Speculation(drafter=Eagle(), num_speculative_tokens=7, length=SmartSpec()),
    "draft model beta": Speculation(
        drafter=DraftModel(model="llama-3.2-1b"),
        acceptance=Beta(mean=0.7, autocorrelation=0.3),
    ),
}


@pytest.fixture(scope="module")
def bare() -> float:
    return bare_timeouts_per_s()


@pytest.mark.parametrize("name", POLICIES)
def test_iterations_per_second_at_64_sequences(name, bare):
    """2,000 answers of about 1,024 tokens, 64 at a time, all there from the start."""
    plain = experiment(synthetic(2_000, float("inf"), 256, 1024), max_num_seqs=64)
    subject = replace(plain, speculation=POLICIES[name])
    speed = measure(name, subject)
    show(speed, bare)
    assert speed.iterations >= 2_000 * 1024 / 64 / 8  # eight tokens an iteration at most
    assert speed.runs == speed.iterations
    assert speed.iterations_per_s >= ITERATIONS_PER_S
