"""Prefill and decode on instances of their own: the prompts' KV travels from one to the other.

A request is prefilled by one instance, its KV is sent, and another decodes it, computing the
prompt's last token again to give the first token (vLLM with its NIXL connector does so). Nothing
feeds back to the prefill side in an open loop, so the two sides are simulated one after the other.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.allocators import RemotePrefill
from simulator.costs.collectives import collective_time
from simulator.engine import prepare, run
from simulator.errors import ConfigError
from simulator.experiment import Experiment
from simulator.memory import kv_capacity
from simulator.recorder import COMPLETED, Result
from simulator.request import Ints
from simulator.spec import ParallelPlan
from simulator.work import Collective


def simulate_disaggregated(experiment: Experiment, num_prefill: int, num_decode: int) -> Result:
    """The decode side's result, with requests in the order of their arrival there.

    `experiment.plan` is that of one instance; times of sending are those of the client.

    Raises:
        ConfigError: a closed loop, whose clients would feed answers back into the prefill side.
    """
    table = experiment.workload
    if table.samples_many:
        raise ConfigError("deployment: prefill and decode apart give each request one answer")
    if not table.is_open_loop:
        raise ConfigError("deployment: prefill and decode apart need an open loop of arrivals")
    if experiment.settings.kv_offload_bytes:
        raise ConfigError("engine.kv_offload: expected 0 with prefill and decode apart")
    first = run(
        prepare(
            replace(
                experiment,
                plan=_instances(experiment.plan, num_prefill),
                workload=replace(table, output_tokens=np.ones_like(table.output_tokens)),
            )
        )
    )
    done = np.flatnonzero(first.status == COMPLETED)
    if len(done) == 0:
        return first
    ready_ns = first.finish_ns[done] + _transfer_ns(experiment, table.prompt_tokens[done])
    order = done[np.argsort(ready_ns, kind="stable")]
    ready_ns.sort(kind="stable")
    moved = replace(
        table,
        arrival_ns=ready_ns,
        prompt_tokens=table.prompt_tokens[order],
        output_tokens=table.output_tokens[order],
        hash_ids=None,
        hash_offsets=None,
        priority=None if table.priority is None else table.priority[order],
    )
    decode = replace(experiment, plan=_instances(experiment.plan, num_decode), workload=moved)
    setup = replace(prepare(decode), allocator=RemotePrefill(), lead_ns=None)
    return replace(run(setup), sent_ns=first.sent_ns[order])


def _instances(plan: ParallelPlan, number: int) -> ParallelPlan:
    return replace(plan, dp=number)


def _transfer_ns(experiment: Experiment, tokens: Ints) -> Ints:
    """Time to send each prompt's KV over the link inside a node, every GPU its own share."""
    group = experiment.cluster.groups[0]
    capacity = kv_capacity(experiment.model, experiment.plan, group.gpu, experiment.settings)
    a_token = capacity.block_bytes / experiment.settings.block_tokens
    send = Collective(name="kv", kind="p2p", bytes_per_token=a_token, num_gpus=2, local_gpus=2)
    times = collective_time(send, tokens.astype(np.float64), group.gpu).time_s
    moved: Ints = np.rint(times * 1e9).astype(np.int64)
    return moved
