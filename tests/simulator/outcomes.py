"""The drawn set-ups of each combination of policies, run once in every way the tests compare."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest

from simulator.engine import run
from simulator.recorder import Result
from simulator.request import RequestTable
from simulator.setup import Setup
from tests.simulator.draws import COMBINATIONS, USUAL, Draw, draw
from tests.simulator.watch import Audited, Planned, Watched, run_audited

NUM_DRAWS, FEWER_DRAWS = 24, 8  # of each combination of policies: the usual ones, the others
# Logged when a segment is booked rather than when it is planned, so grouping shows in them.
BOOKED = ("used_blocks", "waiting")
every_combination = pytest.mark.parametrize("policies", COMBINATIONS, ids="-".join)


@dataclass(frozen=True)
class Outcome:
    """One drawn set-up, run in one go and one audited iteration at a time."""

    draw: Draw
    result: Result  # coalesced
    stepped: Result
    audits: list[Audited]
    broken: list[str]  # rules of a plan that some plan broke

    @property
    def setup(self) -> Setup:
        return self.draw.setup

    @property
    def table(self) -> RequestTable:
        return self.draw.table


@cache
def outcomes(policies: tuple[str, str, str]) -> list[Outcome]:
    num = NUM_DRAWS if set(policies[::2]) <= set(USUAL) else FEWER_DRAWS
    return [outcome(draw(*policies, number)) for number in range(num)]


def outcome(drawn: Draw) -> Outcome:
    broken: list[str] = []

    def note(plan: Planned, lane: Any) -> None:
        broken.extend(broken_rules(plan, lane))

    setup = drawn.setup
    watched = replace(setup, coalesce=False, scheduler=Watched(setup.scheduler, note))
    audits: list[Audited] = []
    stepped = run_audited(watched, audits)
    return Outcome(drawn, run(setup), stepped, audits, broken)


def broken_rules(plan: Planned, lane: Any) -> list[str]:
    """Rules of the token budget and the sequence slots that a plan breaks."""
    broken = []
    if sum(plan.tokens.values()) > lane.max_num_tokens:
        broken.append(f"{sum(plan.tokens.values())} tokens of {lane.max_num_tokens}")
    if plan.num_running > lane.max_num_seqs:
        broken.append(f"{plan.num_running} running of {lane.max_num_seqs}")
    if min(plan.tokens.values(), default=1) < 1:
        broken.append("an empty chunk")
    return broken


class Dynamic:
    """A static router whose requests are routed at their arrival all the same."""

    is_static = False

    def __init__(self, router: Any) -> None:
        self.router = router

    def __getattr__(self, name: str) -> Any:
        return getattr(self.router, name)
