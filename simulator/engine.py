"""`simulate(experiment) -> Result`: build the cluster, run the clock dry, collect the columns."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace

import numpy as np
import simpy

from simulator.allocators import KVAllocator
from simulator.batch import FOREVER, PageLayout
from simulator.clashes import (
    refuse_clash,
    refuse_samples,
    refuse_with_nano_batches,
    refuse_with_speculation,
)
from simulator.cluster import Clients, Requests, deal, refuse_misfits
from simulator.collect import collect
from simulator.copying import connect, copies, keeps_time
from simulator.costs.efficiency import host_profile
from simulator.drafting import speculation_kind
from simulator.experiment import Experiment
from simulator.fleet import mobile
from simulator.forking import ForkLane
from simulator.kv_link import copy_time
from simulator.lane import Lane
from simulator.lanes import lane_maker
from simulator.lockstep import Lockstep
from simulator.offload import OffloadRank, host_memory, offload_lanes
from simulator.placement import check_cluster, replicas_that_fit, stage_layers
from simulator.rank import Rank
from simulator.recorder import LaneLog, Recorder, Result
from simulator.replica import Feed, Replica
from simulator.request import Ints
from simulator.routers.llumnix import Llumnix
from simulator.samples import Families, by_request
from simulator.schedulers import Scheduler
from simulator.setup import (
    ReplicaKind,
    Setup,
    by_sample,
    each_replica,
    group_space,
    policy_of,
    pool_of,
    welcome,
)
from simulator.spec import NodeGroup
from simulator.speculating import SpeculatingLane
from simulator.units import to_ns

PROGRESS_INTERVAL_NS = 5_000_000_000  # simulated time between two progress calls

Progress = Callable[[int, int], None]  # finished requests, all requests


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
        refuse_with_nano_batches(experiment)
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
        refuse_with_speculation(setup, experiment.speculation.drafter.kind)
    return setup


def _scheduler(experiment: Experiment) -> Scheduler:
    """The scheduler, told of the targets where it goes by them."""
    under = getattr(experiment.scheduler, "under", None)
    found: Scheduler = experiment.scheduler if under is None else under(experiment.slo)
    return found


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
        kv_types=capacity.types,
        kv_bytes=capacity.kv_bytes,
        host_bytes_per_s=group.gpu.host_link.bytes_per_s,
        memory_bytes_per_s=group.gpu.memory_bytes_per_s,
        stage_layers=max(last - first for first, last in stage_layers(model.num_layers, plan.pp)),
        host=host_memory(experiment, group, capacity),
    )


def run(setup: Setup, progress: Progress | None = None) -> Result:
    """Run a prepared simulation."""
    refuse_clash(setup)
    if not setup.table.samples_many:
        return _run(setup, progress)
    refuse_samples(setup)
    forks = group_space(setup) is not None
    return by_request(_run(by_sample(setup), progress), setup.table, forks)


def _run(setup: Setup, progress: Progress | None) -> Result:
    env = simpy.Environment()
    table = setup.table
    recorder = Recorder(len(table))
    requests = Requests(table, setup.lead_ns)
    most_tokens = min(
        min(kind.max_kv_tokens, setup.scheduler.longest_context(kind.cost.max_num_tokens))
        for kind in setup.kinds
    )
    accepted = refuse_misfits(table, recorder, most_tokens, setup.max_model_len, welcome(setup))
    if group_space(setup) and table.leader is not None:  # the others fork from the first
        accepted = accepted[table.leader[accepted] == accepted]
    clients = feeds = None
    if setup.router.is_static and table.is_open_loop and not copies(setup):
        feeds = deal(
            requests,
            accepted,
            recorder,
            [kind.num_ranks for kind in each_replica(setup)],
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
    result = collect(setup, recorder, replicas)
    if moves is None or fleet is None:
        return result
    fleet.close(result.end_ns)
    return replace(result, migrations=moves.rows(), uptime=fleet.rows())


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
    for number, kind in enumerate(each_replica(setup)):
        ranks = [
            _rank(setup, kind, num_ranks + i, recorder, clients) for i in range(kind.num_ranks)
        ]
        num_ranks += kind.num_ranks
        batches: list[Lockstep] = []
        for _ in range(kind.num_lanes):
            ends = array("q")
            lanes = _lanes(setup, kind, ranks, num_lanes, ends)
            num_lanes += len(lanes)
            batches.append(Lockstep(lanes, kind.cost, setup.scheduler, ends))
        steps = getattr(setup.router, "steps", False) or keeps_time(setup, kind)
        replicas.append(
            Replica(
                env,
                ranks,
                batches,
                coalesce=setup.coalesce and not steps,
                horizon_ns=setup.horizon_ns,
                feed=None if feeds is None else feeds[number],
                next_arrival=next_arrival,
                # A lane that switches plans when an iteration has ended, as vLLM before V1 did.
                plans_ahead=setup.plans_ahead and not hasattr(setup.scheduler, "switch_space"),
            )
        )
        if clients is not None:
            connect(replicas[-1], clients)
    return replicas


def _rank(
    setup: Setup, kind: ReplicaKind, index: int, recorder: Recorder, clients: Clients | None
) -> Rank:
    policy, scheduler = policy_of(setup), setup.scheduler
    queue = getattr(scheduler, "queue", None)  # of its own, with what it needs
    kind_of_rank = Rank if kind.host is None else OffloadRank
    return kind_of_rank(
        index,
        _allocator(setup, kind),
        policy.layout(kind.layout),
        recorder,
        scheduler.by_priority,
        None if clients is None else clients.finished,
        None if queue is None else queue(setup.table),
    )


def _allocator(setup: Setup, kind: ReplicaKind) -> KVAllocator:
    return policy_of(setup).build(pool_of(setup, kind))


def _lanes(
    setup: Setup, kind: ReplicaKind, ranks: list[Rank], first: int, ends: array[int]
) -> list[Lane]:
    """A lane of each rank; they iterate together."""
    if kind.speculation is not None:
        draft = kind.speculation
        return [
            SpeculatingLane(first + i, rank, kind.cost, LaneLog(ends), draft)
            for i, rank in enumerate(ranks)
        ]
    if setup.table.leader is not None and group_space(setup):
        families = Families(setup.table)
        return [
            _fork_lane(setup, kind, ForkLane(first + i, rank, kind.cost, LaneLog(ends), families))
            for i, rank in enumerate(ranks)
        ]
    if kind.host is not None:
        return offload_lanes(ranks, kind.cost, first, ends)
    make = lane_maker(
        setup.scheduler,
        policy_of(setup),
        kind.stage_layers,
        kind.page_bytes,
        kind.host_bytes_per_s,
        overlaps=any(stage.pieces for stage in kind.cost.stages),
        table=setup.table,
    )
    return [make(first + i, rank, kind.cost, LaneLog(ends)) for i, rank in enumerate(ranks)]


def _fork_lane(setup: Setup, kind: ReplicaKind, lane: ForkLane) -> ForkLane:
    """What copies cost it: to the host as swapping does, of a shared page a read and a write."""
    space = group_space(setup)
    assert space is not None
    lane.limit(space.pages or kind.num_pages)
    lane.swap_s = lambda num: space.time_s(
        num, kind.stage_layers, kind.page_bytes, kind.host_bytes_per_s
    )
    lane.copy_s = lambda num: 2 * num * kind.page_bytes / kind.memory_bytes_per_s
    lane.swaps_single = getattr(setup.scheduler, "swap_space", None) is not None
    return lane


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
