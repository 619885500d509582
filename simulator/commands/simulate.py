"""`headway simulate`: one experiment, its summary and the files asked for."""

from __future__ import annotations

import math
from pathlib import Path

from simulator.commands.flags import SIMULATE
from simulator.commands.output import console, print_json, progress_bar
from simulator.commands.overrides import Values, document_of, num_draws
from simulator.config import resolve_experiment
from simulator.engine import simulate
from simulator.errors import ConfigError
from simulator.experiment import Experiment
from simulator.metrics import summarise
from simulator.recorder import Result
from simulator.save import check_writable, save_requests, save_result


def run(experiment: str | None, values: Values) -> None:
    """Simulate, save what is asked for, print the summary."""
    check_outputs(values)
    draws = num_draws(values)
    document = document_of(experiment, SIMULATE, values)
    resolved = resolve_experiment(document)
    if draws:
        from simulator.uncertainty import check_errors, run_uncertainty

        check_errors(resolved.cluster, resolved.settings.calibration)
    with progress_bar("simulating requests") as show:
        result = simulate(resolved, show)
    summary = summarise(resolved, result)
    save(resolved, result, summary, values, document.data.get("workload"))
    found = None
    if draws:
        with progress_bar("draws") as show:
            found = run_uncertainty(resolved, summary, draws, progress=show)
    if values["json"]:
        print_json(summary | ({"uncertainty": found.to_json()} if found else {}))
        return
    from simulator.report.tables import print_summary

    print_summary(console(), resolved, summary)
    if found:
        from simulator.report.uncertainty_table import print_run_uncertainty

        print_run_uncertainty(console(), found)


def check_outputs(values: Values) -> None:
    """Refuse an output that cannot be written before simulating for it."""
    if values["save_detailed"] and not values["save_result"]:
        raise ConfigError("--save-detailed: expected --save-result FILE with it (got none)")
    for name, suffixes in (("save_result", (".json",)), ("requests_out", (".csv", ".parquet"))):
        if values[name]:
            check_writable(values[name], suffixes)
    folder = values["figures"]
    if folder and Path(folder).exists() and not Path(folder).is_dir():
        raise ConfigError(f"--figures: expected a folder (got the file {folder})")


def save(
    experiment: Experiment,
    result: Result,
    summary: dict[str, object],
    values: Values,
    workload: object,
) -> None:
    """Write the files asked for; each appears whole or not at all."""
    if values["save_result"]:
        stated = workload if isinstance(workload, dict) else {}
        rate = stated.get("request_rate")
        metadata = {"request_rate": "inf" if rate == math.inf else rate} if rate else None
        save_result(
            values["save_result"],
            experiment,
            result,
            summary,
            bool(values["save_detailed"]),
            metadata,
        )
    if values["requests_out"]:
        save_requests(values["requests_out"], result)
    if values["figures"]:
        from simulator.report.figures import save_figures

        save_figures(values["figures"], result)
