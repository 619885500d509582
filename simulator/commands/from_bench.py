"""`headway calibrate from-bench`: an engine profile that fits one's own server."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from simulator.commands.output import console, print_json, progress_bar
from simulator.errors import ConfigError
from simulator.profiles import FOLDER, load_profile, profile_of_version
from simulator.validation.bench import rows_of_results, write_profile
from simulator.validation.fit import fit
from simulator.validation.rows import Row, read_rows
from simulator.validation.runner import Progress, validate
from simulator.validation.scenario import Choices
from simulator.validation.score import Outcome, summary_of

SHOWN = ("ttft_mean", "tpot_mean", "itl_mean", "e2e_mean")


def run(paths: Sequence[str], options: dict[str, Any]) -> None:
    """Fit, state the error before and after with each run left out, write the profile."""
    with tempfile.TemporaryDirectory() as scratch:
        rows, folder = _rows(paths, options, Path(scratch))
        base = load_profile(options["profile"]) if options["profile"] else _profile_of(rows)
        choices = Choices(folder=folder, profile=options["profile"] or base.name)
        with progress_bar("simulating runs") as show:
            found = fit(rows, choices, progress=show)
            left_out = _left_out(rows, choices, show) if len(rows) > 1 else ()
    written = _target(options["out"])
    if written:
        source = f"fitted on {len(rows)} measured runs: " + ", ".join(r.run_id for r in rows[:5])
        write_profile(written, base, found.values, source)
    document = {
        "profile": str(written) if written else None,
        "base": base.name,
        "runs": len(rows),
        "host": found.values,
        "before": _errors(found.before),
        "after": _errors(found.after),
        "left_out": _errors(left_out) if left_out else None,
    }
    if options["json"]:
        print_json(document)
    else:
        _show(document)


def _rows(paths: Sequence[str], options: dict[str, Any], scratch: Path) -> tuple[list[Row], Path]:
    """Every run of the files, and the folder of their workloads."""
    tables = [path for path in paths if path.endswith(".csv")]
    if tables and len(paths) > 1:
        raise ConfigError("calibrate from-bench: expected results (.json), or one runs.csv alone")
    if tables:
        return read_rows(tables[0]), Path(tables[0]).parent
    if not options["gpu"]:
        raise ConfigError("calibrate from-bench: expected --gpu, which a result does not state")
    return rows_of_results(paths, deployment_of(options), scratch), scratch


def deployment_of(options: dict[str, Any]) -> dict[str, str]:
    """The columns of a run that flags state: --gpu, --tp, --set COLUMN=VALUE, ..."""
    found = {
        "gpu": options["gpu"] or "",
        "model_hf": options["model"] or "",
        "tp": options["tp"] or "",
        "engine": options["engine"] or "",
        "engine_version": options["engine_version"] or "",
    }
    for text in options["set"] or ():
        column, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(
                f"--set: expected COLUMN=VALUE, such as max_num_seqs=256 (got {text!r})"
            )
        found[column.strip()] = value.strip()
    return found


def _profile_of(rows: Sequence[Row]) -> Any:
    found = {profile_of_version(r.text("engine"), r.text("engine_version")).name for r in rows}
    if len(found) > 1:
        raise ConfigError(
            f"calibrate from-bench: expected runs of one engine version (got {sorted(found)}); "
            "--profile chooses one to start from"
        )
    return load_profile(found.pop())


def _left_out(
    rows: Sequence[Row], choices: Choices, progress: Progress | None
) -> tuple[Outcome, ...]:
    """Each run predicted with the values fitted to the others."""
    found: list[Outcome] = []
    for i, row in enumerate(rows):
        others = [*rows[:i], *rows[i + 1 :]]
        values = fit(others, choices, progress=progress).values
        fitted = replace(choices, host={**choices.host, **values})
        found += validate([row], fitted, jobs=1, progress=progress).runs
    return tuple(found)


def _target(out: str | None) -> Path | None:
    """A file, or a name in the folder of bundled profiles."""
    if not out:
        return None
    path = Path(out)
    return path if path.suffix in (".yaml", ".yml") else FOLDER / f"{out}.yaml"


def _errors(runs: Sequence[Outcome]) -> dict[str, Any]:
    return {name: summary_of(runs, name) for name in SHOWN if summary_of(runs, name)["n"]}


def _show(document: dict[str, Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    out = console()
    times = ", ".join(f"{name} {value:.3g}" for name, value in document["host"].items())
    out.print(f"{document['runs']} runs, from {document['base']}: {times}")
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("mean absolute error (bias), %")
    for name in ("before", "after", "each left out"):
        table.add_column(name, justify="right")
    for name in document["before"]:
        columns = [document[key] for key in ("before", "after", "left_out")]
        cells = [f"{c[name]['mape']:.1f} ({c[name]['bias']:+.1f})" if c else "–" for c in columns]
        table.add_row(name.replace("_", " "), *cells)
    out.print(table)
    if document["profile"]:
        out.print(f"profile: {document['profile']} (--profile, or engine.profile)", markup=False)
