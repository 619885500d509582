"""A log made from Headway's own prices, off by a known share: the comparison finds that share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from calibration.__main__ import main
from calibration.engine.compare import compare, kind_of
from calibration.engine.executor import Limits, WarmUp
from calibration.engine.lane import Progress
from calibration.engine.replay import Iteration, Log
from calibration.engine.results import Conditions, write_run
from calibration.engine.shapes import SHAPES, Shape
from calibration.engine.trace import synthetic
from simulator.catalog import load_model, parse_cluster
from simulator.costs.explain import explain
from simulator.costs.price import price_iteration
from simulator.costs.roofline import compile_cost
from simulator.errors import ConfigError
from simulator.hf_config import model_from_config
from simulator.params import num_active_params, num_params
from simulator.spec import EngineSettings, ParallelPlan

GAP_S = 0.7e-3
# Chunks, decoding sequences and the sum of their contexts, and how much slower than priced it is.
BATCHES = [
    (((512, 0), (100, 400)), 0, 0, 1.25),
    ((), 1, 700, 1.10),
    ((), 37, 30001, 1.10),
    (((300, 0),), 37, 30038, 0.80),
]  # fmt: skip


def price(shape: Shape, batch, *, graphs: bool) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    """(seconds without the host, of the host), by another road than the comparison's."""
    chunks, num, tokens, _ = batch
    settings = EngineSettings(max_num_batched_tokens=2048, max_num_seqs=64, cuda_graphs=graphs)
    model = model_from_config(shape.hf_config(), shape.name, "test")
    [group] = parse_cluster("1xH200-SXM").groups
    cost = compile_cost(model, ParallelPlan(), group, settings)
    free = compile_cost(model, ParallelPlan(), group, EngineSettings(
        max_num_batched_tokens=2048, max_num_seqs=64, cuda_graphs=graphs,
        host_overhead={"iteration_s": 0.0, "seq_s": 0.0},
    ))  # fmt: skip
    decode = [(1, tokens - num + 1), (num - 1, 1)] if num > 1 else [(num, tokens)] * num
    [whole], [without] = (price_iteration(c, chunks, decode) for c in (cost, free))
    return without, whole - without


@pytest.fixture(params=["llama-3.1-8b", "small-moe"])
def folder(request, tmp_path: Path) -> Path:  # type: ignore[no-untyped-def]
    """A run whose every iteration is as long as priced, times its factor."""
    shape, rows, end_ns = SHAPES[request.param], [], 5_000_000
    for batch in BATCHES:
        chunks, num, tokens, factor = batch
        graphs = not chunks
        wall_ns = round(1e9 * factor * price(shape, batch, graphs=graphs)[0])
        start_ns = end_ns + round(GAP_S * 1e9) + 2_000_000
        end_ns = start_ns + wall_ns
        rows.append(Iteration(start_ns, end_ns, wall_ns // 2, 2_000_000, 64 if graphs else 0, num,
                              tokens, tokens - num + 1 if num else 0, chunks, 0, 0, 9))  # fmt: skip
    trace = synthetic(3, 1.0, 10, 4, seed=0)
    about = Conditions(
        run_id="run", shape=shape, trace=trace, gpu="NVIDIA H200", version="0", seed=0,
        limits=Limits(num_blocks=9, max_num_tokens=2048, max_num_seqs=64), max_model_len=64,
    )  # fmt: skip
    write_run(tmp_path, about, [Progress([1], 0) for _ in range(3)], Log(rows, True, 0), WarmUp())
    return tmp_path


def test_a_known_error_is_recovered(folder: Path) -> None:
    found = {(row.what, row.clock): row for row in compare(folder)}
    graph = found["decode graph", "wall"]
    assert 2 == graph.num
    assert 1 / 1.10 - 1 == pytest.approx(graph.bias, rel=1e-5)
    assert 1 - 1 / 1.10 == pytest.approx(graph.mape, rel=1e-5)
    assert 1 / 0.80 - 1 == pytest.approx(found["mixed eager", "wall"].bias, rel=1e-5)
    assert 1 - 1 / 1.25 == pytest.approx(found["prefill eager", "wall"].mape, rel=1e-5)
    assert 2 / 1.10 - 1 == pytest.approx(found["decode graph", "device"].bias, rel=1e-4)
    everything = found["all iterations", "wall"]
    assert len(BATCHES) == everything.num
    errors = [abs(1 / factor - 1) for *_, factor in BATCHES]
    assert sum(errors) / len(errors) == pytest.approx(everything.mape, rel=1e-5)


def test_the_host_gap_is_apart_from_waiting_for_arrivals(folder: Path) -> None:
    [gap] = [row for row in compare(folder) if row.what == "host gap"]
    assert len(BATCHES) - 1 == gap.num, "nothing is known of the time before the first"
    assert GAP_S == pytest.approx(gap.measured_s, rel=1e-6)
    assert (1 + 37 + 38) / 3 * 1.5e-6 + 0.2e-3 == pytest.approx(gap.priced_s, rel=1e-6)


def test_the_command_prints_a_table_or_json_and_keeps_the_prices(folder: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert 0 == main(["engine-check", "--compare", str(folder)])
    table = capsys.readouterr().out
    assert "decode graph" in table
    assert max(len(line) for line in table.splitlines()) <= 100
    assert 0 == main(["engine-check", "--compare", str(folder), "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert "host gap" in {row["what"] for row in rows}
    assert 1 + len(BATCHES) == len((folder / "run" / "priced.csv").read_text().splitlines())


def test_another_gpu_has_other_prices(folder: Path) -> None:
    own, other = (compare(folder, gpu=gpu)[0].priced_s for gpu in ("", "A100-80-SXM"))
    assert other > 1.3 * own


def test_a_folder_without_runs_is_one_line(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match="No such file"):
        compare(tmp_path)
    assert 2 == main(["engine-check", "--compare", str(tmp_path)])
    assert 1 == capsys.readouterr().err.count("\n")


def test_a_run_on_the_cpu_or_a_damaged_log_is_one_line(folder: Path) -> None:
    runs, log = folder / "runs.csv", folder / "run" / "iterations.csv"
    runs.write_text(runs.read_text().replace("H200-SXM-141GB", "cpu"))
    with pytest.raises(ConfigError, match=r"ran on the CPU: name a GPU .*--gpu"):
        compare(folder)
    log.write_text(log.read_text().replace("idle_ns", "busy_ns"))
    with pytest.raises(ConfigError, match="no column 'idle_ns'"):
        compare(folder, gpu="H100-SXM")


def test_kinds() -> None:
    row = {"prefill_seqs": "0", "decode_seqs": "3", "mode": "graph"}
    assert "decode graph" == kind_of(row)
    assert "mixed eager" == kind_of(row | {"prefill_seqs": "1", "mode": "eager"})
    assert "prefill eager" == kind_of({"prefill_seqs": "1", "decode_seqs": "0", "mode": "eager"})


def test_shapes_are_the_models_that_headway_knows(tmp_path: Path) -> None:
    for shape in (SHAPES["llama-3.1-8b"], SHAPES["small-moe"]):
        known = load_model(shape.model_hf)
        assert known == model_from_config(shape.hf_config(), known.name, "test")
        assert num_params(known) == shape.num_params()
        assert num_active_params(known) == shape.num_params(active=True)
    for shape in SHAPES.values():
        model = model_from_config(shape.hf_config(), shape.name, "test")
        [group] = parse_cluster("1xH200-SXM").groups
        settings = EngineSettings(max_num_batched_tokens=64, max_num_seqs=8)
        ops = explain(model, ParallelPlan(), group, settings, [(64, 0)], []).ops
        [head] = [op for op in ops if op.name == "lm_head"]
        assert 2 * shape.hidden_size * shape.vocab_size == head.flops
        assert bool(shape.num_experts) == bool(model.layer_kinds[0].ffn.num_experts)
