"""What makes an ordinary simulation a live one: no workload, books that forget, requests let go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from simulator.allocators import Paged, PrefixCaching
from simulator.batch import FOREVER
from simulator.clashes import refuse_clash
from simulator.engine import prepare
from simulator.errors import ConfigError
from simulator.experiment import Experiment
from simulator.lane import Lane
from simulator.rank import Rank
from simulator.recorder import Recorder
from simulator.request import RequestTable, Sequence
from simulator.setup import Setup

COLUMNS = tuple(  # of a recorder, by request
    name for name in Recorder.__slots__ if name not in ("spans", "pauses", "num_finished")
)


class Dropping:
    """A scheduler that lets go of dropped requests before it plans."""

    def __init__(self, scheduler: object, drop: Callable[[Lane], None]) -> None:
        self._scheduler = scheduler
        self._drop = drop

    def __getattr__(self, name: str) -> object:
        return getattr(self._scheduler, name)

    def plan(self, lane: Lane) -> int:
        self._drop(lane)
        return self._scheduler.plan(lane)  # type: ignore[attr-defined, no-any-return]


def unqueue(rank: Rank, seq: Sequence) -> bool:
    """Take a request out of those that wait; False = it does not wait here."""
    queue: Any = rank.waiting  # a deque or a heap
    for i in range(len(queue)):
        if queue[i] is seq:
            del queue[i]
            return True
    for entry in rank.fresh:
        if entry[1] is seq:
            rank.fresh.remove(entry)
            return True
    return False


def forgetful_recorder() -> Recorder:
    """A recorder whose columns forget: each is a dict."""
    recorder = Recorder(0)
    for name in COLUMNS:
        setattr(recorder, name, {})
    return recorder


def without_workload(experiment: Experiment) -> Setup:
    setup = prepare(experiment)
    for name in ("queue", "takes"):
        if getattr(setup.scheduler, name, None) is not None:
            kind = type(setup.scheduler).__name__
            raise ConfigError(f"scheduler: {kind} must know its requests before they come")
    if not isinstance(setup.allocator, Paged | PrefixCaching | None):
        kind = type(setup.allocator).__name__
        raise ConfigError(f"allocator: {kind} must know its requests before they come")
    one = np.ones(1, dtype=np.int64)
    table = RequestTable(arrival_ns=one, prompt_tokens=one, output_tokens=one, name="live")
    setup = replace(
        setup,
        table=table,
        allocator=None,
        lead_ns=None,
        horizon_ns=FOREVER,
        coalesce=False,
    )
    refuse_clash(setup)
    return setup


def lead_of(experiment: Experiment) -> Callable[[int], int]:
    from simulator.costs.efficiency import host_profile

    host = host_profile(experiment.settings)
    return lambda tokens: round((host.request_s + host.prompt_token_s * tokens) * 1e9)


def most_tokens(setup: Setup) -> int:
    """As `cluster.refuse_misfits` counts: the last token needs no KV."""
    most = min(
        min(kind.max_kv_tokens, setup.scheduler.longest_context(kind.cost.max_num_tokens))
        for kind in setup.kinds
    )
    return min(most + 1, setup.max_model_len or FOREVER)
