"""Nimble, ahead-of-time scheduling (NeurIPS'20): a recorded run replayed without launches.

Eager, an iteration takes the longer of the GPU's time and the host's launches; replayed, the GPU's
time alone, at the recorded size above it. Streams in parallel are not modelled.
"""

from __future__ import annotations

from simulator.costs.price import price_iteration
from simulator.costs.roofline import compile_cost
from simulator.papers.case import Case, Line, Measure, Picture

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXT = 1024


def iteration_s(case: Case, batch: int, graphs: bool) -> float:
    """Time of one decode iteration."""
    experiment = case.experiment({"engine.cuda_graphs": graphs})
    cost = case.once(
        f"cost {graphs}",
        lambda: compile_cost(
            experiment.model, experiment.plan, experiment.cluster.groups[0], experiment.settings
        ),
    )
    return sum(price_iteration(cost, [], [(batch, CONTEXT)]))


def _gain(batch: int) -> Measure:
    def gain(case: Case) -> float:
        """Eager over replayed."""
        return iteration_s(case, batch, False) / iteration_s(case, batch, True)

    return gain


def idle_share(case: Case) -> float:
    """Share of an eager iteration at batch 1 in which the GPU waits for launches."""
    return 1 - iteration_s(case, 1, True) / iteration_s(case, 1, False)


def end_to_end(case: Case) -> float:
    """Duration of the whole run, one request at a time, eager over replayed."""
    ends = [case.simulate({"engine.cuda_graphs": graphs}).end_ns for graphs in (False, True)]
    return ends[0] / ends[1]


MEASURES: dict[str, Measure] = {
    "gain_1": _gain(1),
    "gain_256": _gain(256),
    "idle_share": idle_share,
    "end_to_end": end_to_end,
}


def picture(case: Case) -> Picture:
    """Decode iterations over the batch."""
    return Picture(
        title="Llama-3.1-8B on an H100, decode at context 1,024",
        x_label="sequences",
        y_label="ms an iteration",
        lines=tuple(
            Line(
                label=label,
                x=tuple(float(batch) for batch in BATCHES),
                y=tuple(1e3 * iteration_s(case, batch, graphs) for batch in BATCHES),
            )
            for label, graphs in (("eager", False), ("replayed", True))
        ),
    )
