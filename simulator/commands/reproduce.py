"""`headway reproduce`: measure what papers claim, and say whether it holds here."""

from __future__ import annotations

from simulator.commands.output import console, print_json, progress_bar
from simulator.commands.overrides import Values, typed
from simulator.errors import ConfigError
from simulator.papers import System, find_systems, load_system, reproduce
from simulator.papers.verdict import ERROR

FAILED = 1


def run(name: str | None, values: Values) -> int:
    """Print the verdicts; the exit code: 1 where a measure failed to run.

    Raises:
        ConfigError: an unknown system, or claims that cannot be read.
    """
    if not name and not values["all"]:
        _list(values["json"])
        return 0
    if name and values["all"]:
        raise ConfigError(f"--all: expected no system beside it (got {name})")
    systems = [load_system(each) for each in (find_systems() if values["all"] else [name or ""])]
    quick = values["quick"]
    with progress_bar("measured") as show:
        verdicts = reproduce(systems, quick=quick, jobs=_jobs(values["jobs"]), progress=show)
    if values["draw"]:
        from simulator.report.papers import draw

        for system in systems:
            draw(system, [verdict for verdict in verdicts if verdict.system == system.name], quick)
    if values["json"]:
        print_json([verdict.to_json() for verdict in verdicts])
    else:
        from simulator.report.papers import print_verdicts

        print_verdicts(console(), verdicts)
    return FAILED if any(verdict.verdict == ERROR for verdict in verdicts) else 0


def _jobs(text: str | None) -> int:
    jobs = typed(int, text) if text is not None else 0
    if not isinstance(jobs, int) or (text is not None and jobs < 1):
        raise ConfigError(f"--jobs: expected an int >= 1 (got {text!r})")
    return jobs


def _list(as_json: bool) -> None:
    systems: list[System] = [load_system(name) for name in find_systems()]
    if as_json:
        rows = [
            {"name": s.name, "title": s.title, "paper": s.paper, "claims": len(s.claims)}
            for s in systems
        ]
        print_json(rows)
        return
    from simulator.report.papers import print_systems

    print_systems(console(), systems)
