"""Figures of a search: speed for a user against output and cost of a GPU, and capacity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from simulator.report import style
from simulator.search.outcome import PlanRecord, SearchOutcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

USER, GPU = "output_tokens_per_s_per_user", "output_tokens_per_s_per_gpu"
COST = "usd_per_million_output_tokens"
MOST_CURVES = 4


def save_search_figures(folder: str | Path, outcome: SearchOutcome) -> list[Path]:
    """Write pareto.png, and capacity.png where rates were probed; returns the paths.

    Raises:
        ConfigError: the folder cannot be written.
    """
    figures = {"pareto.png": pareto_figure(outcome)}
    if curves(outcome):
        figures["capacity.png"] = capacity_figure(outcome)
    return style.save(folder, figures)


def pareto_figure(outcome: SearchOutcome) -> Figure:
    """Every simulated plan: tokens/s of a user against tokens/s of a GPU, and against cost."""
    figure, axes = style.new_figure(3.6, 1, 2)
    for one, metric, text in (
        (axes[0], GPU, "output tokens/s/GPU"),
        (axes[1], COST, "$ / M output tokens"),
    ):
        _draw_plans(one, outcome, metric)
        style.label(one, xlabel="output tokens/s/user", ylabel=text)
        one.set_xlim(0, 1.06 * one.get_xlim()[1])
        one.set_ylim(0, 1.06 * one.get_ylim()[1])
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside upper center",
        ncols=4,
        frameon=False,
        fontsize=style.POINTS - 1,
        handletextpad=0.3,
        columnspacing=1,
    )
    return figure


def _draw_plans(axes: Axes, outcome: SearchOutcome, metric: str) -> None:
    simulated = [record for record in outcome.records if _is_placed(record, metric)]
    if not simulated:
        style.empty(axes)
    front = [record for record in outcome.pareto if _is_placed(record, metric)]
    if metric == GPU:
        axes.plot(*_places(front, metric), color=style.GREEN, linewidth=1)
    groups = {
        "plans": (simulated, "o", style.GREY, 22),
        "frontier": (front, "o", style.GREEN, 30),
        "heuristic": (
            [r for r in (outcome.heuristic,) if r in simulated],
            "s",
            style.VERMILION,
            48,
        ),
        "best": ([r for r in (outcome.best,) if r in simulated], "D", style.BLUE, 48),
    }
    for name, (records, marker, colour, size) in groups.items():
        chosen = [record for record in records if record is not None]
        axes.scatter(
            *_places(chosen, metric), marker=marker, color=colour, s=size, label=name, zorder=3
        )


def _is_placed(record: PlanRecord, metric: str) -> bool:
    return record.metrics.get(USER) is not None and record.metrics.get(metric) is not None


def _places(records: Sequence[PlanRecord], metric: str) -> tuple[list[float], list[float]]:
    return [r.metrics[USER] for r in records], [r.metrics[metric] for r in records]


def curves(outcome: SearchOutcome) -> dict[str, list[tuple[float, float]]]:
    """(requests/s, share of requests that meet every SLO) of the best plans and the heuristic."""
    ranked = [record for record in outcome.records if record.rank is not None]
    chosen = ranked[: MOST_CURVES - 1]
    rule = outcome.heuristic
    if rule is not None and rule.rank is not None and rule not in chosen:
        chosen.append(rule)
    found = {}
    for record in chosen:
        probes = record.metrics.get("probes") or ()
        curve = sorted((rate, share) for rate, share in probes if share is not None)
        if len(curve) > 1:
            found[record.label] = curve
    return found


def capacity_figure(outcome: SearchOutcome) -> Figure:
    """SLO attainment against request rate, at every rate that was simulated."""
    figure, (axes,) = style.new_figure(4.0)
    for number, (name, curve) in enumerate(curves(outcome).items()):
        rates, shares = zip(*curve, strict=True)
        axes.plot(
            rates, [100 * s for s in shares], marker="o", ms=4, label=name, **style.dash(number)
        )
    wanted = 100 * outcome.slo.attainment
    axes.axhline(wanted, color="black", linewidth=1, label=f"{wanted:.3g} % wanted")
    style.label(axes, xlabel="requests/s", ylabel="requests that meet every SLO (%)")
    axes.set(ylim=(0, 102))
    axes.set_xlim(left=0)
    style.legend(axes, loc="lower left")
    return figure
