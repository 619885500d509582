"""Gemma 2's own numbers: everything its claims say of one request or one price."""

from __future__ import annotations

import pytest

from simulator.papers import Claim, load_system
from simulator.papers.case import Case

SYSTEM = load_system("gemma_2")
FIXED = [claim for claim in SYSTEM.claims if claim.seeds == 1]


@pytest.fixture(scope="module")
def case() -> Case:
    return Case(SYSTEM.experiment, 0)


@pytest.mark.parametrize("claim", FIXED, ids=lambda claim: claim.id)
def test_fixed_claims_lie_within_their_bands(case: Case, claim: Claim) -> None:
    value = SYSTEM.module().MEASURES[claim.measure](case)
    assert claim.low <= value <= claim.high


def test_the_first_layer_of_every_size_has_the_window_and_every_other_one(case: Case) -> None:
    for size in SYSTEM.module().SIZES:
        model = SYSTEM.module().model_of(case, size)
        windows = [model.layer_kinds[kind].attention.window for kind in model.layer_order]
        assert windows == [4096, 0] * (model.num_layers // 2)
        assert all(kind.attention.softcap for kind in model.layer_kinds)
