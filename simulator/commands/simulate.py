"""`headway simulate`: one experiment, its summary and the files asked for."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from simulator.batch import FOREVER
from simulator.commands.flags import SIMULATE
from simulator.commands.output import console, print_json, progress_bar
from simulator.commands.overrides import Values, document_of, num_draws
from simulator.config import resolve_experiment
from simulator.engine import simulate
from simulator.errors import ConfigError
from simulator.experiment import Experiment
from simulator.metrics import summarise
from simulator.openmetrics import SUFFIXES as METRICS_SUFFIXES
from simulator.openmetrics import save_metrics
from simulator.recorder import Result
from simulator.save import check_writable, save_requests, save_result
from simulator.units import parse, to_ns
from simulator.workloads.checks import rate_per_s

if TYPE_CHECKING:
    from simulator.openmetrics import Written as SampledMetrics
    from simulator.timeline import Written


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
    written = save_trace(result, values)
    sampled = None
    if values["metrics_out"]:
        sampled = save_metrics(
            values["metrics_out"],
            result,
            resolved.model.name,
            interval_of(values["metrics_interval"]),
            resolved.settings.max_model_len or resolved.model.max_context_tokens,
        )
    if values["json"]:
        print_json(summary | ({"uncertainty": found.to_json()} if found else {}))
        return
    from simulator.report.tables import print_summary

    print_summary(console(), resolved, summary)
    if found:
        from simulator.report.uncertainty_table import print_run_uncertainty

        print_run_uncertainty(console(), found)
    _say_what_is_written(values, written, sampled)


def _say_what_is_written(
    values: Values, written: Written | None, sampled: SampledMetrics | None
) -> None:
    if written:
        start, end, of = (f"{ns / 1e9:.4g}" for ns in (*written.window_ns, written.end_ns))
        name, num = values["timeline"], written.num_events
        print(f"{name}: {num:,} events of {start} to {end} s, the run takes {of} s")
    if sampled:
        every = f"{sampled.num_moments:,} samples of each metric, {sampled.interval_s:g} s apart"
        print(f"{values['metrics_out']}: {every}")


def check_outputs(values: Values) -> None:
    """Refuse an output that cannot be written before simulating for it."""
    if values["save_detailed"] and not values["save_result"]:
        raise ConfigError("--save-detailed: expected --save-result FILE with it (got none)")
    if values["timeline_window"] and not values["timeline"]:
        raise ConfigError("--timeline-window: expected --timeline FILE with it (got none)")
    window_of(values["timeline_window"])
    if values["metrics_interval"] and not values["metrics_out"]:
        raise ConfigError("--metrics-interval: expected --metrics-out FILE with it (got none)")
    interval_of(values["metrics_interval"])
    outputs = {
        "save_result": (".json",),
        "requests_out": (".csv", ".parquet"),
        "timeline": (".json",),
        "metrics_out": METRICS_SUFFIXES,
    }
    for name, suffixes in outputs.items():
        if values[name]:
            check_writable(values[name], suffixes)
    check_folder(values)


def check_folder(values: Values) -> None:
    """Refuse --figures FILE before simulating for it."""
    folder = values["figures"]
    if folder and Path(folder).exists() and not Path(folder).is_dir():
        raise ConfigError(f"--figures: expected a folder (got the file {folder})")


def window_of(text: str | None) -> tuple[int, int] | None:
    """Nanoseconds of "10s:20s"; an end left out is that of the run; None where not given."""
    if text is None:
        return None
    first, colon, last = text.partition(":")
    if not colon:
        raise ConfigError(f"--timeline-window: expected START:END, such as 10s:20s (got {text!r})")
    start_ns, end_ns = (
        to_ns(parse(side, "time", key="--timeline-window")) if side.strip() else default
        for side, default in ((first, 0), (last, FOREVER))
    )
    if start_ns >= end_ns:
        raise ConfigError(f"--timeline-window: expected START before END (got {text!r})")
    return start_ns, end_ns


def interval_of(text: str | None) -> float | None:
    """Seconds of "10s"; None where not given."""
    if text is None:
        return None
    seconds = parse(text, "time", key="--metrics-interval")
    if not 1e-6 <= seconds < math.inf:
        raise ConfigError(f"--metrics-interval: expected at least 1 us (got {text!r})")
    return seconds


def save_trace(result: Result, values: Values) -> Written | None:
    """The timeline, where it is asked for."""
    if not values["timeline"]:
        return None
    from simulator.timeline import save_timeline

    return save_timeline(values["timeline"], result, window_of(values["timeline_window"]))


def save(
    experiment: Experiment,
    result: Result,
    summary: dict[str, object],
    values: Values,
    workload: object,
) -> None:
    """Write the files asked for; each appears whole or not at all."""
    if values["save_result"]:
        save_result(
            values["save_result"],
            experiment,
            result,
            summary,
            bool(values["save_detailed"]),
            _configured(workload),
        )
    if values["requests_out"]:
        save_requests(values["requests_out"], result)
    if values["figures"]:
        from simulator.report.figures import save_figures

        save_figures(values["figures"], experiment, result)


def _configured(workload: object) -> dict[str, object]:
    """The load as it was asked for, where it was; JSON has no infinity."""
    stated = workload if isinstance(workload, dict) else {}
    found: dict[str, float] = {}
    if stated.get("request_rate"):
        found["request_rate"] = rate_per_s("", stated["request_rate"], bare=True)
    if stated.get("burstiness"):
        found["burstiness"] = float(stated["burstiness"])
    return {key: value if math.isfinite(value) else "inf" for key, value in found.items()}
