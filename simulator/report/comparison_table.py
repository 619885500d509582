"""The terminal table of a comparison: every metric of every arm against the baseline.

Takes a finished `Comparison` and decides nothing; verdicts are words, so that colour is never
needed to read them.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from simulator.comparison.metrics import Metric
from simulator.comparison.outcome import (
    BETTER,
    INFEASIBLE,
    LEVEL,
    PAIRED_REQUESTS,
    PAIRED_SEEDS,
    SAME,
    WORSE,
    Arm,
    Comparison,
)
from simulator.units import show_count, show_time

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WIDTH = 100
DASH = "–"
DRAWABLE = ("arrivals", "prompt lengths", "output lengths")
STYLES = {BETTER: "bold", WORSE: "bold"}


def print_comparison(console: Console, found: Comparison) -> None:
    """The differences and how they were found, at most 100 columns wide."""
    from rich.text import Text

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), width=WIDTH)

    others = found.others
    num = len(others)
    against = others[0].name if num == 1 else f"{num} others"
    line(f"{against} against {found.baseline.name} (the baseline)", "bold")
    console.print(_table(found), width=WIDTH)
    for text in method(found):
        line(text, "dim")
    for arm in found.arms:
        if arm.kind == INFEASIBLE:
            line(f"{arm.name}: infeasible: {arm.reason}", "yellow")
        elif arm.reason:
            line(f"{arm.name}: {arm.reason}", "yellow")
        for note in arm.notes:
            line(f"{arm.name}: {note}", "yellow")
    if found.interrupted:
        line(f"Interrupted: {len(found.seeds)} of {found.num_seeds} seeds finished", "yellow")


def method(found: Comparison) -> list[str]:
    """How the intervals were made, in sentences."""
    pairings = {arm.pairing for arm in found.others}
    level = f"{100 * LEVEL:.0f} %"
    lines = []
    if len(found.seeds) > 1:
        drawn = f", which draw {', '.join(found.drawn)}" if found.drawn else ""
        same = [part for part in DRAWABLE if part not in found.drawn] if found.drawn else []
        rest = f" ({' and '.join(same)} are the same in all)" if same else ""
        lines.append(
            f"{len(found.seeds)} seeds ({found.seeds[0]} to {found.seeds[-1]}){drawn}{rest}."
        )
    if PAIRED_SEEDS in pairings:
        lines.append(
            "Under each seed equal requests met every experiment: paired by seed, "
            f"{level} Student's t intervals."
        )
    if PAIRED_REQUESTS in pairings:
        why = "Seeds draw nothing here" if found.num_seeds > 1 else "One seed"
        lines.append(
            f"{why}: one run each, paired by request, {level} intervals from circular blocks of "
            "requests, as neighbours queue together; none for figures of a whole run."
        )
    if found.num_compared > 1:
        lines.append(
            f"Intervals of a metric hold together for {found.num_compared} experiments "
            "(Bonferroni); they are not adjusted over metrics."
        )
    times = found.narrowing()
    if times:
        lines.append(
            f"Pairing made intervals {statistics.median(times):.3g} times narrower than unpaired "
            f"ones (median of {len(times)}; {times[0]:.3g} to {times[-1]:.3g})."
        )
    return lines


def _table(found: Comparison) -> Table:
    from rich import box
    from rich.table import Table

    others = found.others
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        expand=True,
        header_style="bold",
    )
    table.add_column("", no_wrap=True)
    table.add_column("baseline", justify="right", no_wrap=True)
    if len(others) > 1:
        table.add_column("experiment", overflow="fold")
    for heading in ("value", "change", f"{100 * LEVEL:.0f} % interval"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True, min_width=7)
    for metric in found.metrics:
        rows = _rows(metric, found)
        for number, row in enumerate(rows):
            is_last = number == len(rows) - 1
            base = ["", ""] if number else [metric.title, shown(metric, found.baseline)]
            name = row[:1] if len(others) > 1 else []
            style = STYLES.get(row[-1], "")
            table.add_row(
                *base, *name, *row[1:], style=style, end_section=is_last and len(others) > 1
            )
    return table


def _rows(metric: Metric, found: Comparison) -> list[list[str]]:
    """An arm each: name and cells; one row where none differs."""
    rows = [[arm.name, *_cells(metric, arm)] for arm in found.others]
    is_same = len(rows) > 1 and all(row[-1] == SAME for row in rows)
    return [["all", *rows[0][1:]]] if is_same else rows


def _cells(metric: Metric, arm: Arm) -> list[str]:
    """Value, change, interval, verdict."""
    found = arm.differences.get(metric.key)
    if found is None:
        return [shown(metric, arm), DASH, DASH, ""]
    unit = f" {found.unit}" if found.unit else ""
    ends = DASH
    if found.interval:
        ends = f"{signed(found.interval.low)} … {signed(found.interval.high)}"
    return [shown(metric, arm), f"{signed(found.change)}{unit}", ends, found.verdict]


def shown(metric: Metric, arm: Arm) -> str:
    """A value with its unit."""
    value = arm.values.get(metric.key)
    if value is None:
        return DASH
    if metric.unit == "ms":
        return show_time(value / 1e3) if value else "0 s"
    if metric.unit == "share":
        return f"{100 * value:.1f} %"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def signed(value: float) -> str:
    """Three figures and a sign."""
    if value == 0:
        return "0"
    if abs(value) >= 9999.5:
        return f"{'+' if value > 0 else '-'}{show_count(abs(value))}"
    if abs(value) >= 99.95:
        return f"{value:+,.0f}"
    return f"{value:+.1f}" if abs(value) >= 9.995 else f"{value:+.2f}"
