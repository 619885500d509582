"""`headway compare`: experiments side by side on common random numbers."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from simulator.commands.flags import COMPARE
from simulator.commands.output import console, print_json, progress_bar
from simulator.commands.overrides import Values, document_of, typed, varied
from simulator.comparison import MOST_SEEDS, NUM_SEEDS, Measured, compare, is_result, read_measured
from simulator.config import Document
from simulator.errors import ConfigError
from simulator.save import check_writable

INTERRUPTED = 130
MOST_JOBS = 1024
FIGURES = (".png", ".svg", ".pdf")


def run(paths: Sequence[str], values: Values) -> int:
    """Compare, draw what is asked for, print the differences; the exit code.

    Raises:
        ConfigError: fewer than two experiments, or one that cannot be used.
        InfeasiblePlan: fewer than two of them can run.
    """
    if values["figure"]:
        check_writable(values["figure"], FIGURES)
    num_seeds, jobs = (
        _count(values, "seeds", NUM_SEEDS, MOST_SEEDS),
        _count(values, "jobs", 0, MOST_JOBS),
    )
    experiments = _experiments(paths, values)
    with progress_bar("simulations") as show:
        found = compare(experiments, num_seeds=num_seeds, jobs=jobs, progress=show)
    if values["figure"] and not found.interrupted:
        from simulator.report.figures_comparison import save_comparison_figure

        save_comparison_figure(values["figure"], found)
    if values["json"]:
        print_json(found.to_json())
    else:
        from simulator.report.comparison_table import print_comparison

        print_comparison(console(), found)
    sys.stdout.flush()
    return INTERRUPTED if found.interrupted else 0


def _experiments(paths: Sequence[str], values: Values) -> dict[str, Document | Measured]:
    """What is compared, by name, the baseline first."""
    given: list[tuple[str, Document | Measured]] = []
    for path in paths:
        if is_result(path):
            result = read_measured(path)
            given.append((result.name, result))
        else:
            given.append((path, document_of(path, COMPARE, values)))
    variations = values["vary"] or ()
    if not paths and variations:
        given.append(("", document_of(None, COMPARE, values)))
    if len(given) + len(variations) < 2:
        what = paths[0] if paths else "none"
        raise ConfigError(
            f"compare: expected two or more experiments, or one and --vary KEY=VALUE (got {what})"
        )
    named = _named(given)
    for text in variations:
        first = given[0][1]
        if not isinstance(first, Document):
            raise ConfigError(f"--vary: expected an experiment first to vary (got {paths[0]})")
        named.append(varied(first, text))
    unique: dict[str, Document | Measured] = {}
    for name, each in named:
        taken = sum(known == name or known.startswith(f"{name} (") for known in unique)
        unique[f"{name} ({taken + 1})" if name in unique else name] = each
    return unique


def _named(
    given: Sequence[tuple[str, Document | Measured]],
) -> list[tuple[str, Document | Measured]]:
    """Experiments by their own names where those differ, else by their files'."""
    names = [_own_name(path, each) for path, each in given]
    stems = [Path(path).stem for path, _ in given]
    return [
        (name if names.count(name) == 1 or not stem else stem, each)
        for name, stem, (_, each) in zip(names, stems, given, strict=True)
    ]


def _own_name(path: str, each: Document | Measured) -> str:
    if isinstance(each, Measured):
        return each.name
    return str(each.data.get("name") or Path(path).stem or "baseline")


def _count(values: Values, name: str, default: int, most: int) -> int:
    """A flag that counts something from 1 on."""
    text = values[name]
    if text is None:
        return default
    count = typed(int, text)
    if not isinstance(count, int) or not 1 <= count <= most:
        raise ConfigError(f"--{name}: expected an int from 1 to {most:,} (got {text})")
    return count
