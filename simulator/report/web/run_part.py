"""Simulated runs on the page, side by side: latencies, distributions, what they used and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simulator.report.web import plots
from simulator.report.web.documents import METRICS, Document, distribution, is_detailed
from simulator.report.web.markup import DASH, Cell, Safe, join, number_of, quantity, table, tag

STATISTICS = {"mean": "mean", "median": "p50", "p90": "p90", "p99": "p99"}
FACTS = {
    "completed": "completed",
    "failed": "rejected",
    "duration": "duration, s",
    "request_throughput": "requests/s",
    "request_goodput": "goodput, requests/s",
    "output_throughput": "output tokens/s",
    "output_tokens_per_s_per_gpu": "output tokens/s/GPU",
    "usd_per_million_output_tokens": "$ / M output tokens",
    "slo_attainment": "SLOs met",
    "mean_kv_utilisation": "KV memory, mean",
    "max_kv_utilisation": "KV memory, peak",
    "preemptions": "preemptions",
    "mean_running": "running, mean",
    "mean_waiting": "waiting, mean",
    "mfu": "of peak FLOP/s",
    "mbu": "of peak bytes/s",
}
PARTS = ("queueing", "prefill", "decode", "preempted")


def title_of(document: Document) -> str:
    """What ran, as short as it can be said."""
    data = document.data
    model = data.get("model") or data.get("model_id") or "a run"
    return (
        f"{model} on {data.get('num_gpus', '?')} x {data.get('gpu', '?')}, {data.get('plan', '')}"
    )


def run_part(documents: Sequence[Document]) -> list[object]:
    """The sections of one or several runs."""
    names = _names(documents)
    data = {name: document.data for name, document in zip(names, documents, strict=True)}
    split = {
        name: [number_of(one.get(f"mean_{part}_s")) or 0.0 for part in PARTS]
        for name, one in data.items()
    }
    curves = [_curves(text, key, data) for text, key in METRICS.items()]
    return [
        [tag("p", f"{name}: {title_of(document)}") for name, document in _titles(names, documents)],
        _latencies(data),
        tag(
            "div",
            *(curve for curve in curves if curve is not None),
            plots.stacked_bars("Mean time of a request, part by part", split, PARTS),
            class_="charts",
        ),
        _facts(data),
    ]


def _titles(names: Sequence[str], documents: Sequence[Document]) -> list[tuple[str, Document]]:
    return list(zip(names, documents, strict=True))


def _names(documents: Sequence[Document]) -> list[str]:
    """File names, numbered where two are the same."""
    files = [document.file for document in documents]
    return [
        file if files.count(file) == 1 else f"{file} ({number})"
        for number, file in enumerate(files, 1)
    ]


def _curves(text: str, key: str, data: Mapping[str, Mapping[str, Any]]) -> Safe | None:
    detailed = all(is_detailed(one) for one in data.values())
    note = "of all requests" if detailed else "at a few shares of the requests"
    return plots.cdf(text, {name: distribution(one, key) for name, one in data.items()}, note)


def _latencies(data: Mapping[str, Mapping[str, Any]]) -> Safe:
    """Mean and percentiles, with the interval of the draws where there is one."""
    rows: list[list[object]] = []
    for name, one in data.items():
        spreads = one.get("uncertainty", {}).get("metrics", {})
        for text, metric in METRICS.items():
            row: list[object] = [text, name] if len(data) > 1 else [text]
            for statistic in STATISTICS:
                key = f"{statistic}_{metric}_ms"
                cell, spread = quantity(key, one.get(key)), spreads.get(key)
                shown = cell.text
                if spread:
                    low, high = (quantity(key, spread[end]).text for end in ("low", "high"))
                    shown = join(
                        (cell.text, tag("br"), tag("span", low, " … ", high, class_="soft"))
                    )
                row.append(Cell(text=shown, value=cell.value))
            slo = one.get(f"slo_{metric.removesuffix('l')}_s")
            met = one.get(f"slo_attainment_{metric.removesuffix('l')}")
            row += [quantity("slo_s", slo), quantity("slo_attainment", met)]
            rows.append(row)
    headings = ["", *(["run"] if len(data) > 1 else []), *STATISTICS.values(), "target", "met by"]
    drawn = next((one["uncertainty"] for one in data.values() if "uncertainty" in one), None)
    caption = "Latencies"
    if drawn:
        share = 100 * drawn["interval"]
        caption += f"; below each, where {share:.0f} % of {drawn['draws']} draws of the errors of "
        caption += "kernel prices lie"
    return table(caption, headings, rows, sortable=len(data) > 1)


def _facts(data: Mapping[str, Mapping[str, Any]]) -> Safe:
    rows: list[list[object]] = []
    for key, text in FACTS.items():
        if any(number_of(one.get(key)) is not None for one in data.values()):
            rows.append([text, *(_fact(key, one) for one in data.values())])
    return table("What it did, used and cost", ["", *data], rows, sortable=False)


def _fact(key: str, one: Mapping[str, Any]) -> Cell:
    number = number_of(one.get(key))
    if number is None:
        return Cell(text=DASH, value="")
    if key in ("duration", "mean_running", "mean_waiting"):
        return Cell(text=f"{number:,.4g}", value=number)
    return quantity(key, number)
