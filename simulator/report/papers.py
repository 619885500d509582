"""Verdicts on published claims as tables and as a picture a system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from simulator.papers import Case, Picture, System, Verdict
from simulator.papers.verdict import DIRECTION, ERROR, MISSED, REPRODUCED
from simulator.report.style import GREEN, ORANGE, VERMILION, dash

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console

COLOURS = {REPRODUCED: "green", DIRECTION: "yellow", MISSED: "red", ERROR: "red"}
LOOKS = {  # colour and mark in a picture
    REPRODUCED: (GREEN, "o"),
    DIRECTION: (ORANGE, "^"),
    MISSED: (VERMILION, "s"),
    ERROR: (VERMILION, "s"),
}
DOTS_PER_INCH = 90


def print_systems(console: Console, systems: Sequence[System]) -> None:
    """What `headway reproduce` knows."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="")
    for name in ("system", "claims", "paper"):
        table.add_column(name, justify="right" if name == "claims" else "left")
    for system in systems:
        table.add_row(system.name, str(len(system.claims)), f"{system.title}, {system.paper}")
    console.print(table)


def print_verdicts(console: Console, verdicts: Sequence[Verdict]) -> None:
    """A row a claim, and the count of each verdict."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="", padding=(0, 2, 0, 0))
    table.add_column("system", no_wrap=True)
    table.add_column("claim", ratio=1)
    for name in ("ours", "95 % CI", "band"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for verdict in verdicts:
        claim, ci = verdict.claim, verdict.ci
        colour = COLOURS[verdict.verdict]
        note = f": {verdict.error}" if verdict.error else f" ({claim.source})"
        table.add_row(
            verdict.system,
            f"{claim.claim}{note}",
            shown(verdict.value),
            f"{shown(ci[0])}..{shown(ci[1])}" if ci else "",
            f"{shown(claim.low)}..{shown(claim.high)}" if claim.low < claim.high else "exact",
            f"[{colour}]{verdict.verdict}[/{colour}]",
        )
    console.print(table)
    counts = [f"{sum(v.verdict == name for v in verdicts)} {name}" for name in COLOURS]
    seeds = max((len(v.values) for v in verdicts), default=0)
    console.print(f"{', '.join(counts)}; up to {seeds} seeds")


def shown(value: float) -> str:
    """Three or four digits."""
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"


def draw(system: System, verdicts: Sequence[Verdict], quick: bool = False) -> None:
    """Write `picture.png` into the system's folder: the claims, and its own curves if any."""
    from matplotlib.figure import Figure

    make = getattr(system.module(), "picture", None)
    picture = make(Case(system.experiment, 0, quick)) if make else None
    rows = [verdict for verdict in verdicts if verdict.values]
    height = max(2.4, 0.42 * len(rows) + 1.1)
    figure = Figure(figsize=(10 if picture else 6.5, height), layout="constrained")
    axes = figure.subplots(1, 2 if picture else 1, squeeze=False)[0]
    _draw_bands(axes[0], rows)
    if picture is not None:
        _draw_picture(axes[1], picture)
    figure.savefig(system.folder / "picture.png", dpi=DOTS_PER_INCH, metadata={"Software": None})


def _draw_bands(axes: Axes, verdicts: Sequence[Verdict]) -> None:
    """Each claim on its own scale: its band is the grey bar, ours the dot with its interval."""
    for row, verdict in enumerate(verdicts):
        low, high = verdict.claim.low, verdict.claim.high
        middle = (low + high) / 2
        half = (high - low) / 2 or abs(middle) * 0.05 or 1.0

        def place(value: float, middle: float = middle, half: float = half) -> float:
            return min(3.0, max(-3.0, (value - middle) / half))

        axes.barh(row, 2, left=-1, height=0.7, color="0.88")
        colour, mark = LOOKS[verdict.verdict]
        if verdict.ci:
            axes.plot([place(end) for end in verdict.ci], [row, row], color=colour, lw=1.5)
        axes.plot(place(verdict.value), row, mark, color=colour, ms=5)
        text = f"{shown(verdict.value)} ({shown(low)}..{shown(high)})"
        axes.annotate(text, (3.15, row), va="center", fontsize=7, annotation_clip=False)
    axes.set_yticks(range(len(verdicts)), [v.claim.id for v in verdicts], fontsize=8)
    words = "accepted band (grey) and ours: in it ●, right direction ▲, neither ■"
    axes.set(xlim=(-3.1, 3.1), xlabel=words)
    axes.set_xticks([])
    axes.invert_yaxis()
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    axes.text(3.15, -0.9, "ours (band)", fontsize=7)


def _draw_picture(axes: Axes, picture: Picture) -> None:
    for number, line in enumerate(picture.lines):
        look = dash(number) | ({"linestyle": "--"} if line.dashed else {})
        axes.plot(line.x, line.y, label=line.label, lw=1.6, **look)
    axes.set(title=picture.title, xlabel=picture.x_label, ylabel=picture.y_label)
    if picture.log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize=8)
