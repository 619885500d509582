"""The web report as text: what it shows, that it is well formed, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.cli import run
from simulator.report.web import held_out_errors
from simulator.report.web.markup import Safe, shown, tag
from simulator.report.web.plots import Axis
from tests.simulator.validation_support import measured_by, row, write_runs
from tests.simulator.web_support import HOSTILE, Page, enlarged, printed, search_result, written


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One real result of each kind."""
    folder = tmp_path_factory.mktemp("results")
    runs = [measured_by(row(run_id=f"r{n}", request_rate_rps=str(n)), folder) for n in (2, 6)]
    csv = write_runs(folder / "runs.csv", [*runs, row(run_id="odd", gpu="XYZ-1")])
    few = ["experiments/quickstart.yaml", "--max-requests", "80"]
    found = {}
    for name, words in {
        "search": ["search", "experiments/goodput_search.yaml", "--max-requests", "30"],
        "sim": ["simulate", *few, "--uncertainty", "3"],
        "validation": ["validate", str(csv)],
    }.items():
        words += ["--jobs", "1"] if name != "sim" else []
        found[name] = printed(*words)
    detail = folder / "detail.json"
    few += ["--save-result", str(detail), "--save-detailed"]
    printed("simulate", *few)
    found["detail"] = json.loads(detail.read_text())
    return found


def page_of(folder: Path, **documents: Any) -> Page:
    target = folder / "report.html"
    assert 0 == run(["report", *written(folder, **documents), "-o", str(target)])
    return Page(target.read_text(encoding="utf-8"))


def test_all_kinds_together_are_one_well_formed_page(
    tmp_path: Path, results: dict[str, Any]
) -> None:
    page = page_of(tmp_path, **results)
    idents = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(idents) == len(set(idents))
    links = {str(a["href"]).removeprefix("#") for a in page.all("a")}
    assert links <= set(idents)
    assert {"result-1", "result-2", "result-3", "assumptions"} == links
    for _, attributes in page.elements:
        for name in ("src", "href"):
            assert str(attributes.get(name, "#")).startswith(("#", "data:"))
    assert all(a.get("scope") in ("col", "row") for a in page.all("th"))
    assert page.text.count("Latencies") == 1


def test_a_search_shows_every_plan_reason_and_the_command(
    tmp_path: Path, results: dict[str, Any]
) -> None:
    search = results["search"]
    page = page_of(tmp_path, search=search)
    for plan in search["plans"]:
        assert plan["label"] in page.text
        assert plan["why"] in page.text
        assert plan["reason"] in page.text
    assert search["command"] in page.text
    assert search["heuristic"]["label"] in page.text
    assert "SLO attainment at each rate" in page.text
    errors = held_out_errors(search["best"]["metrics"]["cost_tables"])
    assert {"GEMM", "prefill", "decode"} <= set(errors)
    for op, value in errors.items():
        assert op in page.text
        assert f"{value:.1f} %" in page.text


def test_runs_side_by_side_with_intervals_and_distributions(
    tmp_path: Path, results: dict[str, Any]
) -> None:
    page = page_of(tmp_path, sim=results["sim"], detail=results["detail"])
    low = results["sim"]["uncertainty"]["metrics"]["p99_ttft_ms"]["low"]
    assert f"{low:.3g} ms …" in page.text
    curves = [str(a["points"]).split() for a in page.all("polyline")]
    assert {4, 103} == {len(points) for points in curves}  # stated percentiles, and all requests
    assert 8 == len(curves)


def test_a_validation_shows_errors_and_what_was_skipped(
    tmp_path: Path, results: dict[str, Any]
) -> None:
    page = page_of(tmp_path, validation=results["validation"])
    assert "2 runs simulated, 1 skipped" in page.text
    assert "odd" in page.text
    assert results["validation"]["skipped"][0]["reason"] in page.text
    assert 6 == sum(a.get("class") == "pt" for a in page.all("circle"))


def test_hostile_text_stays_text(tmp_path: Path, results: dict[str, Any]) -> None:
    search = json.loads(json.dumps(results["search"]).replace("qwen3-32b", "§"))
    text = json.dumps(search).replace("\\u00a7", json.dumps(HOSTILE)[1:-1])
    page = page_of(tmp_path, search=json.loads(text))
    assert 1 == len(page.all("script"))
    assert [] == page.all("img")
    assert " ".join(HOSTILE.split()) in page.text


def test_a_search_without_a_winner_or_cut_short(tmp_path: Path, results: dict[str, Any]) -> None:
    search = results["search"]
    lost = [plan | {"rank": None, "status": "not run", "metrics": {}} for plan in search["plans"]]
    nothing = {"best": None, "heuristic": None, "speedup_over_heuristic": None, "pareto": []}
    page = page_of(tmp_path, search=search | nothing | {"plans": lost, "interrupted": True})
    assert "No plan serves this so far (interrupted)" in page.text
    assert page.text.count("not run") >= len(lost)


def test_five_hundred_plans_stay_under_5_mb(tmp_path: Path, results: dict[str, Any]) -> None:
    page = page_of(tmp_path, search=enlarged(results["search"], 500))
    assert 500 < len(page.all("tr"))
    assert (tmp_path / "report.html").stat().st_size < 2e6


def test_a_run_in_which_nothing_completed(tmp_path: Path) -> None:
    words = ["experiments/quickstart.yaml", "--max-requests", "3", "--horizon", "1ms"]
    page = page_of(tmp_path, sim=printed("simulate", *words))
    assert "–" in page.text
    assert [] == page.all("polyline")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{}", "expected what `headway search`"),
        ("[1]", "got a list"),
        ("{", "expected JSON"),
        ('{"duration":1,"completed":1,"mean_ttft_ms":[],"output_throughput":{}}', ""),
        ('{"objective":1,"metric":2,"plans":3,"counts":4}', "cannot be read as a result"),
        ('{"summary":1,"runs":[1],"skipped":[]}', "cannot be read as a result"),
    ],
)
def test_what_is_no_result_is_refused(
    text: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.json").write_text(text)
    target = tmp_path / "report.html"
    code = run(["report", str(tmp_path / "x.json"), "-o", str(target)])
    assert (2 if expected else 0) == code
    assert expected in capsys.readouterr().err
    assert target.exists() is (not expected)


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["no.json"], ["no.json", "-o", str(tmp_path / "x.pdf")]):
        assert 2 == run(["report", *words])
        assert 1 == capsys.readouterr().err.count("\n")


def test_pieces() -> None:
    assert '<a b-c="&quot;&lt;">&lt;<b></b></a>' == tag("a", "<", Safe("<b></b>"), b_c='"<')
    assert ["12.3 ms", "$0.00123", "45.6 %"] == [
        shown("p90_ttft_ms", 12.34),
        shown("usd_per_hour", 0.00123),
        shown("mfu", 0.456),
    ]
    for low, high in ((0.0, 0.7), (0.0, 100.0), (0.0, 1e-9), (0.0, 8.5e6), (3.0, 3.1)):
        ticks = Axis(title="x", low=low, high=high).ticks()
        assert 3 <= len(ticks) <= 8
        assert low - 1e-12 <= min(ticks)
        assert max(ticks) <= high * (1 + 1e-9)
    assert [1.0, 10.0, 100.0] == [
        tick
        for tick in Axis(title="x", low=0.9, high=200.0, is_log=True).ticks()
        if tick in (1, 10, 100)
    ]


def test_a_search_with_intervals(tmp_path: Path) -> None:
    search = search_result("--uncertainty", "2", "--tp", "2,4", "--dp", "1")
    page = page_of(tmp_path, search=search)
    assert "80 % interval" in page.text
    assert "2 of 2" in page.text
