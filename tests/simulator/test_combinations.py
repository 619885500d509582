"""Every policy with every other: the run serves everybody, or is refused with the two named."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest

from simulator.allocators import ALLOCATORS
from simulator.engine import simulate
from simulator.errors import ConfigError
from simulator.experiment import Experiment
from simulator.recorder import Result
from simulator.routers import ROUTERS
from simulator.schedulers import SCHEDULERS
from simulator.spec import Slo
from simulator.speculation import NGram, Speculation
from simulator.workloads import WORKLOADS
from tests.bench.regimes import experiment

TABLE = WORKLOADS["synthetic"](
    num_prompts=12,
    request_rate=40.0,
    input_len=200,
    output_len=24,
    range_ratio=0.5,
    random_prefix_len=64,
).requests(seed=3)
BASE = replace(
    experiment(TABLE, dp=2, max_num_batched_tokens=2048, max_model_len=2048), slo=Slo(ttft_s=1.0)
)
DRAFTS = Speculation(drafter=NGram())


def names_of(*policies: object) -> set[str]:
    return {type(policy).__name__ for policy in policies}


def outcome_of(subject: Experiment) -> tuple[str, Result | None]:
    """Why it was refused, or its result."""
    try:
        return "", simulate(subject)
    except ConfigError as error:
        return str(error), None


@pytest.mark.parametrize("drafts", [False, True], ids=["plain", "drafts"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_policies_go_together_or_are_refused_by_name(scheduler: str, drafts: bool) -> None:
    num_served = 0
    for allocator, router in product(ALLOCATORS, ROUTERS):
        policies = SCHEDULERS[scheduler](), ALLOCATORS[allocator](), ROUTERS[router]()
        subject = replace(
            BASE,
            scheduler=policies[0],
            allocator=policies[1],
            router=policies[2],
            speculation=DRAFTS if drafts else None,
        )
        refusal, result = outcome_of(subject)
        if result is None:
            said = {name for name in names_of(*policies) if name in refusal}
            said |= {word for word in ("speculation",) if word in refusal}
            assert len(said) >= 2, (allocator, router, refusal)
            continue
        num_served += 1
        assert result.completed.all(), (allocator, router)
        assert (result.table.output_tokens == TABLE.output_tokens).all()
    assert num_served or drafts
