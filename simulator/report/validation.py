"""What `headway validate` shows: errors per run and in groups, and predicted against measured.

Takes the outcomes of `simulator.validation` and computes nothing but their summaries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simulator.errors import ConfigError
from simulator.report.style import BLUE, GREEN, GREY, ORANGE, VERMILION
from simulator.units import show_count, show_time
from simulator.validation.explain import Explanation
from simulator.validation.rows import LOAD_LEVELS, METRICS
from simulator.validation.score import Outcome, Validation, summary_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table

COLUMNS = ("ttft_mean", "tpot_mean", "itl_mean", "e2e_mean", "e2e_p99", "output_throughput")
HEADINGS = ("TTFT", "TPOT", "ITL", "E2E", "E2E p99", "tok/s")
GROUPS = ("load_level", "model", "gpu", "engine")
LOOKS = {  # colour and mark of a level of load
    "low": (BLUE, "o"),
    "medium": (GREEN, "s"),
    "high": (ORANGE, "^"),
    "saturated": (VERMILION, "D"),
    "not stated": (GREY, "X"),
}
WORST = 20  # runs listed


def print_validation(console: Console, found: Validation, everything: bool = False) -> None:
    """Groups first, then single runs (the worst, or all), then what could not be run."""
    from rich.text import Text

    console.print(Text(f"{len(found.runs)} runs simulated, {len(found.skipped)} skipped"))
    if found.runs:
        console.print(_group_table(found.runs))
        console.print(_run_table(found.runs, everything))
    for note, runs in _notes(found.runs).items():
        console.print(Text(f"assumed, {runs} runs: {note}", style="dim"))
    for run_id, reason in found.skipped.items():
        console.print(Text(f"skipped {run_id}: {reason}", style="yellow"))


def print_side_by_side(console: Console, found: Validation) -> None:
    """Each run's statistics, measured and simulated, and the error."""
    from rich.text import Text

    for run in found.runs:
        console.print(Text(run.run_id, style="bold"))
        console.print(_side_by_side(run))
    for note, runs in _notes(found.runs).items():
        which = "" if runs == len(found.runs) else f", {runs} runs"
        console.print(Text(f"assumed{which}: {note}", style="dim"))
    for run_id, reason in found.skipped.items():
        console.print(Text(f"skipped {run_id}: {reason}", style="yellow"))


def _side_by_side(run: Outcome) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True, min_width=12)
    for name in ("measured", "simulated", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, error in run.error.items():
        measured, predicted = run.measured[name], run.predicted[name]
        metric, _, statistic = name.partition("_")
        if metric in METRICS:
            cells = [show_time(value / 1e3) for value in (measured, predicted)]
            title = f"{metric.upper()} {statistic}"
        else:
            cells = [show_count(value) for value in (measured, predicted)]
            title = {"output_throughput": "tok/s", "kv_blocks": "KV blocks"}[name]
        table.add_row(title, *cells, f"{error:+.1f} %")
    return table


def _notes(runs: Sequence[Outcome]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for run in runs:
        for note in run.notes:
            counts[note] = counts.get(note, 0) + 1
    return counts


def _group_table(runs: Sequence[Outcome]) -> Table:
    """Mean absolute error and bias of each group."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        box=SIMPLE_HEAD,
        title="mean absolute error and bias, %: of means, p99 and output tokens a second",
        title_justify="left",
        pad_edge=False,
    )
    table.add_column("", no_wrap=True, min_width=14)
    table.add_column("runs", justify="right", no_wrap=True)
    for name in HEADINGS:
        table.add_column(name, justify="right", no_wrap=True)
    for title, group in _groups(runs):
        style = "bold" if title == "all" else ""
        table.add_row(title, str(len(group)), *(_cell(group, c) for c in COLUMNS), style=style)
    return table


def _groups(runs: Sequence[Outcome]) -> list[tuple[str, list[Outcome]]]:
    found = [("all", list(runs))]
    for label in GROUPS:
        names = {run.labels[label] for run in runs}
        ranked = [level for level in LOAD_LEVELS if level in names]
        for name in (*ranked, *sorted(names - set(ranked))):
            found.append((name, [run for run in runs if run.labels[label] == name]))
    return found


def _cell(group: Sequence[Outcome], name: str) -> str:
    summary = summary_of(group, name)
    if not summary["n"]:
        return "–"
    return f"{_short(summary['mape'])} {summary['bias']:+.0f}"


def _short(value: float | int | None) -> str:
    number = float(value or 0.0)
    return f"{number:.1f}" if number < 99.95 else f"{number:.0f}"


def _run_table(runs: Sequence[Outcome], everything: bool) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    def size(run: Outcome) -> float:
        errors = [abs(run.error[name]) for name in COLUMNS if name in run.error]
        return max(errors, default=0.0)

    shown = list(runs) if everything else sorted(runs, key=size, reverse=True)[:WORST]
    title = "error of each run, %" if everything else f"the {len(shown)} runs furthest off, %"
    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
    table.add_column("run", overflow="fold", max_width=46)
    table.add_column("load")
    for name in HEADINGS:
        table.add_column(name, justify="right", no_wrap=True)
    for run in shown:
        errors = (f"{run.error[c]:+.1f}" if c in run.error else "–" for c in COLUMNS)
        table.add_row(run.run_id, run.labels["load_level"], *errors)
    return table


def save_validation_figure(path: str | Path, runs: Sequence[Outcome]) -> None:
    """Write `validation_figure` as PNG, SVG or PDF, by suffix.

    Raises:
        ConfigError: no run states a latency, or the file cannot be written.
    """
    figure = validation_figure(runs)
    try:
        figure.savefig(path, dpi=150, metadata={"Software": None})
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be written ({error})") from None


def validation_figure(runs: Sequence[Outcome]) -> Figure:
    """Predicted against measured, one panel a metric, on logarithmic axes.

    Raises:
        ConfigError: no run states a latency.
    """
    from matplotlib.figure import Figure

    metrics = {"ttft_mean": "TTFT", "tpot_mean": "TPOT", "e2e_mean": "E2E"}
    known = {name: text for name, text in metrics.items() if summary_of(runs, name)["n"]}
    if not known:
        raise ConfigError("--figure: no run states a latency to draw")
    figure = Figure(figsize=(3.6 * len(known), 3.7), layout="constrained")
    axes = figure.subplots(1, len(known), squeeze=False)[0]
    for axis, (name, text) in zip(axes, known.items(), strict=True):
        _scatter(axis, runs, name, text)
    axes[0].legend(fontsize=8, loc="upper left", frameon=False)
    return figure


def _scatter(axis: Axes, runs: Sequence[Outcome], name: str, text: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    mine = [run for run in runs if name in run.error]
    for level, (colour, mark) in LOOKS.items():
        group = [run for run in mine if run.labels["load_level"] == level]
        if group:
            axis.scatter(
                [run.measured[name] for run in group],
                [run.predicted[name] for run in group],
                s=18,
                marker=mark,
                alpha=0.8,
                linewidths=0,
                color=colour,
                label=level,
            )
    values = [run.measured[name] for run in mine] + [run.predicted[name] for run in mine]
    ends = (min(values) / 1.3, max(values) * 1.3)
    axis.plot(ends, ends, color="black", linewidth=0.8)
    axis.fill_between(
        ends, [0.9 * v for v in ends], [1.1 * v for v in ends], color="black", alpha=0.08, lw=0
    )
    axis.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    decades = math.log10(ends[1] / ends[0])
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades < 2.5 else (1.0,)))
        side.set_major_formatter(FuncFormatter(lambda value, _: show_time(value / 1e3)))
        side.set_minor_formatter(NullFormatter())
    axis.set_xlabel(f"measured {text}")
    axis.set_ylabel(f"predicted {text}")
    axis.set_title(f"{show_count(len(mine))} runs, band: within 10 %", fontsize=9)
    axis.tick_params(labelsize=8.5)
    axis.set_aspect("equal")


def print_explanation(console: Console, run_id: str, found: Explanation) -> None:
    """The gap of one run, cause by cause."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    names = list(found.gap)
    console.print(Text(f"{run_id}: prediction against measurement, %", style="bold"))
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("cause")
    table.add_column("tried")
    table.add_column("steps", justify="right")
    for name in names:
        table.add_column(name.removesuffix("_mean").upper(), justify="right")
    table.add_row("gap", "", "", *(f"{found.gap[n]:+.1f}" for n in names), style="bold")
    for cause in found.causes:
        cells = (f"{cause.share[n]:+.1f}" for n in names)
        table.add_row(cause.name, cause.step, f"{cause.needed:+.2f}", *cells)
    table.add_row("left over", "", "", *(f"{found.left_over[n]:+.1f}" for n in names), style="dim")
    console.print(table)
    console.print(
        Text(
            "Each row: how much of the gap that cause explains, if so many of its steps were "
            "missing. They are the smallest steps that together fit the run; one run cannot tell "
            "causes of like effect apart.",
            style="dim",
        )
    )
