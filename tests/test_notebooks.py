"""The notebooks of `experiments/` are committed executed, run again, and say the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "experiments"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MOST_BYTES = 300_000
TIMEOUT_S = 120

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
# What Jupyter's own libraries warn of is not ours to fix.
pytestmark = pytest.mark.filterwarnings("default")


def printed(notebook: Any) -> list[str]:
    """Tables and text that the cells show, without addresses of objects."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            text = output.get("text") or output.get("data", {}).get("text/plain", "")
            found.append(re.sub(r" at 0x[0-9a-f]+", "", text))
    return found


def test_the_notebooks_are_there() -> None:
    names = {path.stem for path in NOTEBOOKS}
    assert names == {
        *("quickstart", "plan_search", "capacity", "calibration", "fidelity", "policies"),
    }


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_is_committed(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert path.stat().st_size < MOST_BYTES
    committed = nbformat.read(path, as_version=4)
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert list(range(1, len(code) + 1)) == [cell.execution_count for cell in code]
    monkeypatch.setenv("HEADWAY_E2E", str(tmp_path))  # measured runs are not everywhere
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    place = {"metadata": {"path": str(path.parent)}}
    again = nbformat.from_dict(committed)
    before = printed(committed)
    nbclient.NotebookClient(again, timeout=TIMEOUT_S, resources=place).execute()
    after = printed(again)
    assert len(before) == len(after)
    assert any("image/png" in output.get("data", {}) for c in code for output in c.outputs)
    if path.stem == "fidelity":  # committed with measured runs, repeated with its own example
        assert "6 runs, 0 skipped\n" == after[0]
        assert "no such run here" in after[-1]
    else:
        assert before == after
