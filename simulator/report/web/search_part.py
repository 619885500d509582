"""A search on the page: the winner and why, the frontier, every plan with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simulator.report.web import plots
from simulator.report.web.markup import (
    DASH,
    Cell,
    Safe,
    join,
    number_of,
    quantity,
    shown,
    table,
    tag,
)
from simulator.report.web.plots import Axis, Point
from simulator.report.web.why_part import COST, GPU, USER, Plan, goal, named_plans, why_part


def search_part(data: Mapping[str, Any], name: str) -> list[object]:
    """The sections of one search; `name` makes its element ids unique."""
    plans: Sequence[Plan] = data["plans"]
    ranked = [plan for plan in plans if plan["rank"] is not None]
    keys = {id(plan): f"{name}-{number}" for number, plan in enumerate(plans)}
    best = data["best"]
    parts: list[object] = [tag("p", _headline(data), class_="big"), tag("p", _subject(data))]
    if best:
        parts += [_command(data, name), why_part(data, ranked)]
    if ranked:
        chosen = [keys[id(plan)] for plan in ranked]
        parts += [_frontier(data, ranked, chosen), _table(data, ranked, chosen, name)]
        parts.append(_capacity(data, ranked))
    others = [plan for plan in plans if plan["rank"] is None]
    if others:
        parts += [tag("h3", "Plans without a rank"), _others(others)]
    return parts


def _headline(data: Mapping[str, Any]) -> str:
    title, metric = goal(data)
    best, cut = data["best"], " so far (interrupted)" if data["interrupted"] else ""
    if not best:
        return "No plan serves this" + cut
    text = (
        f"Best{cut}: {best['label']}, {title} {quantity(metric, best['metrics'].get(metric)).text}"
    )
    return text + _drawn_headline(data, best)


def _subject(data: Mapping[str, Any]) -> str:
    counts = data["counts"]
    told = ", ".join(f"{num} {key.replace('_', ' ')}" for key, num in counts.items() if num)
    return (
        f"{data['model']} on {data['cluster']}, {data['num_requests']:,} requests of "
        f"{data['workload']}. Plans: {told}."
    )


def _interval(data: Mapping[str, Any], plan: Plan) -> str:
    """Where the objective lies under the errors of kernel prices, if that was asked."""
    found = _drawn(data).get(plan["rank"])
    if not found:
        return ""
    metric, spread = data["metric"], found["objective"]
    ends = [quantity(metric, spread[end]).text for end in ("low", "high")]
    return f"{100 * data['uncertainty']['interval']:.0f} %: {ends[0]} … {ends[1]}"


def _drawn_headline(data: Mapping[str, Any], best: Plan) -> str:
    """The median beside the interval: draws need not centre on the prices as fitted."""
    interval, found = _interval(data, best), _drawn(data).get(best["rank"])
    if not found:
        return ""
    median = quantity(data["metric"], found["objective"]["median"]).text
    return f" (with drawn errors of kernel prices: {median}, {interval})"


def _drawn(data: Mapping[str, Any]) -> dict[int, Any]:
    return {plan["rank"]: plan for plan in data.get("uncertainty", {}).get("plans", ())}


def _command(data: Mapping[str, Any], name: str) -> Safe:
    ident = f"{name}-command"
    copy = tag("button", "Copy", type="button", class_="act needs-js", data_copies=ident)
    note = data.get("command_note")
    return join(
        (
            tag("h3", "Deploy it"),
            tag("pre", tag("code", _unbroken(data["command"]), id=ident)),
            copy,
            tag("p", note) if note else "",
        )
    )


def _unbroken(command: str) -> Safe:
    """The words of a command, which wrap between words only."""
    words = [tag("span", word, class_="word") for word in command.split(" ")]
    return Safe(" ".join(words))


def _frontier(data: Mapping[str, Any], ranked: Sequence[Plan], keys: Sequence[str]) -> Safe:
    """Speed for a user against output of a GPU, and against cost."""
    first = _scatter(data, ranked, keys, GPU, "output tokens/s/GPU")
    second = _scatter(data, ranked, keys, COST, "$ / M output tokens")
    return join(
        (
            tag("h3", "Speed against cost"),
            tag("div", first, second, class_="charts"),
        )
    )


def _scatter(
    data: Mapping[str, Any], ranked: Sequence[Plan], keys: Sequence[str], metric: str, title: str
) -> Safe:
    front, rule = {plan["label"] for plan in data["pareto"]}, data["heuristic"]
    marks: list[Point] = []
    for plan, key in zip(ranked, keys, strict=True):
        speed, other = (number_of(plan["metrics"].get(k)) for k in (USER, metric))
        if speed is None or other is None:
            continue
        colour, shape = plots.GREY, "circle"
        role = ""
        if plan["rank"] == 1:
            colour, shape, role = plots.BLUE, "diamond", ", best"
        elif rule and plan["label"] == rule["label"]:
            colour, shape, role = plots.VERMILION, "square", ", heuristic"
        elif plan["label"] in front:
            colour = plots.GREEN
        text = f"{plan['label']} (#{plan['rank']}{role})\n{speed:.3g} tokens/s/user"
        text += f"\n{shown(metric, other)} {title.removeprefix('$ ')}"
        marks.append(Point(x=speed, y=other, text=text, key=key, colour=colour, shape=shape))
    marks.sort(key=lambda mark: (mark.colour != plots.GREY, mark.x))
    x = plots.axis_from_zero("output tokens/s/user", [mark.x for mark in marks])
    y = plots.axis_from_zero(title, [mark.y for mark in marks])
    frontier = sorted((m.x, m.y) for m in marks if m.text.split(" (#")[0] in front)
    drawn = plots.line(x, y, frontier, 2) if metric == GPU and len(frontier) > 1 else ""
    plot = plots.chart(f"{title} against tokens/s/user", x, y, drawn, plots.points(x, y, marks))
    entries = [
        ("best", plots.BLUE, "◆"),
        ("heuristic", plots.VERMILION, "■"),
        ("on the frontier of tokens/s", plots.GREEN, "●"),
        ("others", plots.GREY, "●"),
    ]
    key_list = [tag("li", tag("span", sign, style=f"color:{c}"), " ", t) for t, c, sign in entries]
    better = "up and right is better" if metric == GPU else "down and right is better"
    legend = tag("ul", key_list, class_="legend")
    caption = f"{title} against output tokens/s/user; {better}"
    return plots.figure(caption, plot, legend)


def _table(data: Mapping[str, Any], ranked: Sequence[Plan], keys: Sequence[str], name: str) -> Safe:
    title, metric = goal(data)
    columns = {
        metric: title,
        "mean_ttft_ms": "TTFT",
        "mean_tpot_ms": "TPOT",
        "mean_e2el_ms": "E2E",
        USER: "tok/s/user",
        GPU: "tok/s/GPU",
        COST: "$/M out",
        "slo_attainment": "SLOs met",
    }
    drawn = _drawn(data)
    rows = []
    for plan in ranked:
        row: list[object] = [Cell(text=plan["rank"], value=plan["rank"]), plan["label"]]
        row += [Cell(text=plan["plan"]["num_gpus"], value=plan["plan"]["num_gpus"])]
        row += [quantity(key, plan["metrics"].get(key)) for key in columns]
        if drawn:
            found = drawn.get(plan["rank"])
            of = data["uncertainty"]["draws"]
            text = f"{_interval(data, plan).partition(': ')[2]}" if found else DASH
            row.append(Cell(text=text, value=found["objective"]["median"] if found else ""))
            best_in = found["best_in"] if found else ""
            row.append(Cell(text=f"{best_in} of {of}" if found else DASH, value=best_in))
        rows.append([*row, plan["why"] or "the best"])
    headings = ["#", "plan", "GPUs", *columns.values()]
    if drawn:
        headings += [f"{100 * data['uncertainty']['interval']:.0f} % interval", "best in"]
    word = tag("input", type="search", placeholder="tp4 fp8", id=f"{name}-filter")
    counted = tag("span", f"{len(ranked)} of {len(ranked)} plans", class_="count", role="status")
    label = tag("label", "Filter by words", word, class_="needs-js")
    shown_table = table("Ranked plans", [*headings, "why it loses"], rows, keys, sorted_by=0)
    return join(
        (
            tag("h3", "All ranked plans"),
            tag("div", label, counted, class_="controls"),
            tag("div", shown_table, class_="filtered"),
        )
    )


def _others(others: Sequence[Plan]) -> Safe:
    """Infeasible, pruned and failed plans with the reason of each."""
    rows = [[plan["label"], plan["status"], plan["reason"]] for plan in others]
    counts: dict[tuple[str, str], int] = {}
    for plan in others:
        if plan["status"] != "pruned":
            counts[plan["status"], plan["reason"]] = (
                counts.get((plan["status"], plan["reason"]), 0) + 1
            )
    told = [tag("li", f"{num} {status}: {why}") for (status, why), num in counts.items()]
    return join(
        (
            tag("ul", told) if told else "",
            table("Without a rank", ["plan", "status", "reason"], rows),
        )
    )


def _capacity(data: Mapping[str, Any], ranked: Sequence[Plan]) -> Safe | None:
    """SLO attainment against rate, where the search probed rates."""
    curves: dict[str, list[tuple[float, float]]] = {}
    for name, plan in named_plans(data, ranked).items():
        probes = plan["metrics"].get("probes") or ()
        curve = sorted((rate, 100 * share) for rate, share in probes if share is not None)
        if len(curve) > 1:
            curves[name] = curve
    if not curves:
        return None
    x = plots.axis_from_zero("requests/s", [rate for curve in curves.values() for rate, _ in curve])
    y = Axis(title="requests that meet every SLO (%)", low=0, high=100)
    drawn, marks = [], []
    for number, (name, curve) in enumerate(curves.items()):
        drawn.append(plots.line(x, y, curve, number))
        colour = plots.SERIES[number][0]
        marks += [
            Point(x=r, y=s, text=f"{name}: {s:.1f} % at {r:.3g} requests/s", colour=colour)
            for r, s in curve
        ]
    plot = plots.chart("SLO attainment against rate", x, y, *drawn, plots.points(x, y, marks))
    target = number_of(ranked[0]["metrics"].get("slo_attainment_target"))
    wanted = f"; {100 * target:.0f} % wanted" if target else ""
    return join(
        (
            tag("h3", "Capacity"),
            plots.figure(
                f"SLO attainment at each rate that was simulated{wanted}",
                plot,
                plots.legend(list(curves)),
            ),
        )
    )
