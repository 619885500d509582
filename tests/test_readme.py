"""What README.md says is true: its commands and examples run, and its tables are the code's."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from simulator import engine
from simulator.cli import run
from tests.simulator.outcomes import BOOKED
from tests.simulator.toys import toy_setup, toy_table
from tests.simulator.watch import difference
from tests.test_layers import LAYERS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "simulator" / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Contents of the fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def examples() -> dict[str, str]:
    """Each `$ headway ...` of a console block, and the output pasted below it."""
    found: dict[str, str] = {}
    for block in blocks("console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, _, output = part.partition("\n")
            found[command] = output
    return found


def squeezed(line: str) -> str:
    return " ".join(line.split())


def headings(output: str) -> set[str]:
    """The lines above the rules of tables: what the columns are called."""
    lines = output.splitlines()
    rules = [i for i, line in enumerate(lines) if line.strip().startswith("───")]
    return {squeezed(lines[i - 1]) for i in rules}


@pytest.fixture
def beside_experiments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory where what an example writes does no harm."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("command", examples())
def test_an_example_runs_and_prints_what_is_shown(
    command: str, beside_experiments: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line, _, file = command.partition(" > ")
    program, *arguments = shlex.split(line)
    assert "headway" == program
    code = run([*arguments, *(["--jobs", "1"] if "search" == arguments[0] else [])])
    out, err = capsys.readouterr()
    assert (0, "") == (code, err)
    assert headings(examples()[command]) <= {squeezed(shown) for shown in out.splitlines()}
    if file:
        json.loads(out)


@pytest.mark.parametrize("number", range(len(blocks("yaml"))))
def test_an_experiment_of_the_page_runs(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "example.yaml"
    file.write_text(blocks("yaml")[number])
    assert 0 == run(["simulate", str(file)])
    assert "" == capsys.readouterr().err


def test_the_python_example_runs(
    beside_experiments: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for block in blocks("python"):
        exec(block, {})
    assert "" != capsys.readouterr().out


def test_the_scheduler_of_the_page_runs_and_keeps_to_the_rules(
    beside_experiments: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    block = next(block for block in blocks("python") if "OnePrompt" in block)
    assert block.count("\n") <= 40
    (beside_experiments / "one_prompt.py").write_text(block)
    monkeypatch.syspath_prepend(beside_experiments)
    command = re.search(r"headway\s+(simulate [^`]*OnePrompt[^`]*)`", README)
    assert command is not None
    ttft = []
    for chunk in (512, 64):
        arguments = shlex.split(command[1].replace("512", str(chunk)))
        assert 0 == run([*arguments, "--set", "workload.max_requests=100", "--json"])
        ttft.append(json.loads(capsys.readouterr().out)["mean_ttft_ms"])
    assert ttft[0] < ttft[1]
    scheduler = importlib.import_module("one_prompt").OnePrompt(chunk=40)
    setup = toy_setup(toy_table(3, 60, rate=80), num_pages=60, scheduler=scheduler)
    result = engine.run(setup)
    assert result.preemptions.any()
    assert result.completed.all()
    stepped = engine.run(replace(setup, coalesce=False))
    assert "" == difference(result, stepped, but=BOOKED)


def test_two_commands_do_everything_and_ci_runs_them() -> None:
    set_up, tests = blocks("sh")[0].splitlines()
    assert set_up.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert set_up.endswith(" && .venv/bin/headway search experiments/plan_search.yaml")
    assert ".venv/bin/python -m pytest" == tests
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_table_of_layers_is_the_one_that_is_checked() -> None:
    for number, modules in enumerate(LAYERS):
        row = re.search(rf"^\| {number} .*?\|(.*?)\|", ARCHITECTURE, flags=re.MULTILINE)
        assert row is not None
        assert modules == set(re.findall(r"`(\w+)`", row[1]))


def test_paths_on_the_page_exist() -> None:
    paths = set(re.findall(r"[(`]((?:simulator|configs|experiments|tests)/[\w./]*)[)`]", README))
    assert set() == {path for path in paths if not (ROOT / path).exists()}
    assert 5 < len(paths)
