"""Live migration loses nothing: random schedules of moves, aborts, preemptions, drained ranks."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from simulator.engine import run
from simulator.errors import ConfigError
from simulator.recorder import COMPLETED, MIGRATION_COLUMNS, UNFINISHED, Result
from simulator.request import RequestTable
from simulator.routers.llumnix import InstanceView, Llumnix
from simulator.setup import Setup
from tests.simulator.draws import draw, pick
from tests.simulator.toys import toy_setup, toy_table
from tests.simulator.watch import Audited, difference, flat_cost, is_cut, run_audited, token_ns

NUM_SCHEDULES = 500  # at least
SCHEDULERS = ("vllm_v1", "vllm_v0", "sarathi", "vtc")
ALLOCATORS = ("paged", "prefix_caching")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chaos(Llumnix):
    """Moves anybody anywhere: an instance's freeness is drawn anew whenever somebody asks."""

    seed: int = 0
    rng: list[np.random.Generator] = field(default_factory=list, compare=False)

    def __post_init__(self) -> None:
        self.rng.append(np.random.default_rng(self.seed))

    def spare(self, rank: InstanceView) -> float:
        return float(self.rng[0].uniform(-10, 16)) if rank.is_open else -np.inf


def schedule(scheduler: str, allocator: str, number: int) -> Setup:
    """A drawn set-up of at least two ranks whose requests are moved at random."""
    setup = draw(scheduler, "round_robin", allocator, number).setup
    rng = np.random.default_rng([number, 11])
    chaos = Chaos(
        interval_s=pick(rng, (0.004, 0.008, 0.02)),
        stage_s=pick(rng, (0.0, 0.001, 0.02)),
        last_stage_blocks=pick(rng, (0, 1, 3, 16)),
        max_stages=pick(rng, (1, 3, 3, 6)),
        victim=pick(rng, ("shortest", "last")),
        scale=bool(rng.random() < 0.3) and setup.kinds[0].num_ranks == 1,
        scale_interval_s=0.05,
        startup_s=0.03,
        up_below=2.0,
        down_above=2.1,
        seed=number,
    )
    page_ns = pick(rng, (0, 20_000, 1_000_000))
    table = replace(setup.table, arrival_ns=setup.table.arrival_ns // 8)  # so that many are there
    if table.delay_ns is not None:
        table = replace(table, delay_ns=table.delay_ns // 8)
    kind = replace(setup.kinds[0], num_replicas=pick(rng, (2, 2, 3)))
    return replace(
        setup,
        table=table,
        kinds=(kind,),
        router=chaos,
        copy_ns=lambda source, target, pages: pages * page_ns,
    )


@cache
def outcomes() -> list[tuple[Setup, Result, list[Audited]]]:
    """500 schedules in each of which somebody at least began to move, and those drawn between."""
    found: list[tuple[Setup, Result, list[Audited]]] = []
    number = num_moved = 0
    while num_moved < NUM_SCHEDULES:
        for scheduler in SCHEDULERS:
            for allocator in ALLOCATORS:
                setup = schedule(scheduler, allocator, number)
                audits: list[Audited] = []
                result = run_audited(fresh(setup), audits)
                found.append((setup, result, audits))
                num_moved += len(moves(result)["request"]) > 0
        number += 1
    return found


def fresh(setup: Setup) -> Setup:
    """The same set-up, its random freeness from the start."""
    assert isinstance(setup.router, Chaos)
    return replace(setup, router=replace(setup.router, rng=[]))


def moves(result: Result) -> dict[str, Any]:
    assert result.migrations is not None
    return dict(zip(MIGRATION_COLUMNS, result.migrations.T, strict=True))


def test_no_token_is_lost_or_duplicated_over_500_random_schedules() -> None:
    for number, (setup, result, _) in enumerate(outcomes()):
        times, done = token_ns(result), result.completed
        given = np.array([len(tokens) for tokens in times])
        assert np.array_equal(given[done], setup.table.output_tokens[done]), number
        assert (given <= setup.table.output_tokens).all(), number
        if not is_cut(setup):
            assert not (result.status == UNFINISHED).any(), number
            sampled = sum(
                int((lane.segments["sampled"] * lane.segments["iterations"]).sum())
                for lane in result.lanes
            )
            assert sampled == setup.table.output_tokens[done].sum(), number
        for i in np.flatnonzero(done).tolist():
            assert (np.diff(times[i]) > 0).all(), (number, i)
            assert (times[i][0], times[i][-1]) == (result.first_token_ns[i], result.finish_ns[i])


def test_pages_are_conserved_whether_a_move_is_committed_or_given_up() -> None:
    for number, (setup, result, audits) in enumerate(outcomes()):
        for audit, total in zip(audits, result.num_blocks, strict=True):
            if not is_cut(setup):
                assert (audit.taken, audit.free_pages) == (0, total), number


def test_only_what_was_preempted_is_computed_again() -> None:
    for number, (setup, result, _) in enumerate(outcomes()):
        if is_cut(setup) or result.preemptions.any():
            continue
        done = result.completed
        prefilled = sum(int(lane.segments["prefill_tokens"].sum()) for lane in result.lanes)
        missing = (setup.table.prompt_tokens - result.cached_tokens)[done].sum()
        assert prefilled == missing, number


def test_nobody_gains_a_token_while_it_stands_still() -> None:
    for number, (_, result, _) in enumerate(outcomes()):
        times = token_ns(result)
        each = moves(result)
        for request, left, resumed in zip(
            each["request"], each["left_ns"], each["resumed_ns"], strict=True
        ):
            if resumed >= 0:
                assert not ((times[request] > left) & (times[request] <= resumed)).any(), number


def test_schedules_contain_what_they_are_for() -> None:
    seen: Counter[str] = Counter()
    for setup, result, _ in outcomes():
        each = moves(result)
        done = each["resumed_ns"] >= 0
        seen["moves"] += int(done.sum())
        seen["given up"] += int((~done).sum())
        seen["in several stages"] += int((each["stages"][done] > 1).sum())
        seen["moved twice"] += int((np.bincount(each["request"][done]) > 1).sum())
        seen["moved and preempted"] += int(
            (result.preemptions[np.unique(each["request"][done])] > 0).sum()
        )
        seen["cut on the way"] += int(((each["pages"] > 0) & ~done).sum() if is_cut(setup) else 0)
        seen["drained"] += int(setup.router.scale and len(result.uptime) > len(result.num_blocks))  # type: ignore[attr-defined, arg-type]
    for name, least in {
        "moves": 2000,
        "given up": 3000,
        "in several stages": 1000,
        "moved twice": 400,
        "moved and preempted": 100,
        "cut on the way": 200,
        "drained": 8,
    }.items():
        assert seen[name] >= least, seen


def test_two_runs_and_both_ways_to_run_are_identical() -> None:
    for setup, result, _ in outcomes()[::25]:
        for coalesce in (True, False):
            again = run(replace(fresh(setup), coalesce=coalesce))
            assert difference(result, again) == ""
            assert np.array_equal(result.migrations, again.migrations)  # type: ignore[arg-type]


# --- one move by hand ---------------------------------------------------------------------------


def test_downtime_is_the_last_copy_and_the_wait_for_the_targets_iteration() -> None:
    """Iterations of 1 ms; a prompt of 160 tokens holds 10 blocks, each 1 ms to copy.

    Request 0 fills rank 0. From the pairing at 5 ms it copies its 10 whole blocks until 15 ms,
    has 11 blocks at the end of the iteration of 15 ms, stands still for the last one and goes on
    at 16 ms, on an idle rank.
    """
    table = RequestTable(
        arrival_ns=np.array([0]), prompt_tokens=np.array([160]), output_tokens=np.array([40])
    )
    result = run(
        toy_setup(
            table,
            num_replicas=2,
            num_pages=14,
            cost=flat_cost(1_000_000),
            router=Llumnix(
                interval_s=0.005, stage_s=0.0, last_stage_blocks=2, source_below=5.0, max_stages=3
            ),
            copy_ns=lambda source, target, pages: pages * 1_000_000,
        )
    )
    each = moves(result)
    assert (each["source"][0], each["target"][0], each["stages"][0]) == (0, 1, 2)
    assert (each["begin_ns"][0], each["left_ns"][0]) == (5_000_000, 15_000_000)
    assert each["resumed_ns"][0] == 16_000_000
    gaps = np.diff(token_ns(result)[0])
    assert (int(gaps[14]), int(gaps[:14].max())) == (2_000_000, 1_000_000)


def test_the_head_of_a_queue_is_made_room_for() -> None:
    """Rank 0 and 1 are half full; a prompt that fits neither gets in once one is emptied."""
    table = RequestTable(
        arrival_ns=np.array([0, 0, 0, 0, 10_000_000]),
        prompt_tokens=np.array([240, 240, 240, 240, 600]),
        output_tokens=np.array([200, 200, 200, 200, 5]),
    )
    waits = []
    for migrate in (False, True):
        router = Llumnix(migrate=migrate, interval_s=0.005, stage_s=0.0, last_stage_blocks=2)
        cost = flat_cost(1_000_000, max_num_tokens=1024)
        result = run(toy_setup(table, num_replicas=2, num_pages=66, cost=cost, router=router))
        assert (result.status == COMPLETED).all()
        waits.append(int(result.first_token_ns[4] - result.sent_ns[4]))
    assert waits[0] > 100_000_000
    assert waits[1] < 30_000_000


def test_freeness_counts_queue_headroom_and_drained_instances() -> None:
    @dataclass
    class View:
        is_open: bool = True
        num_running: int = 4
        num_waiting: int = 0
        num_pages: int = 1000
        used_pages: int = 400
        head_pages: int = 0
        queued_pages: int = 0
        num_urgent: int = 0
        block_pages: int = 1
        block_tokens: int = 16

    policy = Llumnix(headroom_tokens=1600)
    assert policy.spare(View()) == 600 / 4
    assert policy.spare(View(num_waiting=3, head_pages=700, queued_pages=900)) == -100 / 5
    assert policy.spare(View(num_urgent=2)) == (600 - 100) / 4
    assert policy.spare(View(is_open=False)) == -np.inf
    queue = View(num_waiting=3, head_pages=700, queued_pages=900)
    views = [queue, View(is_open=False, used_pages=0), View(used_pages=999)]
    assert policy.choose(0, None, views) == 2  # type: ignore[arg-type]


def test_the_fleet_grows_with_the_load_and_shrinks_after_it() -> None:
    router = Llumnix(scale=True, initial_instances=1, scale_interval_s=0.5, startup_s=0.2)
    table = toy_table(3, 400, rate=60, most_output=200)
    setup = toy_setup(table, num_replicas=4, num_pages=200, router=router)
    result = run(replace(setup, table=replace(table, arrival_ns=_with_a_lull(table.arrival_ns))))
    assert (result.status == COMPLETED).all()
    assert result.uptime is not None
    started = result.uptime[:, 0]
    assert set(started.tolist()) >= {0, 1}
    up_ns = int((result.uptime[:, 2] - result.uptime[:, 1]).sum())
    assert up_ns < 4 * result.end_ns
    for rank, since, until in result.uptime.tolist():
        mine = [lane for lane in result.lanes if lane.rank == rank]
        assert since <= until
        assert all((lane.end_ns <= result.end_ns).all() for lane in mine)


def _with_a_lull(arrival_ns: Any) -> Any:
    late = np.arange(len(arrival_ns)) >= len(arrival_ns) - 20
    return arrival_ns + late * 20_000_000_000


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("interval_s", 0.0, "router.interval_s: expected a number > 0"),
        ("victim", "first", "router.victim: expected shortest or last"),
        ("up_below", 90.0, "router.up_below: expected a number < down_above"),
        ("stage_s", -1.0, "router.stage_s: expected a number >= 0"),
    ],
)
def test_bad_values_are_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Llumnix(**{key: value})


def test_clashes_name_the_policies() -> None:
    from simulator.allocators import Reserved
    from simulator.schedulers import SCHEDULERS as REGISTRY

    table = toy_table(0, 3)
    setup = toy_setup(table, num_replicas=2, router=Llumnix())
    with pytest.raises(ConfigError, match=r"Llumnix.*Reserved clash: a piece reserved"):
        run(replace(setup, allocator=Reserved()))
    with pytest.raises(ConfigError, match=r"Llumnix, scheduler Static .*lets nobody leave"):
        run(replace(setup, scheduler=REGISTRY["static"](), allocator=Reserved()))
    scaling = toy_setup(table, num_replicas=2, num_ranks=2, router=Llumnix(scale=True))
    with pytest.raises(ConfigError, match=r"attention_dp = 1.*\(got 2\)"):
        run(scaling)
