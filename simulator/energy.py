"""Energy and money of a run.

The energy model is uncalibrated: a GPU draws its idle power always, and on top of that a share of
(TDP - idle) equal to how busy it is, which is the larger of its compute share and its memory share
of the time. Real GPUs at the memory roof draw less than TDP, clocks and voltage move with load, and
CPU, fans and network draw power too, so use it to compare plans and not to read a meter. Only the
plan's GPUs count, idle ones of the cluster do not.
"""

from __future__ import annotations

import numpy as np

from simulator.experiment import Experiment
from simulator.segments import SegmentTable
from simulator.utilisation import SegmentWork, replica_gpus


def energy_j(
    experiment: Experiment, segments: SegmentTable, work: SegmentWork, duration_s: float
) -> float:
    """Joules of the plan's GPUs over `duration_s`."""
    plan, gpus = experiment.plan, replica_gpus(experiment)
    idle_w = np.array([gpu.idle_w for gpu in gpus])
    extra_w = np.array([gpu.tdp_w for gpu in gpus]) - idle_w
    # A batch in flight is on one pipeline stage at a time: it can keep one stage's GPUs busy.
    most_s = plan.tp * segments.busy_ns / 1e9
    active_s = np.minimum(np.maximum(work.compute_s, work.memory_s), most_s)
    idle_j = float(idle_w.sum()) * plan.gpus_per_replica * duration_s
    return idle_j + float(np.dot(active_s, extra_w[segments.replica]))


def price_per_hour(experiment: Experiment) -> float:
    """US dollars an hour for the plan's GPUs, on demand."""
    per_replica = sum(gpu.price_per_hour for gpu in replica_gpus(experiment))
    return experiment.plan.gpus_per_replica * per_replica
