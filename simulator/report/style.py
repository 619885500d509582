"""One look for all figures: colours told apart with any colour vision, text legible at half width.

The colours are those of Okabe and Ito. Figures are 6.4 inches wide with 11-point text, so that half
a page still shows them; lines differ in dashes as well as in colour.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulator.errors import ConfigError

if TYPE_CHECKING:  # matplotlib loads only when a figure is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, GREY = "#CC79A7", "#56B4E9", "#F0E442", "#767676"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, YELLOW, GREY)
DASHES = ("-", "--", ":", "-.")
WIDTH_IN = 6.4
POINTS = 11
DOTS_PER_INCH = 150
EMPTY = "nothing to show"


def new_figure(
    height_in: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure and its axes, row after row."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    axes: list[Axes] = list(grid.flat)
    for one in axes:
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
        one.tick_params(labelsize=POINTS - 1)
    return figure, axes


def label(axes: Axes, **texts: Any) -> None:
    """Axis titles and limits, in the size of all figures."""
    axes.set(**texts)
    for text in (axes.xaxis.label, axes.yaxis.label, axes.title):
        text.set_fontsize(POINTS)


def legend(axes: Axes, **options: Any) -> None:
    """The legend, without a frame unless asked for."""
    axes.legend(**({"frameon": False, "fontsize": POINTS - 1} | options))


def empty(axes: Axes, text: str = EMPTY) -> None:
    """Says that there is nothing to show."""
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, fontsize=POINTS)


def dash(number: int) -> dict[str, Any]:
    """Colour and dashes of a series."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": DASHES[number % len(DASHES)],
    }


def scaled(top_s: float) -> tuple[float, str]:
    """Factor and unit in which times up to `top_s` are read."""
    return (1e3, "ms") if top_s < 1 else (1.0, "s")


def save(folder: str | Path, figures: Mapping[str, Figure]) -> list[Path]:
    """Write each figure under its name as PNG, replacing older ones; equal runs, equal bytes.

    Raises:
        ConfigError: the folder cannot be written.
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            figure.savefig(place / name, dpi=DOTS_PER_INCH, metadata={"Software": None})
    except OSError as error:
        raise ConfigError(f"{place}: cannot be written ({error.strerror or error})") from error
    return [place / name for name in figures]
