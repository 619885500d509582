"""Intervals for people: of one run's metrics, and of the best plans of a search.

Takes finished numbers and decides nothing; a metric that is not defined is a dash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from simulator.search.objective import OBJECTIVES, STATISTICS
from simulator.search.outcome import SearchOutcome
from simulator.units import show_count, show_time

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from simulator.uncertainty import RunUncertainty, SearchUncertainty, Spread

WIDTH = 80
DASH = "–"
LATENCIES = (("TTFT", "ttft"), ("TPOT", "tpot"), ("ITL", "itl"), ("E2E", "e2el"))
RATES = (
    ("requests/s", "request_throughput"),
    ("output tokens/s", "output_throughput"),
    ("goodput, requests/s", "request_goodput"),
    ("$ / M output tokens", "usd_per_million_output_tokens"),
)
WHAT = "{} draws of the errors of kernel prices (not of host time, memory or traffic)"


def print_run_uncertainty(console: Console, found: RunUncertainty) -> None:
    """The interval of each latency and rate, at most 80 columns wide."""
    from rich.text import Text

    console.print(Text(f"Uncertainty: {WHAT.format(found.num_draws)}", style="bold"), width=WIDTH)
    console.print(Text("median, and below it where 80 % of the draws lie"), width=WIDTH)
    table = _table("", *STATISTICS)
    for label, metric in LATENCIES:
        spreads = [found.metrics.get(f"{name}_{metric}_ms") for name in STATISTICS.values()]
        if any(spread is not None for spread in spreads):
            table.add_row(label, *(_median_ms(spread) for spread in spreads))
            table.add_row("", *(_interval_ms(spread) for spread in spreads), style="dim")
    console.print(table, width=WIDTH)
    rates = _table("", "as priced", "median", "80 % interval")
    for label, key in RATES:
        spread = found.metrics.get(key)
        if spread is not None:
            ends = f"{show_count(spread.low)} … {show_count(spread.high)}"
            rates.add_row(label, show_count(spread.point), show_count(spread.median), ends)
    console.print(rates, width=WIDTH)


def print_search_uncertainty(
    console: Console, outcome: SearchOutcome, found: SearchUncertainty
) -> None:
    """The interval of the objective of each plan, and in how many draws it is the best."""
    from rich.text import Text

    def line(text: str, style: str = "") -> None:
        console.print(Text(text, style=style), width=WIDTH)

    goal = OBJECTIVES[outcome.objective]
    statistic = f"{outcome.objective_statistic} " if "{}" in goal.metric else ""
    line("")
    line(f"Uncertainty: {WHAT.format(found.num_draws)}", "bold")
    unit = "" if goal.unit == "ms" else f", {goal.unit}"
    table = _table(
        "#", "plan", f"{statistic}{goal.title}{unit}", "median", "80 % interval", "best in"
    )
    table.columns[1].justify = "left"
    for plan in found.plans:
        spread = plan.spread
        cells = [DASH] * 3
        if spread is not None:
            point, median = (_value(x, goal.unit) for x in (spread.point, spread.median))
            cells = [point, median, _interval(spread, goal.unit)]
        best_in = f"{plan.best_in} of {found.num_draws}"
        table.add_row(str(plan.record.rank), plan.record.label, *cells, best_in)
    console.print(table, width=WIDTH)
    if found.none_in:
        line(f"No plan holds what is asked in {found.none_in} of {found.num_draws} draws", "yellow")


def _table(*headings: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, expand=True, header_style="bold")
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left")
    return table


def _median_ms(spread: Spread | None) -> str:
    return DASH if spread is None else _value(spread.median, "ms")


def _interval_ms(spread: Spread | None) -> str:
    return DASH if spread is None else _interval(spread, "ms")


def _interval(spread: Spread, unit: str) -> str:
    """Both ends; a unit they share is written once."""
    low, high = (_value(value, unit) for value in (spread.low, spread.high))
    first, _, shared = low.partition(" ")
    return f"{first} … {high}" if shared and high.endswith(f" {shared}") else f"{low} … {high}"


def _value(value: float, unit: str) -> str:
    if unit != "ms":
        return f"{value:.3g}"
    return show_time(value / 1000) if value else "0 s"
