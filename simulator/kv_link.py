"""Time to send KV pages from one replica to another: every GPU sends its own share."""

from __future__ import annotations

import numpy as np

from simulator.costs.collectives import collective_time
from simulator.experiment import Experiment
from simulator.memory import kv_capacity
from simulator.migration import CopyTime
from simulator.work import Collective


def copy_time(experiment: Experiment) -> CopyTime | None:
    """Of a router that moves requests; None where the router does not.

    Replicas fill the nodes in order; two of one node use the link inside it. The router's
    `link_bytes_per_s` takes the place of both links, without their latency.
    """
    stated: float | None = getattr(experiment.router, "link_bytes_per_s", None)
    if stated is None:
        return None
    plan, group = experiment.plan, experiment.cluster.groups[0]
    page_bytes = kv_capacity(experiment.model, plan, group.gpu, experiment.settings).block_bytes
    replicas_a_node = max(1, group.gpus_per_node // plan.gpus_per_replica)

    def copy_ns(source: int, target: int, num_pages: int) -> int:
        if stated:
            return round(num_pages * page_bytes / stated * 1e9)
        is_near = source // replicas_a_node == target // replicas_a_node
        send = Collective(
            name="kv",
            kind="p2p",
            bytes_per_token=page_bytes,
            num_gpus=2,
            local_gpus=2 if is_near else 1,
        )
        times = collective_time(send, np.array([float(num_pages)]), group.gpu).time_s
        return round(float(times[0]) * 1e9)

    return copy_ns
