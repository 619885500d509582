"""The small engine on the CPU: batched, paged, chunked and preempted, it tells the truth."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from calibration.__main__ import main  # noqa: E402
from calibration.engine.executor import Limits, WarmUp, graph_sizes  # noqa: E402
from calibration.engine.operations import KernelOperations, ReferenceOperations  # noqa: E402
from calibration.engine.results import (  # noqa: E402
    RUN_COLUMNS,
    Conditions,
    as_ranges,
    read_rows,
    times_of,
    write_run,
)
from calibration.engine.shapes import SHAPES  # noqa: E402
from calibration.engine.trace import CannotServe, read_trace, synthetic  # noqa: E402
from tests.calibration.engine_support import (  # noqa: E402
    CPU,
    greedy,
    prompts_of,
    serve,
    trace_of,
)

TIGHT = Limits(num_blocks=4, block_tokens=16, max_num_tokens=20, max_num_seqs=3)
# Three prompts of a block each grow beyond it, and one is longer than the token budget.
REQUESTS = trace_of((0, 14, 6), (0, 13, 7), (0.001, 15, 4), (0.002, 33, 3), (5, 1, 1), (5, 2, 20))


def tokens_of(lane, trace):  # type: ignore[no-untyped-def]
    return [lane.tokens[i][n:].tolist() for i, n in enumerate(trace.input_tokens)]


def truth(model, trace):  # type: ignore[no-untyped-def]
    prompts = prompts_of(trace, model.shape.vocab_size)
    return [greedy(model, p, int(n)) for p, n in zip(prompts, trace.output_tokens, strict=True)]


@pytest.fixture(scope="module", autouse=True)
def one_thread():  # type: ignore[no-untyped-def]
    """Tensors of a hundred values are slower on many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def served(one_thread):  # type: ignore[no-untyped-def]
    """(model, lane, log) of REQUESTS through the references."""
    return serve(REQUESTS, SHAPES["tiny"], ReferenceOperations(), TIGHT)


@pytest.mark.parametrize("name", ["tiny", "tiny-moe"])
def test_every_token_is_that_of_a_full_recompute(name: str) -> None:
    model, lane, log = serve(REQUESTS, SHAPES[name], ReferenceOperations(), TIGHT)
    assert truth(model, REQUESTS) == tokens_of(lane, REQUESTS)
    assert log.is_complete
    assert lane.num_preemptions > 0
    assert any(row.decode_seqs and row.chunks for row in log.iterations)
    assert any(context for row in log.iterations for _, context in row.chunks)


@pytest.mark.parametrize(
    ("name", "gemm", "num"), [("tiny", "ours", 3), ("tiny-moe", "torch", 6)], ids=["dense", "moe"]
)
def test_our_kernels_give_the_same_tokens(name: str, gemm: str, num: int) -> None:
    trace = trace_of((0, 14, num + 1), (0, 13, num - 1), (0, 3, num))
    shape = replace(SHAPES[name], num_layers=1)
    model, lane, log = serve(trace, shape, KernelOperations(CPU, gemm), TIGHT, padded=True)
    assert truth(model, trace) == tokens_of(lane, trace)
    assert (lane.num_preemptions > 0) == (num == 6)
    assert any(row.decode_seqs and row.chunks for row in log.iterations)
    assert any(row.padded_seqs > row.decode_seqs for row in log.iterations)


def test_padding_to_a_graphs_size_changes_no_token(served) -> None:  # type: ignore[no-untyped-def]
    _, lane, log = serve(REQUESTS, SHAPES["tiny"], ReferenceOperations(), TIGHT, padded=True)
    assert tokens_of(served[1], REQUESTS) == tokens_of(lane, REQUESTS)
    modes = {(bool(row.chunks), row.mode) for row in log.iterations}
    assert {(True, "eager"), (False, "graph")} == modes
    assert any(row.padded_seqs > row.decode_seqs for row in log.iterations)
    assert all(row.padded_seqs in (0, 1, 2, 4) for row in log.iterations)


def test_the_log_adds_up(served) -> None:  # type: ignore[no-untyped-def]
    _, lane, log = served
    lane.check()
    assert sorted(lane.free) == list(range(TIGHT.num_blocks))
    made = [p.token_iterations for p in lane.progress]
    assert REQUESTS.output_tokens.tolist() == [len(tokens) for tokens in made]
    rows = log.iterations
    # A token is sampled by each decode, and by the chunk that ends a prompt: one a (re)computation.
    first_tokens = len(REQUESTS) + lane.num_preemptions
    assert sum(len(t) for t in made) - first_tokens == sum(row.decode_seqs for row in rows)
    recomputed = sum(row.prefill_tokens for row in rows) - int(REQUESTS.input_tokens.sum())
    assert recomputed > 0
    assert all(row.prefill_tokens + row.decode_seqs <= TIGHT.max_num_tokens for row in rows)
    assert all(row.decode_seqs + len(row.chunks) <= TIGHT.max_num_seqs for row in rows)
    assert all(a.end_ns <= b.start_ns - b.idle_ns for a, b in pairwise(rows))
    assert all(row.context_tokens >= row.decode_seqs for row in rows)
    assert rows[-1].idle_ns == 0
    assert max(row.idle_ns for row in rows) > 4e9, "it waited for the arrivals at 5 s"


def test_nobody_is_served_before_he_arrives(served) -> None:  # type: ignore[no-untyped-def]
    _, lane, log = served
    starts = [log.iterations[p.first_iteration].start_ns for p in lane.progress]
    assert all(s >= a for s, a in zip(starts, REQUESTS.arrival_ns.tolist(), strict=True))


def test_a_lost_block_is_noticed() -> None:
    _, lane, _ = serve(REQUESTS, SHAPES["tiny"], ReferenceOperations(), TIGHT)
    lane.free.pop()
    with pytest.raises(RuntimeError, match="0 blocks held and 3 free of 4"):
        lane.check()


def test_a_request_that_can_never_fit_is_refused() -> None:
    with pytest.raises(CannotServe, match="69 tokens does not fit 4 blocks of 16"):
        serve(trace_of((0, 60, 10)), SHAPES["tiny"], ReferenceOperations(), TIGHT)


def test_a_run_writes_its_row_workload_and_logs(served, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    _, lane, log = served
    about = Conditions(run_id="r", shape=SHAPES["tiny"], trace=REQUESTS, limits=TIGHT, seed=0,
                       gpu="NVIDIA H200", version="1", max_model_len=64)  # fmt: skip
    write_run(tmp_path, about, lane.progress, log, WarmUp())
    write_run(tmp_path, about, lane.progress, log, WarmUp())  # the row is replaced, not doubled
    [row] = read_rows(tmp_path / "runs.csv")
    assert list(RUN_COLUMNS) == list(row)
    known = {"engine": "headway-check", "gpu": "H200-SXM-141GB", "num_ok": "6", "num_failed": "0",
             "kv_blocks_gpu": "4", "workload_file": "workloads/r.csv.gz",
             "model_hf": "r/config.json"}  # fmt: skip
    assert known == {key: row[key] for key in known}
    ttft = [float(r["ttft_ms"]) for r in read_rows(tmp_path / "r" / "requests.csv")]
    again = read_trace(tmp_path / row["workload_file"])
    assert REQUESTS.output_tokens.tolist() == again.output_tokens.tolist()
    assert REQUESTS.arrival_ns.tolist() == again.arrival_ns.tolist()
    assert np.mean(ttft) == pytest.approx(float(row["ttft_mean_ms"]), rel=1e-5)
    assert len(log.iterations) == len(read_rows(tmp_path / "r" / "iterations.csv"))


def test_times_come_from_the_log_of_iterations(served) -> None:  # type: ignore[no-untyped-def]
    _, lane, log = served
    times = times_of(REQUESTS, lane.progress, log.iterations)
    ends = [row.end_ns / 1e6 for row in log.iterations]
    first, last = (lane.progress[1].token_iterations[i] for i in (0, -1))
    assert ends[first] == pytest.approx(times.ttft[1])
    assert ends[last] == pytest.approx(times.e2e[1])
    assert (ends[last] - ends[first]) / 6 == pytest.approx(times.tpot[1])
    assert np.isnan(times.tpot[4])
    assert int(REQUESTS.output_tokens.sum()) - len(REQUESTS) == len(times.itl)


def test_small_things() -> None:
    assert "3-5;9;11-12" == as_ranges([3, 4, 5, 9, 11, 12])
    assert [1, 2, 4, 8, 16] == graph_sizes(11)
    assert [*range(232, 256, 8), 256, 272] == graph_sizes(257)[-5:]
    trace = synthetic(400, 10.0, 100, 20, seed=3)
    assert 400 / 40 == pytest.approx(len(trace) / (trace.arrival_ns[-1] / 1e9), rel=0.15)
    assert {50, 150} >= {trace.input_tokens.min(), trace.input_tokens.max()}
    assert 20 == pytest.approx(
        len(trace.at_rate(20.0)) / (trace.at_rate(20.0).arrival_ns[-1] / 1e9)
    )
    assert trace.arrival_ns[7] < 2e9 <= trace.arrival_ns[len(trace.before(2.0))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("arrival_s,input_tokens\n0,1\n", "no column 'output_tokens'"),
        ("arrival_s,input_tokens,output_tokens\n", "at least one request"),
        ("arrival_s,input_tokens,output_tokens\n0,many,1\n", ":2: input_tokens: expected a number"),
        ("arrival_s,input_tokens,output_tokens\n1,1,1\n0,1,1\n", "arrival_s must not decrease"),
        ("arrival_s,input_tokens,output_tokens\n0,1,0\n", "output_tokens must be >= 1"),
    ],
)
def test_a_bad_trace_is_one_line(tmp_path: Path, capsys, text: str, message: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "trace.csv"
    path.write_text(text)
    shape = ["--shape", "tiny", "--device", "cpu", "--trace", str(path)]
    assert 2 == main(["engine-check", *shape, "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert message in error
    assert 1 == error.count("\n")
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(find_spec("transformers") is not None, reason="transformers is installed")
def test_without_transformers_its_engine_says_so(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    shape = ["--shape", "tiny", "--device", "cpu", "--engine", "transformers"]
    assert 2 == main(["engine-check", *shape, "--out", str(tmp_path / "out")])
    assert "--engine transformers: not installed here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_large_shape_needs_a_gpu(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert 2 == main(["engine-check", "--device", "cpu", "--out", str(tmp_path)])
    assert "serves tiny and tiny-moe, not llama-3.1-8b" in capsys.readouterr().err
    assert 2 == main(["engine-check", "--shape", "tiny"])
    assert "--out DIR is needed" in capsys.readouterr().err


BARE = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {'simpy', 'pydantic', 'typer', 'rich', 'yaml', 'pyarrow'}:
            raise ImportError(f'{name} is not on a bare machine')
sys.meta_path.insert(0, Absent())
from calibration.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_it_serves_in_real_time_on_a_bare_machine_and_resumes(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    arguments = ["engine-check", "--shape", "tiny", "--device", "cpu", "--num", "4", "--rate", "50",
                 "--input-len", "8", "--output-len", "3", "--out", str(tmp_path)]  # fmt: skip
    command = [sys.executable, "-c", BARE, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "4 of 4 requests" in done.stdout
    assert 0 == main(arguments)
    assert "finished before, kept" in capsys.readouterr().out
    [row] = read_rows(tmp_path / "runs.csv")
    assert ("cpu", "fp32", "enforce-eager") == (row["gpu"], row["weight_dtype"], row["cuda_graph"])
    last_arrival_s = read_trace(tmp_path / row["workload_file"]).arrival_ns[-1] / 1e9
    assert float(row["duration_s"]) >= last_arrival_s


def test_a_budget_that_ends_cuts_the_trace_and_says_so(tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    arguments = ["engine-check", "--shape", "tiny", "--device", "cpu", "--num", "2000", "--rate",
                 "200", "--input-len", "8", "--output-len", "400", "--budget-s", "4",
                 "--out", str(tmp_path)]  # fmt: skip
    assert 0 == main(arguments)
    [row] = read_rows(tmp_path / "runs.csv")
    assert "cut_by_budget" in row["flags"].split(";")
    assert int(row["num_ok"]) + int(row["num_failed"]) == int(row["num_requests"]) < 2000
    assert "saturated" == row["load_level"]
    assert float(row["duration_s"]) < 8


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tiny", "tiny-moe"])
def test_graphs_give_the_tokens_of_eager_batches_on_a_gpu(name: str, tmp_path: Path) -> None:
    from calibration.engine.executor import Executor
    from calibration.engine.model import kv_cache, random_model
    from calibration.engine.replay import replay
    from calibration.engine.serve import lane_of

    gpu, limits = torch.device("cuda"), replace(TIGHT, num_blocks=40, max_num_tokens=64)
    shape = SHAPES[name]
    model = random_model(shape, 64, gpu, torch.float16, seed=1)
    found, modes = [], []
    for graphs in (False, True):
        lane = lane_of(REQUESTS, shape, limits, seed=0)
        cache = kv_cache(shape, limits.num_blocks, 16, gpu, torch.float16)
        executor = Executor(model, cache, KernelOperations(gpu), limits, lane.table.shape[1])
        if graphs:
            assert executor.warm_up(deadline_ns=1 << 62).graphs == len(graph_sizes(3))
        log = replay(REQUESTS, lane, executor)
        found.append(tokens_of(lane, REQUESTS))
        modes.append({row.mode for row in log.iterations})
        assert all(row.device_ns > 0 for row in log.iterations)
        assert graphs is False or log.compiled == 0
    assert [{"eager"}, {"eager", "graph"}] == modes
    assert found[0] == found[1]
