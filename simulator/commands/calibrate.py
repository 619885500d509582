"""`headway calibrate`: measured kernel times in, fitted cost tables out.

The work is done by the `calibration` package beside this one, looked up when it is asked for: a
simulation never needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from simulator.commands.output import console, print_json
from simulator.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

ERRORS = ("mape", "p90_ape", "bias", "n")


def run(action: str, target: str, options: dict[str, Any]) -> None:
    """Import from a database, fit or report a folder, or find its errors; print them."""
    try:
        package = import_module("calibration.cli")
    except ModuleNotFoundError as error:
        if error.name not in ("calibration", "calibration.cli"):
            raise
        raise ConfigError("calibrate: the calibration package is not installed") from None
    if action == "import":
        for name in ("system", "engine", "out"):
            if not options[name]:
                raise ConfigError(f"calibrate import: expected --{name} (got none)")
        found = package.import_command(
            target,
            system=options["system"],
            engine=options["engine"],
            out=options["out"],
            root=options["source"] or "",
        )
    elif action == "fit":
        found = package.fit_command(
            target, compact=bool(options["compact"]), out=options["out"] or ""
        )
    elif action == "errors":
        found = package.errors_command(target, out=options["out"] or "")
    elif action == "report":
        found = package.report_command(target)
    else:
        raise ConfigError(f"calibrate: expected import, fit, errors or report (got {action!r})")
    if options["json"]:
        print_json(found)
    else:
        _show(found)


def _show(found: dict[str, Any]) -> None:
    """Provenance, what was refused, and the errors as tables."""
    out = console()
    out.print(f"{found['gpu']}, {found['engine']}: {found['source']} ({found['licence']})")
    for what, reason in found["refused"].items():
        out.print(f"  refused {what}: {reason}", style="dim")
    if "held_out" in found:
        out.print(_held_out(found))
    if "left_out" in found:
        out.print(_left_out(found))
        layers = found["coverage_80"]["layers"]
        out.print(f"80 % intervals hold {100 * layers:.0f} % of layers made of points left out")
    for key in ("curves", "errors", "figure"):
        if key in found:
            out.print(f"{key}: {found[key]}")


def _held_out(found: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title="error on the points left out, fitted to a tenth, %", title_justify="left")
    for heading in ("op", "format", "MAPE", "p90", "bias", "points"):
        table.add_column(heading, justify="left" if heading in ("op", "format") else "right")
    for op, errors in found["held_out"].items():
        table.add_row(op, "all", *_cells(errors))
        for name, part in errors.get("by_format", {}).items():
            table.add_row("", name, *_cells(part), style="dim")
    for op, axes in found.get("twice_beyond", {}).items():
        for axis, errors in axes.items():
            table.add_row(op, f"{axis} up to twice beyond", *_cells(errors), style="dim")
    return table


def _left_out(found: dict[str, Any]) -> Table:
    """Errors of prices on shapes the curve never saw: what --uncertainty draws from."""
    from rich.table import Table

    title = "measured over priced on shape families left out, %"
    table = Table(title=title, title_justify="left")
    quantiles = ("p10", "p50", "p90")
    for heading in ("op", "MAPE", *quantiles, "families", "points"):
        table.add_column(heading, justify="left" if heading == "op" else "right")
    for op, stated in found["left_out"].items():
        cells = [f"{stated['quantiles'][name]:+.1f}" for name in quantiles]
        counts = [f"{stated[name]:,}" for name in ("families", "points")]
        table.add_row(op, f"{stated['mape']:.1f}", *cells, *counts)
    return table


def _cells(errors: dict[str, Any]) -> list[str]:
    return [f"{errors[name]:.1f}" if name != "n" else f"{errors[name]:,}" for name in ERRORS]
