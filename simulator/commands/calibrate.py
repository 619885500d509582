"""`headway calibrate`: measured kernel times in, fitted cost tables out.

The work is done by the `calibration` package beside this one, looked up when it is asked for: a
simulation never needs it.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import TYPE_CHECKING, Any

from simulator.commands.output import console, print_json
from simulator.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

TEXT = ("system", "engine", "source", "gpu", "model", "tp", "to", "out")
ERRORS = ("mape", "p90_ape", "bias", "n")


def run(action: str, target: str, paths: list[str] | None, options: dict[str, Any]) -> None:
    """Tables imported, fitted, reported or transferred, or a profile fitted; print the errors."""
    paths = paths or []
    if action == "from-bench":
        from simulator.commands.from_bench import run as from_bench

        from_bench([target, *paths], options)
        return
    path = paths[0] if paths else None
    try:
        package = import_module("calibration.cli")
    except ModuleNotFoundError as error:
        if error.name not in ("calibration", "calibration.cli"):
            raise
        raise ConfigError("calibrate: the calibration package is not installed") from None
    if paths and (action != "import" or target == "aiconfigurator" or len(paths) > 1):
        raise ConfigError(
            f"calibrate {action} {target}: expected no further argument (got {paths[-1]})"
        )
    with _waiting(action):
        found = _done(package, action, target, path, options)
    if options["json"]:
        print_json(found)
    elif action == "transfer":
        _show_transfer(found)
    else:
        _show(found)


def _done(
    package: Any, action: str, target: str, path: str | None, options: dict[str, Any]
) -> dict[str, Any]:
    """What the calibration package answers."""
    text = {name: options[name] or "" for name in TEXT}
    if action == "import":
        chosen = {name: text[name] for name in ("system", "engine", "gpu", "model", "tp", "out")}
        found = package.import_command(target, path or "", **chosen, root=text["source"])
    elif action == "fit":
        found = package.fit_command(target, compact=bool(options["compact"]), out=text["out"])
    elif action == "errors":
        found = package.errors_command(target, out=text["out"])
    elif action == "report":
        found = package.report_command(target)
    elif action == "transfer":
        across = bool(options["across_generations"])
        points = options["points"] or ()
        found = package.transfer_command(
            target, to=text["to"], points=points, out=text["out"], across=across
        )
    else:
        known = "import, fit, errors, report, transfer or from-bench"
        raise ConfigError(f"calibrate: expected {known} (got {action!r})")
    answer: dict[str, Any] = found
    return answer


def _waiting(action: str) -> AbstractContextManager[object]:
    """A spinner on stderr while it works, where somebody looks."""
    if not sys.stderr.isatty():
        return nullcontext()
    from rich.console import Console

    return Console(stderr=True).status(f"calibrate {action}: a minute or two for large tables")


def _show(found: dict[str, Any]) -> None:
    """Provenance, what was refused, and the errors as tables."""
    out = console()
    out.print(
        f"{found['gpu']}, {found['engine']}: {found['source']} ({found['licence']})", markup=False
    )
    for what, reason in found["refused"].items():
        out.print(f"  refused {what}: {reason}", style="dim", markup=False)
    for what, rows in found.get("too_few", {}).items():
        out.print(f"  not fitted {what}: {rows} points; for `calibrate transfer --points`")
    if found.get("held_out"):
        out.print(_held_out(found))
    if "left_out" in found:
        out.print(_left_out(found))
        layers = found["coverage_80"]["layers"]
        out.print(f"80 % intervals hold {100 * layers:.0f} % of layers made of points left out")
    for key in ("curves", "errors", "figure"):
        if key in found:
            out.print(f"{key}: {found[key]}", markup=False)
    if "curves" not in found:
        out.print(f"tables: {found['folder']}", markup=False)


def _held_out(found: dict[str, Any]) -> Table:
    """A row an op, a format of it, or an axis beyond its range."""
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


def _show_transfer(found: dict[str, Any]) -> None:
    """Where the curves come from, what was left, and the errors before and after correction."""
    from rich.table import Table

    out = console()
    out.print(found["source"], markup=False)
    for what, reason in found["refused"].items():
        out.print(f"  left out {what}: {reason}", style="dim", markup=False)
    table = Table(title="error on the points given, each left out in turn, %", title_justify="left")
    for heading in ("op", "points", "correction", "MAPE before", "after", "bias before", "after"):
        table.add_column(heading, justify="left" if heading == "op" else "right")
    for op, errors in found["ops"].items():
        before, after = errors["before"], errors["after"] or {}
        cells = [f"{errors['points']}", f"{errors['correction']:+.1f}"]
        for name in ("mape", "bias"):
            cells += [f"{before[name]:.1f}", f"{after[name]:.1f}" if after else "unknown"]
        table.add_row(op, *cells)
    if table.row_count:
        out.print(table)
    out.print(f"curves: {found['curves']}", markup=False)


def _cells(errors: dict[str, Any]) -> list[str]:
    return [f"{errors[name]:.1f}" if name != "n" else f"{errors[name]:,}" for name in ERRORS]
