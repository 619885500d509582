"""`simulate(experiment) -> Result`: build the cluster, run the clock dry, collect the columns."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, replace

import numpy as np
import simpy
from numpy.typing import NDArray

from simulator.allocators import (
    AllocatorPolicy,
    KVAllocator,
    Paged,
    Pool,
    PrefixCaching,
    VAttention,
)
from simulator.batch import FOREVER, PageLayout
from simulator.cluster import Clients, Requests, deal, refuse_misfits
from simulator.costs.compiled import CompiledCost
from simulator.costs.efficiency import host_profile
from simulator.drafting import SpeculationKind, speculation_kind
from simulator.errors import ConfigError
from simulator.experiment import Experiment
from simulator.fleet import mobile
from simulator.kv_link import copy_time
from simulator.lane import Lane
from simulator.lanes import lane_maker
from simulator.lockstep import Lockstep
from simulator.migration import CopyTime
from simulator.placement import check_cluster, replicas_that_fit, stage_layers
from simulator.rank import Rank
from simulator.recorder import (
    SEGMENT_COLUMNS,
    SPECULATION_COLUMNS,
    LaneLog,
    LaneResult,
    Recorder,
    Result,
    as_ints,
)
from simulator.replica import Feed, Replica
from simulator.request import Ints, RequestTable
from simulator.routers import Router
from simulator.routers.llumnix import Llumnix
from simulator.schedulers import Scheduler
from simulator.spec import NodeGroup
from simulator.speculating import SpeculatingLane
from simulator.units import to_ns

PROGRESS_INTERVAL_NS = 5_000_000_000  # simulated time between two progress calls

Progress = Callable[[int, int], None]  # finished requests, all requests


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaKind:
    """Identical replicas: their price, and the KV pool of each of their attention ranks."""

    num_replicas: int
    num_ranks: int
    num_lanes: int
    cost: CompiledCost
    num_pages: int
    layout: PageLayout
    max_kv_tokens: int  # of one sequence alone
    speculation: SpeculationKind | None = None  # None = one token a decode an iteration
    stage_layers: int = 1  # layers of the longest stage
    page_bytes: float = 2.0**21  # of one page on one of its GPUs
    host_bytes_per_s: float = 25e9  # from each GPU to its host's memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A simulation without model or hardware: prices, pools, policies and requests."""

    kinds: tuple[ReplicaKind, ...]
    table: RequestTable
    scheduler: Scheduler
    router: Router
    allocator: AllocatorPolicy | None = None  # None = paged, with a prefix cache if that can help
    max_model_len: int = 0
    prefix_caching: bool = True
    lead_ns: Ints | None = None  # of each request, from its sending to its arrival; None = 0
    plans_ahead: bool = False  # asynchronous scheduling: each iteration is planned one ahead
    horizon_ns: int = FOREVER
    coalesce: bool = True
    copy_ns: CopyTime | None = None  # of pages between two replicas; None = they share no link


def simulate(experiment: Experiment, progress: Progress | None = None) -> Result:
    """Run the experiment to its end (or horizon).

    Raises:
        InfeasiblePlan: the plan does not divide the model, or does not fit the hardware.
    """
    return run(prepare(experiment), progress)


def prepare(experiment: Experiment) -> Setup:
    """Price and size the replicas of an experiment."""
    settings = experiment.settings
    if settings.nano_batches:
        _refuse_with_nano_batches(experiment)
    is_finite = experiment.horizon_s * 1e9 < FOREVER
    setup = Setup(
        kinds=tuple(_kind(experiment, group, num) for group, num in place(experiment)),
        table=experiment.workload,
        scheduler=_scheduler(experiment),
        router=experiment.router,
        allocator=experiment.allocator,
        max_model_len=settings.max_model_len or experiment.model.max_context_tokens,
        prefix_caching=settings.prefix_caching,
        lead_ns=_lead_ns(experiment),
        plans_ahead=settings.async_scheduling,
        horizon_ns=to_ns(experiment.horizon_s) if is_finite else FOREVER,
        coalesce=experiment.coalesce,
        copy_ns=copy_time(experiment),
    )
    if experiment.speculation is not None:
        _refuse_with_speculation(setup, experiment.speculation.drafter.kind)
    return setup


def _scheduler(experiment: Experiment) -> Scheduler:
    """The scheduler, told of the targets where it goes by them."""
    under = getattr(experiment.scheduler, "under", None)
    found: Scheduler = experiment.scheduler if under is None else under(experiment.slo)
    return found


def _refuse_with_speculation(setup: Setup, drafter: str) -> None:
    """Drafts need pages that no reservation holds, and answers that end one by one."""
    policy, scheduler = policy_of(setup), setup.scheduler
    if policy.reserved_pages(_pool(setup, setup.kinds[0])) is not None:
        raise ConfigError(
            f"speculation with the {drafter} drafter needs pages on demand: allocator "
            f"{type(policy).__name__} gives each request a reservation of its own tokens"
        )
    if getattr(scheduler, "runs_to_completion", False):
        raise ConfigError(
            f"speculation with the {drafter} drafter needs answers that end one by one: "
            f"scheduler {type(scheduler).__name__} pads them to the longest"
        )
    if lane_maker(scheduler, policy, 1, 1.0, 1.0) is not Lane:
        names = f"scheduler {type(scheduler).__name__}, allocator {type(policy).__name__}"
        raise ConfigError(
            f"speculation with the {drafter} drafter needs a lane that neither swaps nor maps "
            f"pages ({names})"
        )


def _refuse_with_nano_batches(experiment: Experiment) -> None:
    """Prices of nano-batches are those of plain lanes, one token a decode."""
    if experiment.speculation is not None:
        raise ConfigError("engine.nano_batches: not with speculation")
    allocator = experiment.allocator or Paged()
    if lane_maker(experiment.scheduler, allocator, 1, 1.0, 1.0) is not Lane:
        names = f"scheduler {type(experiment.scheduler).__name__}, {type(allocator).__name__}"
        raise ConfigError(
            "engine.nano_batches: expected a lane that neither swaps, pads nor maps pages "
            f"(got {names})"
        )


def _lead_ns(experiment: Experiment) -> Ints | None:
    """Each request's time between its client and the scheduler; None where the profile has none."""
    host = host_profile(experiment.settings)
    if not (host.request_s or host.prompt_token_s):
        return None
    tokens_s = host.prompt_token_s * experiment.workload.prompt_tokens
    lead_ns: Ints = np.rint((host.request_s + tokens_s) * 1e9).astype(np.int64)
    return lead_ns


def place(experiment: Experiment) -> Iterator[tuple[NodeGroup, int]]:
    """How many of the plan's replicas each node group takes: in order, as many as fit."""
    check_cluster(experiment.model, experiment.plan, experiment.cluster)
    left = experiment.plan.dp
    for group in experiment.cluster.groups:
        num = min(left, replicas_that_fit(experiment.plan, group))
        if num:
            yield group, num
        left -= num


def _kind(experiment: Experiment, group: NodeGroup, num_replicas: int) -> ReplicaKind:
    from simulator.costs.roofline import compile_cost
    from simulator.memory import kv_capacity

    model, plan, settings = experiment.model, experiment.plan, experiment.settings
    speculation, draft = None, None
    cost = compile_cost(model, plan, group, settings)
    if experiment.speculation is not None:
        cost, draft, speculation = speculation_kind(experiment, group)
    sizes = getattr(experiment.allocator, "block_tokens", None)  # some choose the block
    if sizes is not None:
        settings = replace(settings, block_tokens=sizes(model, plan.tp))
    capacity = kv_capacity(model, plan, group.gpu, settings, draft=draft)
    return ReplicaKind(
        num_replicas=num_replicas,
        num_ranks=plan.attention_dp,
        num_lanes=plan.pp,
        cost=cost,
        num_pages=capacity.num_blocks,
        layout=PageLayout(
            settings.block_tokens, capacity.blocks_full_weight, capacity.window_weights
        ),
        max_kv_tokens=capacity.tokens,
        speculation=speculation,
        page_bytes=capacity.block_bytes,
        host_bytes_per_s=group.gpu.host_link.bytes_per_s,
        stage_layers=max(last - first for first, last in stage_layers(model.num_layers, plan.pp)),
    )


def run(setup: Setup, progress: Progress | None = None) -> Result:
    """Run a prepared simulation."""
    refuse_clash(setup)
    env = simpy.Environment()
    table = setup.table
    recorder = Recorder(len(table))
    requests = Requests(table, setup.lead_ns)
    most_tokens = min(
        min(kind.max_kv_tokens, setup.scheduler.longest_context(kind.cost.max_num_tokens))
        for kind in setup.kinds
    )
    accepted = refuse_misfits(table, recorder, most_tokens, setup.max_model_len, welcome(setup))
    clients = feeds = None
    if setup.router.is_static and table.is_open_loop:
        feeds = deal(
            requests,
            accepted,
            recorder,
            [kind.num_ranks for kind in _each(setup)],
            setup.horizon_ns,
        )
    else:
        clients = Clients(env, requests, accepted, setup.router, recorder, setup.horizon_ns)
    replicas = build(setup, env, recorder, feeds, clients)
    moves = fleet = None
    if clients is not None:
        clients.connect(replicas)
        if isinstance(setup.router, Llumnix):
            moves, fleet = mobile(setup.router, clients, replicas, setup.copy_ns)
    if progress is not None:
        env.process(_tick(env, progress, recorder, len(table), replicas))
    env.run()
    if moves is not None:
        moves.close()
    result = _collect(setup, recorder, replicas)
    if moves is None or fleet is None:
        return result
    fleet.close(result.end_ns)
    return replace(result, migrations=moves.rows(), uptime=fleet.rows())


def _each(setup: Setup) -> Iterator[ReplicaKind]:
    for kind in setup.kinds:
        for _ in range(kind.num_replicas):
            yield kind


def build(
    setup: Setup,
    env: simpy.Environment,
    recorder: Recorder,
    feeds: list[Feed] | None,
    clients: Clients | None,
) -> list[Replica]:
    """The replicas with their ranks and lanes; arrivals come from `feeds` or from `clients`."""
    replicas: list[Replica] = []
    next_arrival = clients.next_ns if clients is not None and setup.table.is_open_loop else None
    num_lanes = num_ranks = 0
    for number, kind in enumerate(_each(setup)):
        ranks = []
        for _ in range(kind.num_ranks):
            on_finish = None if clients is None else clients.finished
            allocator = _allocator(setup, kind)
            layout = policy_of(setup).layout(kind.layout)
            by_priority = setup.scheduler.by_priority
            queue = getattr(setup.scheduler, "queue", None)  # of its own, with what it needs
            waiting = None if queue is None else queue(setup.table)
            rank = Rank(num_ranks, allocator, layout, recorder, by_priority, on_finish, waiting)
            ranks.append(rank)
            num_ranks += 1
        batches = []
        make = lane_maker(
            setup.scheduler,
            policy_of(setup),
            kind.stage_layers,
            kind.page_bytes,
            kind.host_bytes_per_s,
            any(stage.pieces for stage in kind.cost.stages),
        )
        for _ in range(kind.num_lanes):
            keys = range(num_lanes, num_lanes + len(ranks))
            num_lanes += len(ranks)
            ends = array("q")
            lanes = [
                make(key, rank, kind.cost, LaneLog(ends))
                if kind.speculation is None
                else SpeculatingLane(key, rank, kind.cost, LaneLog(ends), kind.speculation)
                for key, rank in zip(keys, ranks, strict=True)
            ]
            batches.append(Lockstep(lanes, kind.cost, setup.scheduler, ends))
        feed = None if feeds is None else feeds[number]
        replicas.append(
            Replica(
                env,
                ranks,
                batches,
                coalesce=setup.coalesce and not getattr(setup.router, "steps", False),
                horizon_ns=setup.horizon_ns,
                feed=feed,
                next_arrival=next_arrival,
                plans_ahead=setup.plans_ahead,
            )
        )
    return replicas


def policy_of(setup: Setup) -> AllocatorPolicy:
    """The allocator of the set-up, or the one it would choose itself."""
    if setup.allocator is not None:
        return setup.allocator
    shares = setup.prefix_caching and setup.table.hash_ids is not None
    return PrefixCaching() if shares else Paged()


def refuse_clash(setup: Setup) -> None:
    """Policies that make no sense together.

    Raises:
        ConfigError: both are named, with what would go instead.
    """
    clash = getattr(setup.scheduler, "clash", None)
    policy = policy_of(setup)
    reason = "" if clash is None else clash(policy)
    if reason:
        names = (type(setup.scheduler).__name__, type(policy).__name__)
        raise ConfigError(f"scheduler {names[0]} and allocator {names[1]} clash: {reason}")
    clash = getattr(setup.router, "clash", None)
    reason = "" if clash is None else clash(setup.scheduler, policy)
    if reason:
        names = (type(setup.router).__name__, type(setup.scheduler).__name__)
        raise ConfigError(
            f"router {names[0]}, scheduler {names[1]} and allocator {type(policy).__name__} "
            f"clash: {reason}"
        )
    if isinstance(setup.router, Llumnix):
        drafts = any(kind.speculation is not None for kind in setup.kinds)
        if drafts or isinstance(policy, VAttention):
            other = "speculation" if drafts else "allocator VAttention"
            raise ConfigError(
                f"router Llumnix and {other} clash: only KV in pages of one kind can be moved"
            )
    if getattr(setup.router, "scale", False) and any(kind.num_ranks > 1 for kind in setup.kinds):
        raise ConfigError(
            "router.scale: expected plan.attention_dp = 1, as ranks that step together are started "
            f"and drained together (got {setup.kinds[0].num_ranks})"
        )


def _allocator(setup: Setup, kind: ReplicaKind) -> KVAllocator:
    return policy_of(setup).build(_pool(setup, kind))


def _pool(setup: Setup, kind: ReplicaKind) -> Pool:
    return Pool(
        num_pages=kind.num_pages,
        layout=kind.layout,
        table=setup.table,
        max_model_len=setup.max_model_len or kind.max_kv_tokens,
    )


def welcome(setup: Setup) -> NDArray[np.bool_] | None:
    """Requests that the scheduler takes and an empty pool has a place for; None = all."""
    takes = getattr(setup.scheduler, "takes", None)
    policy, fits = policy_of(setup), None if takes is None else takes(setup.table)
    for kind in setup.kinds:
        pool = _pool(setup, kind)
        mine = policy.fits(pool)
        if mine is not None:
            fits = mine if fits is None else fits & mine
    return fits


def _tick(
    env: simpy.Environment,
    progress: Progress,
    recorder: Recorder,
    num_requests: int,
    replicas: list[Replica],
) -> Generator[simpy.Event, object, None]:
    while recorder.num_finished < num_requests and env.peek() != float("inf"):
        yield env.timeout(PROGRESS_INTERVAL_NS)
        progress(recorder.num_finished, num_requests)


def _collect(setup: Setup, recorder: Recorder, replicas: list[Replica]) -> Result:
    lanes: list[tuple[int, int, Lane]] = []  # replica, lane within it
    for number, replica in enumerate(replicas):
        for position, batch in enumerate(replica.batches):
            lanes += [(number, position, lane) for lane in batch.lanes]
    lanes.sort(key=lambda entry: entry[2].key)
    for _, _, lane in lanes:
        lane.rank.catch_up()
        lane.check_drained()
    spans = as_ints(recorder.spans).reshape(-1, 4)
    asked, given = _reservations(setup)
    names = ("span_request", "span_lane", "span_first", "span_last")
    return Result(
        table=setup.table,
        lanes=tuple(_lane_result(*entry) for entry in lanes),
        spans=dict(zip(names, spans.T, strict=True)),
        num_blocks=tuple(rank.allocator.num_pages for r in replicas for rank in r.ranks),
        block_tokens=setup.kinds[0].layout.block_tokens,
        end_ns=max((lane.log.end_ns[-1] for _, _, lane in lanes if lane.log.end_ns), default=0),
        notes=setup.table.notes,
        pauses=as_ints(recorder.pauses),
        pages_per_block=setup.kinds[0].layout.most,
        asked_tokens=asked,
        given_tokens=given,
        counters=_counters(replicas),
        **recorder.columns(),
    )


def _reservations(setup: Setup) -> tuple[Ints | None, Ints | None]:
    """Tokens that each request asks for at admission, and the slots it is given."""
    policy, pool = policy_of(setup), _pool(setup, setup.kinds[0])
    pages = policy.reserved_pages(pool)
    if pages is None:
        return None, None
    slots: Ints = pages * pool.layout.block_tokens // pool.layout.most
    return policy.asked_tokens(pool), slots


def _counters(replicas: list[Replica]) -> dict[str, int]:
    """What allocators have counted, over all ranks."""
    total: Counter[str] = Counter()
    for replica in replicas:
        for rank in replica.ranks:
            total.update(getattr(rank.allocator, "counters", {}))
    return dict(total)


def _lane_result(replica: int, position: int, lane: Lane) -> LaneResult:
    log = lane.log
    columns = as_ints(log.segments).reshape(-1, len(SEGMENT_COLUMNS)).T
    drafted = as_ints(log.speculation).reshape(-1, len(SPECULATION_COLUMNS)).T
    speculates = isinstance(lane, SpeculatingLane)
    return LaneResult(
        replica=replica,
        rank=lane.rank.index,
        lane=position,
        end_ns=as_ints(log.end_ns),
        segment_start_ns=as_ints(log.start_ns),
        segments=dict(zip(SEGMENT_COLUMNS, columns, strict=True)),
        speculation=dict(zip(SPECULATION_COLUMNS, drafted, strict=True)) if speculates else None,
        accepted_at=np.array(lane.accepted_at) if isinstance(lane, SpeculatingLane) else None,
    )
