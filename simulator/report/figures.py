"""Figures of one run: latency distributions, latency and occupancy over time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simulator.experiment import Experiment
from simulator.fragmentation import PARTS, kv_parts
from simulator.frames import request_frame, timeseries
from simulator.itl import token_log
from simulator.recorder import Result
from simulator.report import style
from simulator.report.figures_ops import iteration_figure, roofline_figure, sampled

if TYPE_CHECKING:  # matplotlib and pandas load only when a figure is drawn
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = np.typing.NDArray[np.float64]
NUM_BUCKETS = 200  # points of a time series: one for each few pixels
NUM_MOMENTS = 400
KV_PARTS = {
    "used": ("tokens", style.BLUE),
    "reserved": ("reserved", style.SKY),
    "internal": ("internal waste", style.VERMILION),
    "external": ("external waste", style.YELLOW),
    "free": ("free", "#E4E4E4"),
}
LATENCIES = ("TTFT", "TPOT", "ITL", "E2E")


def save_figures(folder: str | Path, experiment: Experiment, result: Result) -> list[Path]:
    """Write the figures of a run into `folder`, replacing older ones; returns the paths.

    latency.png (distributions), latency_over_time.png, occupancy.png, memory.png (what KV memory
    holds), iteration_time.png (where an iteration's time goes, op by op) and roofline.png.

    Raises:
        ConfigError: the folder cannot be written.
    """
    samples = sampled(experiment, result)
    figures = {
        "latency.png": latency_figure(result),
        "latency_over_time.png": latency_over_time_figure(result),
        "occupancy.png": occupancy_figure(result),
        "memory.png": memory_figure(result),
        "iteration_time.png": iteration_figure(samples),
        "roofline.png": roofline_figure(experiment, samples),
    }
    return style.save(folder, figures)


def latency_figure(result: Result) -> Figure:
    """Cumulative distributions of TTFT, TPOT, ITL and E2E over completed requests."""
    figure, axes = style.new_figure(4.8, 2, 2)
    done = _completed(result)
    for one, name in zip(axes, LATENCIES, strict=True):
        if name == "ITL":
            gaps_ns, counts = token_log(result).gaps()
            _draw_cdf(one, gaps_ns / 1e9, counts, name)
        else:
            values = done[f"{name.lower()}_s"].dropna().to_numpy()
            _draw_cdf(one, values, np.ones(len(values), dtype=np.int64), name)
    for one in axes[::2]:
        style.label(one, ylabel="share (%)")
    return figure


def latency_over_time_figure(result: Result) -> Figure:
    """TTFT, TPOT and E2E of each request at the moment it was sent."""
    figure, axes = style.new_figure(5.4, 3, 1, sharex=True)
    done = _completed(result)
    for one, name, colour in zip(axes, ("TTFT", "TPOT", "E2E"), style.COLOURS, strict=False):
        values = done[f"{name.lower()}_s"]
        scale, unit = style.scaled(values.max() if values.notna().any() else 0.0)
        one.scatter(done["sent_s"], values * scale, s=6, linewidths=0, alpha=0.5, color=colour)
        style.label(one, ylabel=f"{name} ({unit})")
        one.set_ylim(bottom=0)
        if not values.notna().any():
            style.empty(one)
    style.label(axes[-1], xlabel="sent at (s)")
    return figure


def occupancy_figure(result: Result) -> Figure:
    """Output tokens/s, requests running and waiting, and KV blocks in use, over time."""
    figure, axes = style.new_figure(5.8, 3, 1, sharex=True)
    duration_s = max(result.end_ns, int(result.sent_ns.max()), 1) / 1e9
    frame = timeseries(result, duration_s / NUM_BUCKETS)
    tokens, requests, memory = axes
    _steps(tokens, frame, "output_tokens_per_s", 0)
    style.label(tokens, ylabel="tokens/s")
    for number, name in enumerate(("running", "waiting")):
        _steps(requests, frame, name, number, label=name)
    style.label(requests, ylabel="requests" if result.samples is None else "answers")
    style.legend(requests, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.98))
    frame["kv_percent"] = 100 * frame["kv_utilisation"]
    _steps(memory, frame, "kv_percent", 2)
    style.label(memory, ylabel="KV blocks (%)", xlabel="simulated time (s)", xlim=(0, duration_s))
    for one in axes:
        one.set_ylim(bottom=0)
    return figure


def memory_figure(result: Result) -> Figure:
    """KV memory over time: tokens, slots set aside for later ones, waste of both kinds, free."""
    figure, (axes,) = style.new_figure(3.4)
    end_ns = max(result.end_ns, 1)
    parts = kv_parts(result, np.linspace(0, end_ns, NUM_MOMENTS).astype(np.int64))
    means = parts.means()
    names = [name for name in PARTS if means[name] > 0 or name in ("used", "free")]
    shares = [100 * getattr(parts, name) for name in names]
    texts = [f"{KV_PARTS[name][0]} {100 * means[name]:.3g} %" for name in names]
    colours = [KV_PARTS[name][1] for name in names]
    axes.stackplot(parts.time_ns / 1e9, shares, labels=texts, colors=colours, linewidth=0)
    # A pool that is hardly used would be a line at the bottom: what is free is cut off above.
    most = 100 - float(shares[names.index("free")].min())
    top = 100.0 if most > 60 else max(1.25 * most, 1e-3)
    kind = "pages" if result.pages_per_block != 1 else f"blocks of {result.block_tokens} tokens"
    title = f"{sum(result.num_blocks):,} {kind} (shares: means of the run)"
    style.label(axes, xlabel="simulated time (s)", ylabel="KV memory (%)", title=title)
    axes.set(xlim=(0, end_ns / 1e9), ylim=(0, top))
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=style.POINTS - 1)
    return figure


def _completed(result: Result) -> pd.DataFrame:
    frame = request_frame(result)
    return frame[frame["status"] == "completed"]


def _steps(axes: Axes, frame: pd.DataFrame, name: str, number: int, label: str = "") -> None:
    colour = style.COLOURS[number]
    axes.step(frame["time_s"], frame[name], where="post", color=colour, label=label, linewidth=1.2)


def _draw_cdf(
    axes: Axes, values_s: Floats, counts: np.typing.NDArray[np.int64], title: str
) -> None:
    """Share of `values_s`, each taken `counts` times, that is no larger; p50 and p99 are marked."""
    if len(values_s) == 0:
        style.label(axes, xlabel=f"{title} (s)", ylim=(0, 101))
        style.empty(axes, "no request")
        return
    order = np.argsort(values_s)
    scale, unit = style.scaled(float(values_s.max()))
    ranked, upto = values_s[order] * scale, np.cumsum(counts[order])
    share = 100 * upto / upto[-1]
    axes.step(ranked, share, where="post", color=style.BLUE)
    for percent, colour in ((50, style.GREEN), (99, style.VERMILION)):
        value = ranked[np.searchsorted(share, percent)]
        dashes = style.DASHES[1 + percent // 99]
        axes.axvline(value, color=colour, linestyle=dashes, label=f"p{percent} {value:.3g} {unit}")
    style.label(axes, xlabel=f"{title} ({unit})", ylim=(0, 101))
    axes.set_xlim(left=0)
    style.legend(axes, loc="lower right", handlelength=1.4, frameon=True, edgecolor="none")
