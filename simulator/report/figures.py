"""Figures of one run as PNG files: latency distributions, and occupancy over time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simulator.errors import ConfigError
from simulator.frames import request_frame, timeseries
from simulator.recorder import Result

if TYPE_CHECKING:  # matplotlib loads only when a figure is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NUM_BUCKETS = 200  # points of a time series: one for each few pixels
DOTS_PER_INCH = 150


def save_figures(folder: str | Path, result: Result) -> list[Path]:
    """Write latency.png and occupancy.png into `folder`, replacing older ones; returns the paths.

    Raises:
        ConfigError: the folder cannot be written.
    """
    place = Path(folder)
    figures = {"latency.png": latency_figure(result), "occupancy.png": occupancy_figure(result)}
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(place / name, dpi=DOTS_PER_INCH, metadata={"Software": None})
    except OSError as error:
        raise ConfigError(f"{place}: cannot be written ({error.strerror or error})") from error
    return [place / name for name in figures]


def latency_figure(result: Result) -> Figure:
    """Cumulative distributions of TTFT, TPOT and E2E over completed requests."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    frame = request_frame(result)
    done = frame[frame["status"] == "completed"]
    for axes, name in zip(figure.subplots(1, 3), ("ttft", "tpot", "e2e"), strict=True):
        _draw_cdf(axes, done[f"{name}_s"].dropna().to_numpy(), name.upper())
    return figure


def occupancy_figure(result: Result) -> Figure:
    """KV blocks in use, and requests running and waiting, over time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.8), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    duration_s = max(result.end_ns, int(result.sent_ns.max()), 1) / 1e9
    frame = timeseries(result, duration_s / NUM_BUCKETS)
    upper.step(frame["time_s"], 100 * frame["kv_utilisation"], where="post", color="tab:green")
    upper.set(ylabel="KV blocks in use (%)", ylim=(0, 105))
    for name, colour in (("running", "tab:blue"), ("waiting", "tab:orange")):
        lower.step(frame["time_s"], frame[name], where="post", label=name, color=colour)
    lower.set(xlabel="simulated time (s)", ylabel="requests", xlim=(0, duration_s))
    lower.set_ylim(bottom=0)
    lower.legend(frameon=False)
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
    return figure


def _draw_cdf(axes: Axes, values_s: np.typing.NDArray[np.float64], title: str) -> None:
    axes.set(title=title, ylim=(0, 1), ylabel="share of requests")
    axes.grid(alpha=0.3)
    if len(values_s) == 0:
        axes.text(0.5, 0.5, "no request", ha="center", va="center", transform=axes.transAxes)
        return
    scale, unit = (1e3, "ms") if values_s.max() < 1 else (1.0, "s")
    ranked = np.sort(values_s) * scale
    axes.step(ranked, np.arange(1, len(ranked) + 1) / len(ranked), where="post")
    axes.set_xlabel(f"{title} ({unit})")
    axes.set_xlim(left=0)
