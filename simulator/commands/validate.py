"""`headway validate`: measured runs simulated and compared."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simulator.commands.from_bench import deployment_of
from simulator.commands.output import console, print_json, progress_bar
from simulator.config import load
from simulator.errors import ConfigError
from simulator.profiles import load_profile
from simulator.validation.bench import OF_THE_LOAD, rows_of_results
from simulator.validation.rows import Row, read_rows
from simulator.validation.runner import validate
from simulator.validation.scenario import Choices, scenario_of
from simulator.validation.score import Validation, summaries

FEW = 5  # results shown one by one
STATED = ("gpu", "model", "tp", "engine", "engine_version", "set")


def run(runs: Sequence[str], values: dict[str, Any]) -> None:
    """Simulate the rows asked for, then print or explain."""
    with tempfile.TemporaryDirectory() as scratch:
        rows, folder = _rows(runs, values, Path(scratch))
        choices = Choices(
            folder=folder,
            profile=values["profile"] or "",
            calibration=values["calibration"] or "",
            base=load(values["against"]) if values["against"] else None,
        )
        if choices.profile:
            load_profile(choices.profile)
        if values["explain"]:
            _explain(rows, values["explain"], choices, bool(values["json"]))
            return
        jobs = _jobs(values["jobs"])
        with progress_bar("simulating runs") as show:
            found = validate(rows, choices, jobs=jobs, progress=show)
    if not _is_table(runs) and not found.runs:
        name, reason = next(iter(found.skipped.items()))
        raise ConfigError(f"{name}: {reason}")
    if values["figure"]:
        from simulator.report.validation import save_validation_figure

        save_validation_figure(values["figure"], found.runs)
    if values["json"]:
        print_json(to_json(found))
        return
    from simulator.report.validation import print_side_by_side, print_validation

    if _is_table(runs) or len(found.runs) > FEW:
        print_validation(console(), found, bool(values["all"]))
    else:
        print_side_by_side(console(), found)


def _is_table(runs: Sequence[str]) -> bool:
    return any(path.endswith(".csv") for path in runs)


def _rows(runs: Sequence[str], values: dict[str, Any], scratch: Path) -> tuple[list[Row], Path]:
    """The runs, of a table or of results, and the folder of their workloads."""
    given = [flag for flag in STATED if values[flag]]
    if _is_table(runs):
        if len(runs) > 1:
            raise ConfigError("validate: expected results (.json), or one runs.csv alone")
        if given or values["against"]:
            flag = (*given, "against")[0].replace("_", "-")
            raise ConfigError(
                f"--{flag}: expected results (.json); a runs.csv states it in columns"
            )
        rows, folder = read_rows(runs[0]), Path(values["workloads"] or Path(runs[0]).parent)
        return chosen(rows, values["where"]), folder
    stated = deployment_of(values)
    if values["against"]:
        clash = [column for column, text in stated.items() if text and column not in OF_THE_LOAD]
        clash += [flag for flag in ("profile", "calibration") if values[flag]]
        if clash:
            raise ConfigError(f"--against: {clash[0]}: expected it in {values['against']}")
    if not values["against"] and not values["gpu"]:
        raise ConfigError(
            "validate: expected --gpu (or --against EXPERIMENT.yaml), which a result does not state"
        )
    return chosen(rows_of_results(runs, stated, scratch), values["where"]), scratch


def chosen(rows: Sequence[Row], where: str | None) -> list[Row]:
    """The rows for which an expression over the columns holds.

    Raises:
        ConfigError: an expression that cannot be read, or that no row fulfils.
    """
    if not where:
        return list(rows)
    import pandas as pd

    frame = pd.DataFrame([dict(row.cells) for row in rows])
    for name in frame:
        numbers = pd.to_numeric(frame[name], errors="coerce")
        if numbers.notna().sum() == (frame[name].fillna("") != "").sum():
            frame[name] = numbers
    try:
        kept = frame.query(where, engine="python").index
    except Exception as error:
        raise ConfigError(
            f"--where: {where!r} cannot be read ({type(error).__name__}: {error}); expected a "
            "comparison of columns, such as 'tp == 2'"
        ) from None
    if len(kept) == 0:
        raise ConfigError(f"--where: no row of {len(rows)} fulfils {where!r}")
    return [rows[i] for i in kept]


def to_json(found: Validation) -> dict[str, object]:
    """Summary, runs and skipped rows."""
    return {
        "summary": summaries(found.runs),
        "runs": [
            {
                "run_id": run.run_id,
                "status": "ok",
                **run.labels,
                "measured": run.measured,
                "predicted": run.predicted,
                "error": run.error,
                "notes": run.notes,
                "wall_s": run.wall_s,
            }
            for run in found.runs
        ],
        "skipped": [{"run_id": name, "reason": text} for name, text in found.skipped.items()],
    }


def _jobs(text: str | None) -> int:
    if text is None:
        return 0
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"--jobs: expected an int >= 1 (got {text!r})")
    return int(text)


def _explain(rows: Sequence[Row], run_id: str, choices: Choices, as_json: bool) -> None:
    from simulator.validation.explain import explain

    row = next((row for row in rows if row.run_id == run_id), None)
    if row is None:
        raise ConfigError(f"--explain: no run {run_id!r} among {len(rows)} rows")
    scenario = scenario_of(row, choices)
    if scenario.instances != (0, 0):
        raise ConfigError(f"--explain: {run_id}: prefill and decode apart cannot be explained")
    found = explain(scenario, row.measured())
    if as_json:
        print_json(
            {
                "run_id": run_id,
                "gap": found.gap,
                "causes": [
                    {
                        "name": cause.name,
                        "step": cause.step,
                        "effect": cause.effect,
                        "share": cause.share,
                        "needed": cause.needed,
                    }
                    for cause in found.causes
                ],
                "left_over": found.left_over,
            }
        )
        return
    from simulator.report.validation import print_explanation

    print_explanation(console(), run_id, found)
