"""Drawn set-ups that speculate: those of `draws`, with drafters, acceptance and lengths drawn."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from simulator.costs.compiled import AttentionCost, to_ticks
from simulator.costs.drafting import DraftCost
from simulator.drafting import SpeculationKind
from simulator.setup import Setup
from simulator.speculation import (
    BatchTable,
    Beta,
    Confidence,
    Eagle,
    Fixed,
    Geometric,
    Kangaroo,
    Lookahead,
    NGram,
    NoSpeculation,
    PerPosition,
    SmartSpec,
    Speculation,
    Tree,
)
from tests.simulator.draws import Draw, draw, pick

FREE = DraftCost(linear=[], attention=None, logits=[], host=[0] * 1024, width=1, passes_beyond=0)
LENGTHS = (
    Fixed(),
    Fixed(),
    NoSpeculation(),
    SmartSpec(),
    SmartSpec(interval=2, probe_interval=5, per_request=True),
    BatchTable(table=((1, 2, 2), (3, 6, 1), (7, 64, 0))),
)
ACCEPTANCES = (
    Geometric(rate=0.0),
    Geometric(rate=0.6),
    Geometric(rate=1.0),
    Beta(mean=0.7, concentration=2.0, autocorrelation=0.5),
    PerPosition(rates=(0.9, 0.5, 0.2)),
)


def toy_draft(width: int = 1, passes_beyond: int = 0) -> DraftCost:
    """A draft step of 0.2 ms and a little a token, on the GPU."""
    attention = AttentionCost(
        window=0,
        decode_base=[to_ticks(1e-6 * n) for n in range(1024)],
        decode_per_token=[0] + [to_ticks(1e-9)] * 1023,
        prefill_base=to_ticks(1e-6),
        prefill_per_token=to_ticks(1e-8),
        prefill_per_pair=to_ticks(1e-11),
        prefill_per_context_token=to_ticks(1e-10),
    )
    return DraftCost(
        linear=[0] + [to_ticks(2e-4 + 1e-6 * n) for n in range(1, 513)],
        attention=attention,
        logits=[to_ticks(1e-6 * n) for n in range(1024)],
        host=[0] + [to_ticks(1e-5)] * 1023,
        width=width,
        passes_beyond=passes_beyond,
    )


def with_speculation(
    setup: Setup, policy: Speculation, draft: DraftCost = FREE, seed: int = 0
) -> Setup:
    """The set-up with lanes that speculate; the target's prices go on beyond their tables."""
    kind = setup.kinds[0]
    logits, size = kind.cost.logits, kind.cost.max_num_tokens + 1
    step = logits[-1] - logits[-2]
    logits = logits + [logits[-1] + step * i for i in range(1, size - len(logits) + 1)]
    speculation = SpeculationKind(
        policy=policy,
        draft=draft,
        pair_ticks=tuple(x.prefill_per_pair for x in kind.cost.stages[0].attention),
        shares_layers=isinstance(policy.drafter, Kangaroo),
        lengths=setup.table.output_tokens,
        seed=seed,
    )
    cost = replace(kind.cost, logits=logits)
    return replace(setup, kinds=(replace(kind, cost=cost, speculation=speculation),))


def draw_policy(rng: np.random.Generator) -> tuple[Speculation, DraftCost]:
    """Any drafter with any acceptance and length that go together."""
    tokens = int(rng.integers(2, 7))
    drafter: Any = pick(rng, (Eagle(), NGram(match=0.5), Tree(width=3), Lookahead(match=0.8),
                              Kangaroo(), Kangaroo(threshold=0.0)))  # fmt: skip
    beyond = int(isinstance(drafter, Kangaroo))
    draft = toy_draft(getattr(drafter, "width", 1), beyond)
    if isinstance(drafter, NGram | Lookahead):
        draft = replace(FREE, host=[0] + [to_ticks(1e-4)] * 1023)
    acceptance: Any = pick(rng, ACCEPTANCES)
    if drafter.needs_acceptance:
        acceptance = Confidence(mean=0.7)
    policy = Speculation(
        drafter=drafter,
        num_speculative_tokens=tokens,
        acceptance=acceptance,
        length=pick(rng, LENGTHS),
    )
    return policy, draft


def speculating_draws(scheduler: str, router: str, allocator: str, num: int) -> list[Draw]:
    """The first so many drawn set-ups of one stage, with speculation."""
    found: list[Draw] = []
    number = 0
    while len(found) < num:
        drawn = draw(scheduler, router, allocator, number)
        number += 1
        if drawn.setup.kinds[0].num_lanes == 1:
            policy, draft = draw_policy(np.random.default_rng([number, 77]))
            name = f"{drawn.name} with {policy}"
            setup = with_speculation(drawn.setup, policy, draft, seed=number)
            found.append(replace(drawn, name=name, setup=setup))
    return found
