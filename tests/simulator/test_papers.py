"""Published claims: their files, their verdicts, and the exact ones measured."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from simulator.cli import run
from simulator.errors import ConfigError
from simulator.papers import Claim, System, Verdict, find_systems, load_system, reproduce
from simulator.papers.case import Case
from simulator.papers.verdict import interval

SYSTEMS = find_systems()
KEYS = {"system", "claim", "source", "value", "low", "high", "verdict", "ci", "wall_s"}


def claim(**changes: object) -> Claim:
    values: dict[str, object] = {"id": "X-1", "claim": "it holds", "source": "figure 1"}
    values |= {"measure": "it", "low": 1.0, "high": 2.0, "why": "so", "evidence": "calc"}
    return Claim(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_has_claims_measures_a_text_and_a_picture(name: str) -> None:
    system = load_system(name)
    module = system.module()
    assert set() == {claim.measure for claim in system.claims} - set(module.MEASURES)
    ids = [claim.id for claim in system.claims]
    assert len(set(ids)) == len(ids)
    text = (system.folder / "README.md").read_text(encoding="utf-8")
    assert f"headway reproduce {name}" in text
    assert "(picture.png)" in text
    assert (system.folder / "picture.png").read_bytes()[:4] == b"\x89PNG"
    assert Case(system.experiment, 0).experiment().seed == 0


@pytest.mark.parametrize("name", SYSTEMS)
def test_claims_with_one_seed_and_one_value_hold_exactly(name: str) -> None:
    system = load_system(name)
    # A direction beside an exact value says that we know it is missed.
    one = (c for c in system.claims if c.seeds == 1 and c.low == c.high)
    exact = tuple(c for c in one if not c.direction)
    case = Case(system.experiment, 0, quick=True)
    measures = system.module().MEASURES
    assert {c.id: c.low for c in exact} == {c.id: measures[c.measure](case) for c in exact}


@pytest.mark.parametrize(
    ("values", "direction", "verdict"),
    [
        ((1.5, 1.9), "", "reproduced"),
        ((1.0, 1.0), "", "reproduced"),
        ((3.0, 3.0), "> 0.5", "direction only"),
        ((0.4, 0.4), "> 0.5", "not reproduced"),
        ((0.4, 0.4), "< 0.5", "direction only"),
        ((3.0, 3.0), "", "not reproduced"),
        ((), "", "error"),
    ],
)
def test_verdicts(values: tuple[float, ...], direction: str, verdict: str) -> None:
    found = Verdict(system="s", claim=claim(direction=direction), values=values, wall_s=0.0)
    assert verdict == found.verdict


def test_interval_is_students() -> None:
    low, high = interval((1.0, 2.0, 3.0)) or (math.nan, math.nan)
    assert (low, high) == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    assert interval((1.0,)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"low": 3}, "expected low <= high"),
        ({"low": "much"}, r"low: expected a number"),
        ({"direction": "up"}, "expected '> NUMBER'"),
        ({"seeds": -1}, "seeds: expected an int"),
        ({"claim": None}, "claim: expected text"),
        ({"clam": "x"}, "clam"),
    ],
)
def test_broken_claims_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    entry = {"id": "X", "claim": "c", "source": "s", "measure": "m", "low": 1, "high": 2}
    entry |= {"why": "w", "evidence": "calc"} | change
    place = tmp_path / "broken"
    place.mkdir()
    (place / "claim.yaml").write_text(json.dumps({"title": "t", "paper": "p", "claims": [entry]}))
    with pytest.raises(ConfigError, match=message):
        load_system("broken", tmp_path)


def test_a_measure_that_fails_is_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(case: Case) -> float:
        raise ValueError("no such thing")

    monkeypatch.setattr(System, "module", lambda self: type("M", (), {"MEASURES": {"it": fail}}))
    system = System(name="s", title="t", paper="p", folder=Path("."), claims=(claim(),))
    (verdict,) = reproduce([system], quick=True, jobs=1)
    assert ("error", "ValueError: no such thing") == (verdict.verdict, verdict.error)


def test_reproduce_prints_the_same_rows_however_many_processes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    documents = []
    for jobs in ("1", "2"):
        assert run(["reproduce", "paged_attention", "--quick", "--json", "--jobs", jobs]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    rows = documents[0]
    assert [row["id"] for row in rows] == [c.id for c in load_system("paged_attention").claims]
    assert all(set(row) >= KEYS for row in rows)
    assert {"reproduced"} == {row["verdict"] for row in rows if row["id"].startswith("VL-1")}
    for document in documents:
        for row in document:
            del row["wall_s"]
    assert documents[0] == documents[1]


def test_reproduce_lists_refuses_and_explains(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reproduce"]) == 0
    assert "paged_attention" in capsys.readouterr().out
    for arguments, message in (
        (["paged_atention"], "paged_attention"),
        (["paged_attention", "--all"], "--all"),
        (["paged_attention", "--jobs", "0"], "--jobs: expected an int >= 1"),
    ):
        assert run(["reproduce", *arguments]) == 2
        assert message in capsys.readouterr().err
