"""`headway search`: the best plan for a workload on a cluster."""

from __future__ import annotations

import sys
from pathlib import Path

from simulator.commands.flags import SEARCH
from simulator.commands.output import console, print_json, progress_bar
from simulator.commands.overrides import Values, document_of, num_draws
from simulator.commands.simulate import check_folder
from simulator.config import resolve_search
from simulator.errors import ConfigError, InfeasiblePlan, InvariantViolation
from simulator.save import check_writable, save_text
from simulator.search import PlanRecord, SearchOutcome, SearchSpec, run_search
from simulator.search.deploy import TARGETS, deploy
from simulator.search.objective import show_objective, value_of
from simulator.spec import ModelSpec
from simulator.uncertainty import check_errors, search_uncertainty

INTERRUPTED = 130


def run(experiment: str | None, values: Values) -> int:
    """Search, print what was found; the exit code.

    Raises:
        InfeasiblePlan: no plan can serve the workload.
        InvariantViolation: a plan broke the simulator.
    """
    check_folder(values)
    draws = num_draws(values)
    _check_deploy(values)
    spec = resolve_search(document_of(experiment, SEARCH, values))
    if draws:
        check_errors(spec.cluster, str(spec.engine.get("calibration", "")))
    with progress_bar("plans") as show:

        def progress(done: int, total: int, best: PlanRecord | None) -> None:
            if show is not None:
                show(done, total, _best(spec, best))

        outcome = run_search(spec, progress=progress, store=values["store"])
    found, is_cut = None, False
    if draws and outcome.best is not None and not outcome.interrupted:
        try:
            with progress_bar("draws of the best plans") as show:
                store = values["store"]
                found = search_uncertainty(spec, outcome, draws, progress=show, store=store)
        except KeyboardInterrupt:  # the search itself is finished and worth showing
            is_cut = True
    if values["figures"] and not outcome.interrupted:
        from simulator.report.figures_search import save_search_figures

        save_search_figures(values["figures"], outcome)
    text = _deployed(values, outcome, spec.model)
    if values["json"]:
        more = {"uncertainty": found.to_json()} if found else {}
        print_json(outcome.to_json() | more | ({"deploy": text} if text else {}))
    else:
        from simulator.report.search_table import print_outcome

        print_outcome(console(), outcome)
        if found:
            from simulator.report.uncertainty_table import print_search_uncertainty

            print_search_uncertainty(console(), outcome, found)
        print("" if values["deploy_out"] else text, end="")
    sys.stdout.flush()
    return INTERRUPTED if is_cut else exit_code(outcome)


def _best(spec: SearchSpec, best: PlanRecord | None) -> str:
    """The winner so far, for the line under the work."""
    if best is None:
        return ""
    value = value_of(best.metrics, spec.objective, spec.objective_statistic)
    return f"best: {best.label}, {show_objective(value, spec.objective)}"


def _check_deploy(values: Values) -> None:
    target, out = values["deploy"], values["deploy_out"]
    if target and target not in TARGETS:
        raise ConfigError(f"--deploy: expected one of {', '.join(TARGETS)} (got {target!r})")
    if out and not target:
        raise ConfigError("--deploy-out: expected --deploy with it (got none)")
    if out:
        check_writable(out, (Path(out).suffix,))


def _deployed(values: Values, outcome: SearchOutcome, stored: ModelSpec) -> str:
    """What --deploy asks for, written where it shall be; empty without a best plan."""
    if not values["deploy"] or outcome.best is None:
        return ""
    text = deploy(values["deploy"], outcome.best.candidate, stored)
    if values["deploy_out"]:
        save_text(values["deploy_out"], text)
    return text


def exit_code(outcome: SearchOutcome) -> int:
    """0 with a best plan; else why there is none."""
    if outcome.interrupted:
        return INTERRUPTED
    if outcome.bugs:
        bug = outcome.bugs[0]
        raise InvariantViolation(f"plan {bug.label}: {bug.reason}")
    if outcome.best is None:
        reasons = [f"{record.label}: {record.reason}" for record in outcome.records]
        shown = "; ".join(reasons[:3]) or "nothing to try"
        more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        raise InfeasiblePlan(f"no feasible plan among {len(reasons)} ({shown}{more})")
    return 0
