"""Formatting, lint and types of the whole tree, as the tools report them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TYPED = ("simulator", "calibration")

pytestmark = pytest.mark.style


def tool(*arguments: str) -> str:
    """What a tool complains about; empty where it is satisfied."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def test_the_tree_is_formatted() -> None:
    assert "" == tool("ruff", "format", "--check", ".")


def test_the_tree_has_no_lint() -> None:
    assert "" == tool("ruff", "check", "--output-format=concise", ".")


def test_the_tree_is_typed() -> None:
    packages = [name for name in TYPED if any((ROOT / name).glob("*.py"))]
    assert "" == tool("mypy", "--strict", *(f"--package={name}" for name in packages))
