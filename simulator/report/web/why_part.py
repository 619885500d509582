"""Why the best plan of a search wins: against the runner-up and the heuristic, part by part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simulator.report.web import plots
from simulator.report.web.documents import METRICS, distribution
from simulator.report.web.markup import DASH, Cell, Safe, join, number_of, shown, table, tag
from simulator.search.objective import OBJECTIVES

Plan = Mapping[str, Any]
USER, GPU = "output_tokens_per_s_per_user", "output_tokens_per_s_per_gpu"
COST = "usd_per_million_output_tokens"
PARTS = ("queueing", "prefill", "decode", "preempted")
COMPARED = {
    "mean_ttft_ms": "TTFT, mean",
    "p99_ttft_ms": "TTFT, p99",
    "mean_tpot_ms": "TPOT, mean",
    "mean_e2el_ms": "E2E, mean",
    "p99_e2el_ms": "E2E, p99",
    USER: "tokens/s/user",
    GPU: "tokens/s/GPU",
    COST: "$ / M output tokens",
    "slo_attainment": "SLOs met",
    "preemptions": "preemptions",
    "max_kv_utilisation": "KV memory, peak",
    "mfu": "of peak FLOP/s",
    "mbu": "of peak bytes/s",
}


def goal(data: Mapping[str, Any]) -> tuple[str, str]:
    """Title and metric of the objective."""
    goal = OBJECTIVES.get(data["objective"])
    statistic = f"{data['objective_statistic']} " if goal and "{}" in goal.metric else ""
    return statistic + (goal.title if goal else str(data["objective"])), data["metric"]


def named_plans(data: Mapping[str, Any], ranked: Sequence[Plan]) -> dict[str, Plan]:
    """Best, runner-up and heuristic, those that differ and were simulated."""
    found = {f"best: {ranked[0]['label']}": ranked[0]}
    if len(ranked) > 1:
        found[f"runner-up: {ranked[1]['label']}"] = ranked[1]
    rule = data["heuristic"]
    if rule and rule["metrics"] and rule["rank"] not in (1, 2):
        found[f"heuristic: {rule['label']}"] = rule
    return found


def why_part(data: Mapping[str, Any], ranked: Sequence[Plan]) -> Safe:
    """What the plan gains on each, and where the time of a request goes."""
    named = named_plans(data, ranked)
    title, metric = goal(data)
    rows = [_compared(title, metric, list(named.values()))]
    rows += [_compared(text, key, list(named.values())) for key, text in COMPARED.items()]
    split = {
        name: [number_of(plan["metrics"].get(f"mean_{part}_s")) or 0.0 for part in PARTS]
        for name, plan in named.items()
    }
    curves = (
        plots.cdf(
            text,
            {name: distribution(plan["metrics"], key) for name, plan in named.items()},
            "at up to nine shares of the requests, from 1 to 99 %",
        )
        for text, key in METRICS.items()
    )
    rule, faster = data["heuristic"], number_of(data["speedup_over_heuristic"])
    against = "The heuristic (TP inside a node, PP across nodes, DP for the rest) "
    if not rule:
        against += "has no plan here."
    elif rule["rank"] == 1:
        against += "picks this plan too."
    else:
        times = f", {faster:.2f}x worse" if faster else ""
        against += f"picks {rule['label']}{times}: {rule['why'] or rule['reason']}."
    losing = [f"Runner-up {plan['label']}: {plan['why']}." for plan in ranked[1:2]]
    heading = ["", *named]
    return join(
        (
            tag("h3", "Why this plan"),
            [tag("p", text) for text in (against, *losing)],
            table("Compared, each with its ratio to the best", heading, rows, sortable=False),
            tag(
                "div",
                plots.stacked_bars("Mean time of a request, part by part", split, PARTS),
                *(curve for curve in curves if curve is not None),
                class_="charts",
            ),
        )
    )


def _compared(text: str, key: str, plans: Sequence[Plan]) -> list[object]:
    numbers = [number_of(plan["metrics"].get(key)) for plan in plans]
    cells: list[object] = [text]
    for place, number in enumerate(numbers):
        shown_text = DASH if number is None else shown(key, number)
        if place and number is not None and numbers[0]:
            shown_text += f" ({number / numbers[0]:.2f}x)"
        cells.append(Cell(text=shown_text, value=number))
    return cells
