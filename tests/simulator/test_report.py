"""Terminal summary and figures: what they show, how wide, and runs with nothing to show."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from simulator.cli import run
from simulator.config import load
from simulator.costs.explain import explain
from simulator.engine import simulate
from simulator.errors import ConfigError
from simulator.experiment import Experiment
from simulator.metrics import summarise
from simulator.recorder import REJECTED, Result
from simulator.report.figures import save_figures
from simulator.report.figures_ops import batch_of, sampled
from simulator.report.tables import print_summary
from simulator.spec import Slo
from tests.simulator.logs import by_hand, experiment, ints, one_token, spans

PNG = b"\x89PNG"


def printed(result: Result, slo: Slo | None = None, width: int = 200) -> list[str]:
    setup = experiment(result.table, slo=slo)
    console = Console(file=io.StringIO(), width=width)
    print_summary(console, setup, summarise(setup, result))
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text.splitlines()


def nothing_served() -> Result:
    unset = {name: ints(-1) for name in ("scheduled_ns", "first_token_ns", "finish_ns", "target")}
    return one_token(status=ints(REJECTED), lanes=(), spans=spans(), end_ns=0, **unset)


@pytest.mark.parametrize("width", [80, 200])
def test_summary_fits_80_columns(width: int) -> None:
    slo = Slo(ttft_s=0.2, tpot_s=0.05, e2e_s=3.0)
    for result in (by_hand(), one_token(), nothing_served()):
        assert max(len(line) for line in printed(result, slo, width)) <= 80


def test_first_line_names_the_cost_tables() -> None:
    assert printed(by_hand())[0].startswith("costs: shares of H200")


def test_latency_rows_show_mean_and_percentiles() -> None:
    rows = {line.split()[0]: line for line in printed(by_hand()) if line.strip()}
    assert rows["TTFT"].split() == ["TTFT", "12.5", "ms", "12.5", "ms", "14.5", "ms", "14.9", "ms"]
    assert {"TPOT", "ITL", "E2E"} <= set(rows)


def test_targets_show_who_met_them() -> None:
    lines = printed(by_hand(), Slo(ttft_s=0.012, attainment=0.9))
    row = next(line for line in lines if line.strip().startswith("TTFT"))
    assert row.split()[-4:] == ["12", "ms", "50", "%"]
    assert "SLO missed: 50 % of requests meet every target, 90 % wanted" in lines


def test_what_is_not_defined_is_a_dash() -> None:
    rows = {line.split()[0]: line for line in printed(nothing_served()) if line.strip()}
    assert rows["TTFT"].split() == ["TTFT", *["–"] * 4]


def test_rejections_and_notes_are_said() -> None:
    result = nothing_served()
    table = replace(result.table, notes=("dropped 3 rows",))
    text = "\n".join(printed(replace(result, table=table, notes=("cut by [horizon]",))))
    assert "0 of 1 requests" in text
    assert "1 rejected" in text
    assert "note: dropped 3 rows" in text
    assert "note: cut by [horizon]" in text


def test_figures_are_drawn_of_any_run(tmp_path: Path) -> None:
    for number, result in enumerate((by_hand(), one_token(), nothing_served())):
        paths = save_figures(tmp_path / str(number), experiment(result.table), result)
        assert [path.name for path in paths] == [
            "latency.png",
            "latency_over_time.png",
            "occupancy.png",
            "memory.png",
            "iteration_time.png",
            "roofline.png",
        ]
        assert all(path.read_bytes().startswith(PNG) for path in paths)


EVEN = """
name: even
model: llama-3.1-8b
cluster: 1xH100-SXM
plan: {tp: 1}
workload: {kind: synthetic, num_prompts: 8, input_len: 1000, output_len: 40, request_rate: inf}
"""


def repriced(setup: Experiment) -> Iterator[tuple[bool, float]]:
    """Whether iterations hold prefill, and how far their second price is from the time they took.

    The batch that is priced again has the tokens of the log.
    """
    result = simulate(setup)
    (lane,) = result.lanes
    assert 20 == len(sampled(setup, result, 20))
    ends = np.cumsum(lane.segments["iterations"])
    model, plan, group = setup.model, setup.plan, setup.cluster.groups[0]
    for segment in range(0, len(ends), 1 + len(ends) // 40):
        index = int(ends[segment]) - 1
        prefill, decode = batch_of(lane, segment, index)
        row = {name: int(column[segment]) for name, column in lane.segments.items()}
        assert row["prefill_tokens"] == sum(tokens for tokens, _ in prefill)
        assert row["num_prefill"] == len(prefill)
        assert row["num_decode"] == sum(num for num, _ in decode)
        before = int(lane.end_ns[index - 1]) if index else 0
        start = before
        if row["iterations"] == 1:
            start = max(before, int(lane.segment_start_ns[segment]))
        priced_s = explain(model, plan, group, setup.settings, prefill, decode).total_s
        yield bool(prefill), priced_s * 1e9 / (int(lane.end_ns[index]) - start) - 1


def test_sampled_iterations_are_those_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "even.yaml").write_text(EVEN)
    even = list(repriced(load(tmp_path / "even.yaml")))
    assert {True, False} == {is_prefill for is_prefill, _ in even}
    assert 1e-6 > max(abs(error) for _, error in even)
    # Decodes of unequal contexts take longer than their sum in the log can tell.
    uneven = list(repriced(load("experiments/quickstart.yaml")))
    assert 0.2 > max(abs(error) for _, error in uneven)


def test_figures_of_a_search(tmp_path: Path) -> None:
    words = ["experiments/goodput_search.yaml", "--max-requests", "20", "--jobs", "1"]
    for number, more in enumerate((["--tp", "2,4"], ["--tp", "4", "--objective", "e2e"])):
        folder = tmp_path / str(number)
        assert 0 == run(["search", *words, *more, "--json", "--figures", str(folder)])
        names = ["pareto.png"] if number else ["capacity.png", "pareto.png"]
        assert names == sorted(path.name for path in folder.iterdir())
        assert all(path.read_bytes().startswith(PNG) for path in folder.iterdir())
    (tmp_path / "file").write_text("")
    assert 2 == run(["search", *words, "--figures", str(tmp_path / "file")])


def test_figures_that_cannot_be_written_say_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file: cannot be written"):
        save_figures(tmp_path / "file", experiment(by_hand().table), by_hand())
