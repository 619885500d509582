"""HTML and SVG as text that is escaped unless it was made here.

Every child and attribute that is not `Safe` goes through `html.escape`, so a model name, a file
name or a reason can hold any characters.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from simulator.units import show_count, show_time

DASH = "–"
VOID = frozenset({"meta", "link", "input", "br"})


class Safe(str):
    """Markup that needs no escaping any more."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Safe:
    """An element; attributes named `class_`, `data_x` become class, data-x; None leaves one out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Safe(f"<{name}{written}>")
    return Safe(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Safe:
    """Children one after another; lists are spread, None and "" are nothing."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Safe):
            parts.append(child)
        elif isinstance(child, list | tuple):
            parts.append(join(child))
        elif child is not None:
            parts.append(html.escape(str(child)))
    return Safe("".join(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What a table shows, and what it is sorted by."""

    text: object
    value: float | str | None = None  # None = the text
    is_number: bool = True


def table(
    caption: str,
    headings: Sequence[str],
    rows: Iterable[Sequence[Cell | object]],
    keys: Sequence[str] = (),
    *,
    sortable: bool = True,
    sorted_by: int | None = None,
) -> Safe:
    """A captioned table in a region of its own that scrolls sideways where the screen is narrow.

    The first cell that is not a number heads its row; `keys` tie rows to points of charts.
    """
    head = []
    for index, heading in enumerate(headings):
        button = tag("button", heading, type="button") if sortable else heading
        state = ("ascending" if index == sorted_by else "none") if sortable else None
        head.append(tag("th", button, scope="col", aria_sort=state))
    body = [
        _row(row, keys[number] if number < len(keys) else None) for number, row in enumerate(rows)
    ]
    inner = tag(
        "table",
        tag("caption", caption),
        tag("thead", tag("tr", head)),
        tag("tbody", body),
        class_="sortable" if sortable else None,
    )
    return tag("div", inner, class_="scroll", role="region", aria_label=caption, tabindex="0")


def _row(row: Sequence[Cell | object], key: str | None) -> Safe:
    cells, is_headed = [], False
    for entry in row:
        cell = entry if isinstance(entry, Cell) else Cell(text=entry, is_number=False)
        heads = not cell.is_number and not is_headed
        is_headed |= heads
        value = cell.text if cell.value is None and not isinstance(cell.text, Safe) else cell.value
        cells.append(
            tag(
                "th" if heads else "td",
                cell.text,
                scope="row" if heads else None,
                class_="n" if cell.is_number else None,
                data_v="" if value in (None, DASH) else value,
            )
        )
    return tag("tr", cells, data_key=key)


def number_of(value: object) -> float | None:
    """A finite number, or None for whatever else a document may hold there."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def quantity(key: str, value: object) -> Cell:
    """A metric in the unit its key names: `_ms`, `_s` are times, `usd_` money, shares per cent."""
    number = number_of(value)
    if number is None:
        return Cell(text=DASH, value="")
    return Cell(text=shown(key, number), value=number)


def shown(key: str, number: float) -> str:
    """Text of a metric."""
    if key.endswith("_ms"):
        return show_time(number / 1e3)
    if "per_s" in key or "throughput" in key or key == "request_goodput":
        return f"{number:,.3g}" if number < 1000 else f"{number:,.0f}"
    if key.endswith("_s"):
        return show_time(number)
    if key.startswith("usd"):
        return f"${number:,.2f}" if number >= 0.095 else f"${number:.3g}"
    if key in ("mfu", "mbu") or "share" in key or "utilisation" in key or "attainment" in key:
        return f"{100 * number:.1f} %"
    if number == int(number) and abs(number) < 1e6:
        return f"{number:,.0f}"
    return show_count(number)
