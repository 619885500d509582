"""A search for people: headline, ranked plans, refused plans by reason, Pareto frontier.

Takes a finished `SearchOutcome` and decides nothing; a metric that is not defined is a dash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulator.search.objective import GOODPUT, OBJECTIVES, STATISTICS, show_objective
from simulator.search.outcome import (
    BUG,
    CRASHED,
    INFEASIBLE,
    NOT_RUN,
    PRUNED,
    PlanRecord,
    SearchOutcome,
)
from simulator.units import show_time

if TYPE_CHECKING:  # loaded only where something is printed or drawn
    from matplotlib.figure import Figure
    from rich.console import Console
    from rich.table import Table

NARROW, WIDE = 80, 100
MAX_ROWS = 20
MAX_REASONS = 5  # of one kind
MAX_LABELS = 4  # of the plans that share a reason
PLOT_COLUMNS, PLOT_ROWS = 60, 12
DASH = "–"
X, Y = "output_tokens_per_s_per_user", "output_tokens_per_s_per_gpu"


@dataclass(frozen=True, slots=True)
class Column:
    """One metric of the ranked table."""

    heading: str
    show: Callable[[PlanRecord], str]
    only_wide: bool = False


def print_outcome(console: Console, outcome: SearchOutcome, *, max_rows: int = MAX_ROWS) -> None:
    """Print the outcome, 80 to 100 columns wide as the console allows."""
    from rich.text import Text

    width = max(NARROW, min(WIDE, console.width))

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), width=width)

    for record in outcome.bugs:
        line(f"BUG in {record.label}: {record.reason}", "bold red")
    line(_subject(outcome))
    line(_headline(outcome), "bold" if outcome.best else "bold red")
    if outcome.heuristic is not None and outcome.best is not None:
        line(_against_heuristic(outcome, outcome.heuristic))
    ranked = [record for record in outcome.records if record.rank is not None]
    if ranked:
        console.print(_table(outcome, ranked[:max_rows], width), width=width)
    if len(ranked) > max_rows:
        line(f"… and {len(ranked) - max_rows} more", "dim")
    for text, style in _refused(outcome):
        line(text, style)
    if outcome.best is not None:
        # Unwrapped, so that it can be copied.
        console.print(Text(outcome.command, style="cyan"), soft_wrap=True)
        if outcome.command_note:
            line(outcome.command_note, "dim")
        line(f"costs: {outcome.best.metrics.get('cost_tables') or 'not stated'}", "dim")


def _subject(outcome: SearchOutcome) -> str:
    counts = outcome.counts()
    parts = [f"{counts[name]} {name}" for name in ("infeasible", "pruned", "crashed", "not_run")]
    shown = [part.replace("_", " ") for part in parts if not part.startswith("0 ")]
    considered = f"{counts['considered']} plans: {counts['simulated']} simulated"
    return (
        f"{outcome.model} on {outcome.cluster}, {outcome.num_requests:,} requests of "
        f"{outcome.workload}. {', '.join([considered, *shown])} in {outcome.wall_s:.1f} s"
    )


def _headline(outcome: SearchOutcome) -> str:
    goal = OBJECTIVES[outcome.objective]
    if outcome.best is None:
        what = "holds the SLOs" if outcome.slo.is_set else "can serve this"
        return f"No plan {what}" + (" yet: interrupted" if outcome.interrupted else "")
    statistic = f"{STATISTICS[outcome.objective_statistic]} " if "{}" in goal.metric else ""
    best = "Best so far, interrupted" if outcome.interrupted else "Best"
    return f"{best}: {outcome.best.label}, {statistic}{goal.title} {_value(outcome, outcome.best)}"


def _against_heuristic(outcome: SearchOutcome, rule: PlanRecord) -> str:
    text = f"Heuristic (TP inside a node, PP across nodes, DP for the rest): {rule.label}"
    if rule is outcome.best:
        return f"{text}, which is the best"
    if not rule.metrics:
        return f"{text}: {rule.reason or 'not simulated'}"
    times = outcome.speedup_over_heuristic
    if times is None:
        better = ", which misses what is asked"
    else:
        better = f", {times:.2f}x worse" if times >= 1.01 else ", within 1 % of the best"
    return f"{text}, {_value(outcome, rule)}{better}"


def _value(outcome: SearchOutcome, record: PlanRecord) -> str:
    """The objective of a plan as people read it."""
    value = record.metrics.get(outcome.metric)
    return DASH if value is None else show_objective(value, outcome.objective)


def _milliseconds(key: str) -> Callable[[PlanRecord], str]:
    def show(record: PlanRecord) -> str:
        value = record.metrics.get(key)
        return DASH if value is None else show_time(value / 1000)

    return show


def _plain(key: str, form: str) -> Callable[[PlanRecord], str]:
    def show(record: PlanRecord) -> str:
        value = record.metrics.get(key)
        return DASH if value is None else format(value, form)

    return show


def _columns(outcome: SearchOutcome, width: int) -> list[Column]:
    columns = [
        Column("TTFT", _milliseconds("mean_ttft_ms")),
        Column("p99", _milliseconds("p99_ttft_ms")),
        Column("TPOT", _milliseconds("mean_tpot_ms")),
        Column("E2E", _milliseconds("mean_e2el_ms")),
        Column("tok/s\n/GPU", _plain(Y, ",.0f")),
    ]
    if outcome.slo.is_set:
        columns.append(Column("SLO", _plain("slo_attainment", ".1%")))
    if outcome.objective == GOODPUT:
        columns.insert(0, Column("req/s", _plain("goodput_rate_per_s", ".3g")))
    columns.append(Column("$/M\nout", _plain("usd_per_million_output_tokens", ".2f"), True))
    return [column for column in columns if width >= WIDE or not column.only_wide]


def _table(outcome: SearchOutcome, records: Sequence[PlanRecord], width: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = _columns(outcome, width)
    sizes = {record.candidate.plan.num_gpus for record in records}
    if len(sizes) > 1:
        columns.insert(0, Column("GPUs", lambda record: str(record.candidate.plan.num_gpus)))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), expand=True)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("plan", min_width=12)
    for column in columns:
        table.add_column(column.heading, justify="right", no_wrap=True)
    table.add_column("why it loses", min_width=14)
    for record in records:
        cells = [
            str(record.rank),
            record.label,
            *(column.show(record) for column in columns),
            record.why,
        ]
        style = "bold green" if record is outcome.best else ""
        table.add_row(*map(Text, cells), style=style)
    return table


def _refused(outcome: SearchOutcome) -> list[tuple[str, str]]:
    """Lines on the plans without a rank, those of one reason together."""
    lines = []
    for status, word, style in (
        (CRASHED, "crashed", "red"),
        (BUG, "bug", "red"),
        (INFEASIBLE, "infeasible", ""),
        (PRUNED, "pruned", "dim"),
        (NOT_RUN, "not run", "yellow"),
    ):
        groups: dict[str, list[str]] = {}
        for record in outcome.records:
            if record.status == status:
                reason = "cannot beat the best" if status == PRUNED else record.reason
                groups.setdefault(reason, []).append(record.label)
        for reason, labels in list(groups.items())[:MAX_REASONS]:
            more = f" and {len(labels) - MAX_LABELS} more" if len(labels) > MAX_LABELS else ""
            names = ", ".join(labels[:MAX_LABELS]) + more
            lines.append((f"{word}: {names}" + (f": {reason}" if reason else ""), style))
        if len(groups) > MAX_REASONS:
            rest = sum(len(labels) for labels in list(groups.values())[MAX_REASONS:])
            lines.append((f"{word}: {rest} plans more", style))
    return lines


def pareto_text(outcome: SearchOutcome) -> str:
    """Scatter of the simulated plans in characters: o a plan, * on the Pareto frontier."""
    points = _points(outcome.records)
    if not points:
        return ""
    right = max(x for x, _, _ in points) or 1.0
    top = max(y for _, y, _ in points) or 1.0
    grid = [[" "] * PLOT_COLUMNS for _ in range(PLOT_ROWS)]
    for x, y, record in sorted(points, key=lambda point: point[2] in outcome.pareto):
        column = round(x / right * (PLOT_COLUMNS - 1))
        row = PLOT_ROWS - 1 - round(y / top * (PLOT_ROWS - 1))
        grid[row][column] = "*" if record in outcome.pareto else "o"
    lines = [f"tok/s/GPU, up to {top:,.0f}", *("│" + "".join(row).rstrip() for row in grid)]
    return "\n".join([*lines, "└" + "─" * PLOT_COLUMNS, f" tok/s a user sees, up to {right:,.0f}"])


def figure(outcome: SearchOutcome) -> Figure:
    """Throughput a GPU gives against the speed a user sees, with the Pareto frontier."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(7, 4.5), layout="constrained")
    axes = drawn.subplots()
    points = _points(outcome.records)
    axes.scatter([x for x, _, _ in points], [y for _, y, _ in points], s=18, color="0.7")
    frontier = _points(outcome.pareto)
    axes.plot([x for x, _, _ in frontier], [y for _, y, _ in frontier], "o-", color="tab:blue")
    for x, y, record in frontier:
        axes.annotate(record.label, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set(xlabel="output tokens/s a user sees", ylabel="output tokens/s/GPU")
    axes.set(title=f"{outcome.model} on {outcome.cluster}")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    return drawn


def _points(records: Iterable[PlanRecord]) -> list[tuple[float, float, PlanRecord]]:
    return [
        (float(record.metrics[X]), float(record.metrics[Y]), record)
        for record in records
        if record.metrics.get(X) is not None and record.metrics.get(Y) is not None
    ]
