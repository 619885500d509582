"""Charts as inline SVG: points, lines, distributions and bars, drawn for 400 px and scaled up.

Colours are those of Okabe and Ito, told apart with any colour vision; shapes and dashes differ too.
A point that can be read carries its text for a tooltip and for screen readers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from simulator.report.web.markup import Safe, join, tag

WIDTH, HEIGHT = 420, 290
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 44
BLUE, ORANGE, GREEN, VERMILION, PURPLE, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#767676",
)
SERIES = ((BLUE, ""), (VERMILION, "6 3"), (GREEN, "2 3"), (PURPLE, "8 3 2 3"), (ORANGE, "1 2"))

PART_COLOURS = (PURPLE, ORANGE, BLUE, VERMILION)


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis: its title with the unit, its range, and its scale."""

    title: str
    low: float
    high: float
    is_log: bool = False
    show: Callable[[float], str] = field(default=lambda value: f"{value:,.6g}")

    def place(self, value: float) -> float:
        """0 to 1 along the axis."""
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        if self.is_log:
            return _log_ticks(self.low, self.high)
        step = 10 ** math.floor(math.log10((self.high - self.low) / 3))
        step *= next(m for m in (1, 2, 5, 10) if (self.high - self.low) / (step * m) <= 6)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A mark of a scatter chart."""

    x: float
    y: float
    text: str
    key: str = ""  # of the table row it belongs to
    colour: str = GREY
    shape: str = "circle"  # circle, square, diamond


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    span = math.log10(high / low)
    steps = (1,) if span > 4 else (1, 3) if span > 1.5 else (1, 2, 3, 5)
    found = [m * 10.0**d for d in decades for m in steps]
    return [value for value in found if low <= value <= high]


def axis_from_zero(title: str, values: Sequence[float]) -> Axis:
    """An axis from 0 to a little above the largest value."""
    top = max(values, default=0.0) * 1.06
    return Axis(title=title, low=0.0, high=top if top > 0 else 1.0)


def at(x: Axis, y: Axis, x_value: float, y_value: float) -> tuple[float, float]:
    """Pixels of a value."""
    return (
        round(LEFT + x.place(x_value) * (WIDTH - LEFT - RIGHT), 1),
        round(HEIGHT - BOTTOM - y.place(y_value) * (HEIGHT - TOP - BOTTOM), 1),
    )


def chart(label: str, x: Axis, y: Axis, *contents: object) -> Safe:
    """A framed plot with grid, ticks and axis titles around what is drawn in it."""
    grid = []
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value in x.ticks():
        px, _ = at(x, y, value, y.low)
        grid.append(tag("line", x1=px, x2=px, y1=TOP, y2=bottom, class_="grid"))
        grid.append(tag("text", x.show(value), x=px, y=bottom + 15, text_anchor="middle"))
    for value in y.ticks():
        _, py = at(x, y, x.low, value)
        grid.append(tag("line", x1=LEFT, x2=right, y1=py, y2=py, class_="grid"))
        grid.append(tag("text", y.show(value), x=LEFT - 5, y=py + 4, text_anchor="end"))
    middle = (TOP + bottom) / 2
    titles = [
        tag("text", x.title, x=(LEFT + right) / 2, y=HEIGHT - 8, text_anchor="middle"),
        tag("text", y.title, text_anchor="middle", transform=f"translate(14 {middle}) rotate(-90)"),
    ]
    return tag(
        "svg",
        tag("g", grid, titles, aria_hidden="true"),
        *contents,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="group",
        aria_label=label,
    )


def points(x: Axis, y: Axis, marks: Sequence[Point]) -> Safe:
    """Marks that take the focus one after another with the arrow keys."""
    return tag("g", [_mark(x, y, mark, number) for number, mark in enumerate(marks)], class_="pts")


def _mark(x: Axis, y: Axis, mark: Point, number: int) -> Safe:
    px, py = at(x, y, mark.x, mark.y)
    common = {
        "class_": "pt",
        "role": "img",
        "tabindex": "-1" if number else "0",
        "aria_label": mark.text,
        "data_tip": mark.text,
        "data_key": mark.key or None,
        "fill": mark.colour,
    }
    if mark.shape == "circle":
        return tag("circle", cx=px, cy=py, r=4, **common)
    turn = f"rotate(45 {px} {py})" if mark.shape == "diamond" else None
    return tag("rect", x=px - 4.5, y=py - 4.5, width=9, height=9, transform=turn, **common)


def line(x: Axis, y: Axis, values: Sequence[tuple[float, float]], number: int = 0) -> Safe:
    """A polyline in the colour and dash of a series."""
    colour, dash = SERIES[number % len(SERIES)]
    pixels = " ".join("{},{}".format(*at(x, y, *value)) for value in values)
    dashes = dash or None
    return tag("polyline", points=pixels, class_="line", stroke=colour, stroke_dasharray=dashes)


def legend(names: Sequence[str]) -> Safe:
    """Names beside a sample of their line."""
    if len(names) < 2:
        return Safe("")
    items = []
    for number, name in enumerate(names):
        colour, dash = SERIES[number % len(SERIES)]
        sample = tag("line", x1=0, x2=26, y1=5, y2=5, stroke=colour, stroke_dasharray=dash or None)
        swatch = tag("svg", sample, viewBox="0 0 26 10", class_="key", aria_hidden="true")
        items.append(tag("li", swatch, " ", name))
    return tag("ul", items, class_="legend")


def figure(caption: str, *contents: object, **attributes: object) -> Safe:
    """A chart with its caption."""
    return tag("figure", *contents, tag("figcaption", caption), **attributes)


def cdf(title: str, series: dict[str, list[tuple[float, float]]], note: str) -> Safe | None:
    """Cumulative distributions of a latency: (seconds, share that is shorter) of each name."""
    known = {name: values for name, values in series.items() if values}
    if not known:
        return None
    top = max(value for values in known.values() for value, _ in values)
    scale, unit = (1e3, "ms") if top < 1 else (1.0, "s")
    x = axis_from_zero(f"{title} ({unit})", [top * scale])
    y = Axis(title="share (%)", low=0, high=100)
    drawn, marks = [], []
    for number, (name, values) in enumerate(known.items()):
        shown = [(value * scale, 100 * share) for value, share in values]
        drawn.append(line(x, y, shown, number))
        for value, share in shown:
            if round(share, 6) in (50, 90, 95, 99):
                text = f"{name}: {share:.0f} % within {value:.3g} {unit}"
                colour = SERIES[number % len(SERIES)][0]
                marks.append(Point(x=value, y=share, text=text, colour=colour))
    plot = chart(f"{title} distribution", x, y, *drawn, points(x, y, marks))
    return figure(f"{title}: {note}", plot, legend(list(known)))


def stacked_bars(caption: str, rows: dict[str, list[float]], parts: Sequence[str]) -> Safe:
    """One horizontal bar a name, its parts (seconds) end to end."""
    most = max((sum(values) for values in rows.values()), default=0.0) or 1.0
    drawn: list[Safe] = []
    for number, (name, values) in enumerate(rows.items()):
        top, left = 8 + 44 * number, 0.0
        drawn.append(tag("text", f"{name}: {sum(values):.3g} s", x=2, y=top + 11))
        for part, value, colour in zip(parts, values, PART_COLOURS, strict=True):
            width = value / most * (WIDTH - 4)
            text = f"{name}: {part} {value:.3g} s"
            place = {"x": round(2 + left, 1), "y": top + 16, "width": round(width, 1)}
            drawn.append(tag("rect", height=16, fill=colour, data_tip=text, class_="bar", **place))
            left += width
    entries = [
        tag("li", tag("span", class_="swatch", style=f"background:{colour}"), " ", part)
        for part, colour in zip(parts, PART_COLOURS, strict=True)
    ]
    height = 12 + 44 * len(rows)
    plot = tag(
        "svg", *drawn, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=_spoken(rows, parts)
    )
    return figure(caption, plot, tag("ul", entries, class_="legend"))


def _spoken(rows: dict[str, list[float]], parts: Sequence[str]) -> str:
    told = [
        f"{name}: " + ", ".join(f"{part} {v:.3g} s" for part, v in zip(parts, values, strict=True))
        for name, values in rows.items()
    ]
    return "; ".join(told)


__all__ = ["Axis", "Point", "Safe", "axis_from_zero", "cdf", "chart", "figure", "join", "legend"]
__all__ += ["line", "points", "stacked_bars"]
