"""The web report: one HTML file that holds everything it shows and asks the network for nothing.

Tables and charts are written here, in Python, and stand without JavaScript; the script sorts,
filters, and shows tooltips. A content security policy forbids any request.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources

from simulator.errors import ConfigError
from simulator.report.web.documents import RUN, SEARCH, VALIDATION, Document, read_document
from simulator.report.web.markup import Cell, Safe, join, table, tag
from simulator.report.web.run_part import run_part, title_of
from simulator.report.web.search_part import search_part
from simulator.report.web.validation_part import validation_part

__all__ = ["read_document", "report"]

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
NOT_DRAWN = (
    "Host time of an iteration is an estimate unless an engine profile states it.",
    "Energy comes from an uncalibrated model: compare with it, do not read a meter.",
    "Prices are on-demand list prices of a date; replicas share no network.",
    "Intervals draw errors of kernel prices, not of host time, memory, routing skew or traffic.",
)


def report(documents: Sequence[Document]) -> str:
    """The page of these results, in the order given; runs are shown side by side.

    Raises:
        ConfigError: a document lacks what its kind of result always has.
    """
    runs = [document for document in documents if document.kind == RUN]
    parts: list[tuple[str, str, str, list[object]]] = []  # id, class, title, content
    for number, document in enumerate(documents, 1):
        name = f"result-{number}"
        if document.kind == RUN and document is not runs[0]:
            continue
        try:
            parts.append((name, document.kind, *_part(document, runs, name)))
        except (KeyError, TypeError, AttributeError, ValueError, IndexError) as error:
            told = f"{type(error).__name__}: {error}"
            raise ConfigError(
                f"{document.file}: cannot be read as a result of `headway {document.kind}` ({told})"
            ) from None
    parts.append(("assumptions", "assumptions", "What this rests on", _assumptions(documents)))
    return _page(parts)


def _part(document: Document, runs: Sequence[Document], name: str) -> tuple[str, list[object]]:
    data = document.data
    if document.kind == SEARCH:
        return f"Search: {data['model']} on {data['cluster']}", search_part(data, name)
    if document.kind == VALIDATION:
        return f"Validation: {document.file}", validation_part(data, name)
    title = title_of(document) if len(runs) == 1 else f"{len(runs)} runs side by side"
    return f"Simulation: {title}", run_part(runs)


def _page(parts: Sequence[tuple[str, str, str, list[object]]]) -> str:
    links = [tag("li", tag("a", title, href=f"#{name}")) for name, _, title, _ in parts]
    sections = [
        tag(
            "section",
            tag("h2", title, id=f"{name}-title"),
            *content,
            id=name,
            class_=kind,
            aria_labelledby=f"{name}-title",
        )
        for name, kind, title, content in parts
    ]
    head = (
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("link", rel="icon", href="data:,"),
        tag("title", f"Headway: {parts[0][2]}"),
        tag("style", Safe(_asset("page.css"))),
    )
    body = (
        tag(
            "header", tag("h1", "Headway report"), tag("nav", tag("ul", links), aria_label="Parts")
        ),
        tag("main", sections),
        tag("div", id="tip", role="tooltip", hidden=""),
        tag("div", id="said", class_="out", role="status"),
        tag("script", Safe(_asset("page.js"))),
    )
    page = tag("html", tag("head", *head), tag("body", *body), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


def _asset(name: str) -> str:
    return resources.files("simulator.report.web").joinpath(name).read_text(encoding="utf-8")


def _assumptions(documents: Sequence[Document]) -> list[object]:
    """Kernel tables with their held-out errors, notes of runs, and what no interval covers."""
    sources: dict[str, list[str]] = {}
    for document in documents:
        for text in _cost_tables(document):
            sources.setdefault(text, []).append(document.file)
    notes = dict.fromkeys(note for document in documents for note in _notes(document))
    content: list[object] = []
    if sources:
        content.append(tag("h3", "Kernel times"))
        content.append(_error_table(sources))
    if notes:
        content += [tag("h3", "Notes"), tag("ul", [tag("li", note) for note in notes])]
    content += [tag("h3", "Always"), tag("ul", [tag("li", text) for text in NOT_DRAWN])]
    files = ", ".join(document.file for document in documents)
    return [*content, tag("p", f"Made from {files}.", class_="soft")]


def _error_table(sources: dict[str, list[str]]) -> Safe:
    """One row a source, with the held-out error of each op where the source states it."""
    parsed = {text: held_out_errors(text) for text in sources}
    ops = list(dict.fromkeys(op for errors in parsed.values() for op in errors))
    rows: list[list[object]] = []
    for text, files in sources.items():
        errors = parsed[text]
        cells = [
            Cell(text=f"{errors[op]:.1f} %" if op in errors else "–", value=errors.get(op, ""))
            for op in ops
        ]
        stated = text.partition("; held-out error")[0] if errors else text
        rows.append([stated, *cells, ", ".join(dict.fromkeys(files))])
    caption = "Where kernel times come from, and their error on shapes not fitted"
    return join((table(caption, ["source", *ops, "used in"], rows, sortable=len(rows) > 1),))


def held_out_errors(text: str) -> dict[str, float]:
    """Op: error in per cent, of a line such as "...; held-out error GEMM 4.3 %, NCCL 12.6 %"."""
    _, _, stated = text.partition("held-out error ")
    found = re.findall(r"([A-Za-z][\w -]*?) (\d+(?:\.\d+)?) %", stated.partition(";")[0])
    return {op.strip(): float(value) for op, value in found}


def _cost_tables(document: Document) -> list[str]:
    data = document.data
    metrics = [data] if document.kind == RUN else []
    if document.kind == SEARCH:
        metrics = [plan["metrics"] for plan in data["plans"]]
    found = (one.get("cost_tables") for one in metrics)
    return list(dict.fromkeys(text for text in found if text))


def _notes(document: Document) -> list[str]:
    data = document.data
    if document.kind == VALIDATION:
        return [note for run in data["runs"] for note in run["notes"]]
    if document.kind == SEARCH:
        best = data["best"]
        return [*best["metrics"].get("notes", ())] if best else []
    return [*data.get("notes", ())]
