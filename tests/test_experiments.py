"""Every experiment in `experiments/` runs, through the command line, to a sensible answer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from simulator.cli import run

FOLDER = Path(__file__).parents[1] / "experiments"
EXPERIMENTS = sorted(FOLDER.glob("*.yaml"))
SEARCHES = [path for path in EXPERIMENTS if "search" in yaml.safe_load(path.read_text())]
SIMULATIONS = [path for path in EXPERIMENTS if path not in SEARCHES]


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    """The JSON document of a command."""
    code = run([*arguments, "--json"])
    out, err = capsys.readouterr()
    assert (0, "") == (code, err)
    document: dict[str, object] = json.loads(out)
    return document


@pytest.mark.parametrize("path", SIMULATIONS, ids=lambda path: path.stem)
def test_every_request_of_a_simulation_completes(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = answer(capsys, "simulate", str(path))
    assert (0, 0) == (summary["failed"], summary["unfinished"])
    assert summary["completed"] != 0


@pytest.mark.parametrize("path", SEARCHES, ids=lambda path: path.stem)
def test_a_search_ranks_more_than_one_plan(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = answer(capsys, "search", str(path), "--jobs", "1")
    plans = outcome["plans"]
    assert isinstance(plans, list)
    assert outcome["best"] == plans[0]
    assert 2 <= len([plan for plan in plans if plan["status"] == "simulated"])


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_comment_of_an_experiment_says_how_to_run_it(path: Path) -> None:
    command = "search" if path in SEARCHES else "simulate"
    comment = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert f"#   headway {command} experiments/{path.name}" == comment[-1]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_name_of_an_experiment_is_that_of_its_file(path: Path) -> None:
    assert path.stem.replace("_", "-") == yaml.safe_load(path.read_text())["name"]
