"""A validation on the page: errors in groups, predicted against measured, every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simulator.report.web import plots
from simulator.report.web.markup import DASH, Cell, Safe, join, number_of, table, tag
from simulator.report.web.plots import Axis, Point

SHOWN = {"ttft_mean": "TTFT, ms", "tpot_mean": "TPOT, ms", "e2e_mean": "E2E, ms"}
COLUMNS = {
    "ttft_mean": "TTFT",
    "tpot_mean": "TPOT",
    "itl_mean": "ITL",
    "e2e_mean": "E2E",
    "e2e_p99": "E2E p99",
    "output_throughput": "tokens/s",
}
LEVELS = {
    "low": (plots.BLUE, "circle"),
    "medium": (plots.GREEN, "diamond"),
    "high": (plots.ORANGE, "square"),
    "saturated": (plots.VERMILION, "circle"),
}


def validation_part(data: Mapping[str, Any], name: str) -> list[object]:
    """The sections of one validation."""
    runs, skipped = data["runs"], data["skipped"]
    parts: list[object] = [
        tag("p", f"{len(runs)} runs simulated, {len(skipped)} skipped", class_="big"),
        _summary(data["summary"]),
    ]
    if runs:
        plots_of = [_scatter(runs, metric, text) for metric, text in SHOWN.items()]
        parts.append(tag("div", *(plot for plot in plots_of if plot is not None), class_="charts"))
        parts.append(_runs(runs))
    if skipped:
        rows = [[one["run_id"], one["reason"]] for one in skipped]
        parts.append(table("Skipped runs", ["run", "reason"], rows))
    return parts


def _summary(summary: Mapping[str, Any]) -> Safe:
    levels = {"all": summary, **summary["by_load"]}
    rows: list[list[object]] = []
    for level, found in levels.items():
        known = {name: found[name] for name in COLUMNS if found.get(name)}
        most = max((one["n"] for one in known.values()), default=0)
        if not most:
            continue
        row: list[object] = [level, Cell(text=most, value=most)]
        for column in COLUMNS:
            one = known.get(column, {"n": 0})
            text = f"{one['mape']:.1f} ({one['bias']:+.1f})" if one["n"] else DASH
            row.append(Cell(text=text, value=one["mape"] if one["n"] else ""))
        rows.append(row)
    caption = "Mean absolute error of the mean (bias), % of what was measured"
    return table(caption, ["load", "runs", *COLUMNS.values()], rows)


def _scatter(runs: Sequence[Mapping[str, Any]], metric: str, text: str) -> Safe | None:
    marks = []
    for run in runs:
        x, y = (number_of(run[side].get(metric)) for side in ("measured", "predicted"))
        if x is None or y is None or x <= 0 or y <= 0:
            continue
        colour, shape = LEVELS.get(run.get("load_level", ""), (plots.GREY, "circle"))
        told = f"{run['run_id']}\nmeasured {x:.3g}, predicted {y:.3g} ({100 * (y / x - 1):+.1f} %)"
        marks.append(Point(x=x, y=y, text=told, colour=colour, shape=shape))
    if not marks:
        return None
    low = min(min(mark.x, mark.y) for mark in marks) / 1.3
    high = max(max(mark.x, mark.y) for mark in marks) * 1.3
    x_axis = Axis(title=f"measured {text}", low=low, high=high, is_log=True)
    y_axis = Axis(title=f"predicted {text}", low=low, high=high, is_log=True)
    corners = [(low, low), (high / 1.1, high), (high, high), (high, high / 1.1), (low * 1.1, low)]
    band = " ".join("{},{}".format(*plots.at(x_axis, y_axis, *corner)) for corner in corners)
    (x1, y1), (x2, y2) = (plots.at(x_axis, y_axis, end, end) for end in (low, high))
    plot = plots.chart(
        f"predicted against measured {text}",
        x_axis,
        y_axis,
        tag("polygon", points=band, class_="band"),
        tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="ref"),
        plots.points(x_axis, y_axis, marks),
    )
    signs = {"circle": "●", "diamond": "◆", "square": "■"}
    used = {run.get("load_level") for run in runs}
    key = [
        tag("li", tag("span", signs[shape], style=f"color:{colour}"), " ", level)
        for level, (colour, shape) in LEVELS.items()
        if level in used
    ]
    return plots.figure(
        f"{len(marks)} runs, band: within 10 %", plot, tag("ul", key, class_="legend")
    )


def _runs(runs: Sequence[Mapping[str, Any]]) -> Safe:
    rows: list[list[object]] = []
    for run in runs:
        row: list[object] = [run["run_id"], run.get("load_level", ""), run.get("model", "")]
        row += [run.get("gpu", "")]
        for column in COLUMNS:
            error = number_of(run["error"].get(column))
            text = DASH if error is None else f"{error:+.1f}"
            row.append(Cell(text=text, value="" if error is None else abs(error)))
        rows.append(row)
    headings = ["run", "load", "model", "GPU", *COLUMNS.values()]
    return join((table("Error of each run, %; sorted by its size", headings, rows),))
