"""The forest plot of a comparison: every difference with its interval, against no difference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simulator.comparison.metrics import Metric
from simulator.comparison.outcome import LEVEL, Arm, Comparison
from simulator.report.style import (
    COLOURS,
    DOTS_PER_INCH,
    GREY,
    POINTS,
    empty,
    label,
    legend,
    new_figure,
)
from simulator.save import replacing
from simulator.units import show_count

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNDATED = {".png": "Software", ".svg": "Date", ".pdf": "CreationDate"}  # equal runs, equal bytes
MARKERS = "osD^vP*X"
ROW_IN, TALLEST_IN = 0.16, 12.0
WIDE = 25.0  # furthest over typical difference from which the axis is logarithmic beyond LINEAR
LINEAR = 10.0  # %


def save_comparison_figure(path: str | Path, found: Comparison) -> None:
    """Write `forest_figure` as PNG, SVG or PDF, by suffix.

    Raises:
        ConfigError: another suffix, or the file cannot be written.
    """
    from matplotlib import rc_context

    with replacing(path, tuple(UNDATED)) as place, rc_context({"svg.hashsalt": "headway"}):
        undated = {UNDATED[place.suffix]: None}
        forest_figure(found).savefig(place, dpi=DOTS_PER_INCH, metadata=undated)


def forest_figure(found: Comparison) -> Figure:
    """A row a metric, a mark an arm: filled where the interval leaves zero out, else hollow.

    Changes are in % of the baseline, those of shares in points. Metrics that do not differ in
    any arm are left out.
    """
    metrics = [metric for metric in found.metrics if _differs(found, metric)]
    others = found.others
    rows = len(metrics) * (len(others) + 0.7)
    figure, (axes,) = new_figure(min(TALLEST_IN, 1.5 + ROW_IN * rows + 0.2 * len(others)))
    if not metrics:
        empty(axes, "no difference")
        return figure
    reach: list[float] = []
    for number, arm in enumerate(others):
        for row, metric in enumerate(metrics):
            reach += _mark(axes, found, arm, metric, (number, row))
        axes.plot([], [], color=_colour(number), marker=_marker(number), label=arm.name)
    axes.axvline(0, color="black", linewidth=1)
    scale = _scale(axes, reach)
    axes.set_yticks(range(len(metrics)), [_title(metric) for metric in metrics])
    axes.set_ylim(len(metrics) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    for row in range(1, len(metrics)):
        axes.axhline(row - 0.5, color=GREY, linewidth=0.4, alpha=0.6)
    read = f"pt: points{scale}; filled: {100 * LEVEL:.0f} % interval leaves out 0"
    label(axes, xlabel=f"change from {found.baseline.name}, %\n{read}")
    legend(axes, loc="lower center", bbox_to_anchor=(0.4, 1.0), ncols=1 if _long(others) else 2)
    return figure


def _differs(found: Comparison, metric: Metric) -> bool:
    """True where some arm's difference can be drawn and is not zero."""
    gaps = [arm.differences.get(metric.key) for arm in found.others]
    return any(gap is not None and gap.change and gap.unit for gap in gaps)


def _mark(
    axes: Axes, found: Comparison, arm: Arm, metric: Metric, place: tuple[int, int]
) -> list[float]:
    """One difference; where it and its ends lie."""
    gap = arm.differences.get(metric.key)
    if gap is None:
        return []  # this arm does not have it
    number, row = place
    num = len(found.others)
    y = row + (0.7 * ((number + 0.5) / num - 0.5) if num > 1 else 0.0)
    middle, colour = gap.change, _colour(number)
    ends = [middle]
    if gap.interval:
        ends = [gap.interval.low, gap.interval.high]
        axes.plot(ends, [y, y], color=colour, linewidth=1.8, solid_capstyle="butt")
    is_clear = gap.interval is not None and gap.interval.excludes_zero
    axes.plot(
        [middle],
        [y],
        marker=_marker(number),
        color=colour,
        markerfacecolor=colour if is_clear else "white",
        markersize=6,
        markeredgewidth=1.4,
    )
    return [middle, *ends]


def _scale(axes: Axes, reach: list[float]) -> str:
    """Linear, or where a few changes dwarf the others logarithmic beyond 10 %; says which."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, SymmetricalLogLocator

    known = [abs(one) for one in reach if one]
    left, right = min(0.0, *reach), max(0.0, *reach)
    if max(known) <= WIDE * float(np.median(known)) or max(known) <= LINEAR:
        room = 0.04 * (right - left)
        axes.set_xlim(left - room, right + room)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        told = ""
    else:
        axes.set_xscale("symlog", linthresh=LINEAR, linscale=1.0)
        axes.set_xlim(2 * left - 1, 2 * right + 1)
        axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=LINEAR))
        told = f"; log beyond ±{LINEAR:.0f}"
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    return told


def _tick(value: float) -> str:
    sign = "+" if value > 0 else "-" if value < 0 else ""
    return f"{sign}{show_count(abs(value))}"


def _title(metric: Metric) -> str:
    return f"{metric.title}, pt" if metric.unit == "share" else metric.title


def _long(others: list[Arm]) -> bool:
    return len(others) == 1 or max(len(arm.name) for arm in others) > 60 * 11 // (2 * POINTS)


def _colour(number: int) -> str:
    return COLOURS[number % (len(COLOURS) - 2)]  # yellow and grey are faint on white


def _marker(number: int) -> str:
    return MARKERS[number % len(MARKERS)]
