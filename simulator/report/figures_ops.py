"""Figures of what iterations are made of: their time op by op, and each op under the roofline.

Iterations are sampled evenly over the time of the run and priced again op by op, by the functions
that priced the run. The log keeps sums over a batch, so its chunks and contexts are taken as equal:
decodes of unequal contexts take some per cent longer than is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from simulator.costs.explain import ExplainedOp, explain
from simulator.experiment import Experiment
from simulator.recorder import LaneResult, Result
from simulator.report import style
from simulator.spec import WEIGHT_FORMATS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_SAMPLES = 60
NUM_OPS = 7  # of the stack; the rest is one band
TERA = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One iteration of the run, op by op."""

    time_s: float
    has_prefill: bool
    ops: tuple[ExplainedOp, ...]


def sampled(experiment: Experiment, result: Result, num_samples: int = NUM_SAMPLES) -> list[Sample]:
    """The iterations that the first lane runs at moments evenly spread over the run."""
    lanes = [lane for lane in result.lanes if len(lane.end_ns)]
    if not lanes:
        return []
    lane, found = lanes[0], []
    after = np.cumsum(lane.segments["iterations"])
    for moment in np.linspace(0, int(lane.end_ns[-1]), num_samples, endpoint=False):
        index = int(np.searchsorted(lane.end_ns, moment, side="right"))
        segment = int(np.searchsorted(after, index, side="right"))
        prefill, decode = batch_of(lane, segment, index)
        group = experiment.cluster.groups[0]
        explained = explain(
            experiment.model, experiment.plan, group, experiment.settings, prefill, decode
        )
        time_s = float(moment) / 1e9
        found.append(Sample(time_s=time_s, has_prefill=bool(prefill), ops=explained.ops))
    return found


def batch_of(
    lane: LaneResult, segment: int, index: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Chunks (tokens, context) and decodes (sequences, context) of iteration `index` of a lane."""
    row = {name: int(column[segment]) for name, column in lane.segments.items()}
    first = int(lane.segments["iterations"][:segment].sum())
    prefill, decode = [], []
    if row["prefill_tokens"]:
        num, tokens = row["num_prefill"], row["prefill_tokens"]
        sizes = [tokens // num + (number < tokens % num) for number in range(num)]
        mean = tokens / num
        context = max(0, round(row["prefill_pairs"] / tokens - (mean + 1) / 2))
        prefill = [(size, context) for size in sizes if size]
    if row["num_decode"]:
        tokens = row["decode_kv_tokens"] + (index - first) * row["num_decode"]
        decode = [(row["num_decode"], max(1, round(tokens / row["num_decode"])))]
    return prefill, decode


def iteration_figure(samples: list[Sample]) -> Figure:
    """Time of the sampled iterations, stacked by op; all stages of a pipeline together."""
    figure, (axes,) = style.new_figure(4.0)
    if not samples:
        style.empty(axes)
        return figure
    totals: dict[str, float] = {}
    for sample in samples:
        for op in sample.ops:
            totals[op.name] = totals.get(op.name, 0.0) + op.time_s
    largest = sorted(totals, key=lambda name: -totals[name])[:NUM_OPS]
    times_s = [sample.time_s for sample in samples]
    width = 0.85 * (times_s[1] - times_s[0] if len(times_s) > 1 else 1.0)
    bottom = np.zeros(len(samples))
    for number, name in enumerate([*largest, "other"]):
        heights = np.array([1e3 * _time_of(sample, name, largest) for sample in samples])
        if heights.any():
            colour = style.COLOURS[number]
            text = name.replace("_", " ")
            axes.bar(times_s, heights, width, bottom, align="edge", color=colour, label=text)
        bottom += heights
    style.label(axes, xlabel="simulated time (s)", ylabel="time of the iteration (ms)")
    axes.set_xlim(left=0)
    style.legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=1)
    return figure


def _time_of(sample: Sample, name: str, named: list[str]) -> float:
    return sum(
        op.time_s
        for op in sample.ops
        if op.name == name or (name == "other" and op.name not in named)
    )


def roofline_figure(experiment: Experiment, samples: list[Sample]) -> Figure:
    """FLOP/s of each op against its FLOP a byte, where decodes run alone and with prefill."""
    figure, (axes,) = style.new_figure(5.2)
    gpu = experiment.cluster.groups[0].gpu
    formats = dict.fromkeys(("bf16", WEIGHT_FORMATS[experiment.model.weight_format].compute))
    top = max(gpu.flops_per_s[name] for name in formats if name in gpu.flops_per_s)
    intensity = np.geomspace(0.3, 1e4, 200)
    for number, name in enumerate(name for name in formats if name in gpu.flops_per_s):
        roof = np.minimum(gpu.flops_per_s[name], intensity * gpu.memory_bytes_per_s)
        axes.plot(
            intensity,
            roof / TERA,
            color="black",
            linewidth=1,
            linestyle=style.DASHES[number],
            label=f"{gpu.name} peak, {name}",
        )
    names = list(dict.fromkeys(op.name for sample in samples for op in sample.ops if op.flops))
    marks = {"o": "decode alone", "^": "with prefill"}
    for number, name in enumerate(names):
        colour = style.COLOURS[number % len(style.COLOURS)]
        axes.scatter([], [], marker="s", s=44, color=colour, label=name.replace("_", " "))
        for marker in marks:
            mine = [sample for sample in samples if sample.has_prefill is (marker == "^")]
            place = _place(mine, name)
            if place is not None:
                looks: dict[str, Any] = {"color": colour, "edgecolor": "black", "linewidth": 0.6}
                axes.scatter(*place, s=50, marker=marker, zorder=3, **looks)
    for marker, text in marks.items():
        axes.scatter([], [], marker=marker, s=44, color="white", edgecolor="black", label=text)
    axes.set(xscale="log", yscale="log", ylim=(top / TERA * 1e-3, top / TERA * 2))
    style.label(axes, xlabel="FLOP per byte of memory traffic", ylabel="TFLOP/s of a GPU")
    style.legend(axes, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, columnspacing=1)
    return figure


def _place(samples: list[Sample], name: str) -> tuple[float, float] | None:
    """FLOP a byte, and TFLOP/s, of an op over these iterations."""
    ops = [op for sample in samples for op in sample.ops if op.name == name and op.flops]
    moved, flops = sum(op.memory_bytes for op in ops), sum(op.flops for op in ops)
    if not ops or not moved:
        return None
    return flops / moved, flops / sum(op.time_s for op in ops) / TERA
