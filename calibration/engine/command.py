"""`python -m calibration engine-check`: serve, or compare what was served with Headway's prices."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from calibration.engine.shapes import SHAPES
from calibration.engine.trace import CannotServe, Trace, read_trace, synthetic
from calibration.profile import kernels
from calibration.system import Device, probe

if TYPE_CHECKING:
    from calibration.engine.serve import Settings

NAME = "engine-check"
BAD_INPUT = 2
DEFAULT_SHAPES = ["llama-3.1-8b", "small-moe"]
DEFAULT_RATE = 8.0
EXAMPLE = """
on the GPU:      python -m calibration engine-check --out check
where Headway is installed:
                 python -m calibration engine-check --compare check
without a GPU:   python -m calibration engine-check --shape tiny --device cpu --num 20 --out check
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Its options."""
    parser = commands.add_parser(
        NAME, help="serve a trace with a small engine, log every iteration", epilog=EXAMPLE,
        description="Serve a trace with random weights; compare iterations with Headway's price.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR", help="folder of runs; finished ones are kept")
    add("--compare", type=Path, metavar="DIR", help="price the runs of a folder, serve nothing")
    add("--shape", nargs="+", choices=SHAPES, default=DEFAULT_SHAPES, metavar="SHAPE",
        help=f"of {', '.join(SHAPES)}; default: the first two")  # fmt: skip
    add("--trace", default="synthetic", metavar="FILE",
        help="CSV of arrival_s, input_tokens, output_tokens; default: synthetic")  # fmt: skip
    add("--rate", type=_positive, metavar="R",
        help="requests/s; default: a file's own, 8 of synthetic")  # fmt: skip
    add("--num", type=_count, metavar="N", help="requests; default: a file's all, 200 of synthetic")
    add("--input-len", type=_count, default=512, metavar="N", help="mean of synthetic (512)")
    add("--output-len", type=_count, default=128, metavar="N", help="mean of synthetic (128)")
    add("--seed", type=_seed, default=0, metavar="N", help="of weights, prompts and trace (0)")
    add("--budget-s", type=_positive, default=480.0, metavar="S", help="for all shapes (480)")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: references, tiny shapes")
    add("--gemm", choices=("ours", "torch"), default="ours", help="dense GEMMs: Triton or cuBLAS")
    add("--engine", choices=("headway", "transformers"), default="headway",
        help="transformers: its continuous batching, where installed")  # fmt: skip
    add("--max-num-batched-tokens", type=_count, default=8192, metavar="N",
        help="token budget of an iteration (8192)")  # fmt: skip
    add("--max-num-seqs", type=_count, default=256, metavar="N", help="running sequences (256)")
    add("--num-blocks", type=_count, default=0, metavar="N", help="KV blocks; default: what fits")
    add(
        "--gpu", default="", metavar="NAME", help="compare: price for this GPU instead of the run's"
    )
    add("--calibration", default="", metavar="DIR", help="compare: fitted tables to price with")
    add("--json", action="store_true", help="compare: print JSON")


def run(options: argparse.Namespace) -> int:
    """The exit code."""
    try:
        if options.compare is not None:
            return _compare(options)
        if options.out is None:
            raise CannotServe("--out DIR is needed (or --compare DIR)")
        return _serve(options)
    except CannotServe as error:
        print(f"{NAME}: {error}", file=sys.stderr)
        return BAD_INPUT


def _compare(options: argparse.Namespace) -> int:
    try:
        from calibration.engine.compare import as_dicts, as_table, compare
        from simulator.errors import SimulatorError
    except ImportError as error:
        raise CannotServe(f"--compare runs where Headway is installed: {error}") from None
    try:
        found = compare(options.compare, gpu=options.gpu, calibration=options.calibration)
    except SimulatorError as error:
        raise CannotServe(str(error)) from None
    print(json.dumps(as_dicts(found), indent=1) if options.json else as_table(found))
    return 0


def _serve(options: argparse.Namespace) -> int:
    from calibration.engine.serve import Settings

    deadline_ns = time.perf_counter_ns() + round(options.budget_s * 1e9)
    trace, device = _trace(options), _device(options)
    settings = Settings(
        max_num_tokens=options.max_num_batched_tokens, max_num_seqs=options.max_num_seqs,
        num_blocks=options.num_blocks, gemm=options.gemm, seed=options.seed,
    )  # fmt: skip
    done = _finished(options.out)
    failed = 0
    todo = [name for name in options.shape if _run_id(name, trace, options) not in done]
    for name in options.shape:
        run_id = _run_id(name, trace, options)
        if name not in todo:
            print(f"{run_id}: finished before, kept")
            continue
        now_ns = time.perf_counter_ns()
        share_ns = (deadline_ns - now_ns) // (len(todo) - todo.index(name))
        try:
            _serve_shape(options, name, trace, settings, run_id, device, now_ns + share_ns)
        except CannotServe as error:  # the next shape may do
            print(f"{NAME}: {error}", file=sys.stderr)
            failed = BAD_INPUT
    return failed


def _serve_shape(
    options: argparse.Namespace, name: str, trace: Trace, settings: Settings, run_id: str,
    device: Device | None, deadline_ns: int,
) -> None:  # fmt: skip
    if options.engine == "transformers":
        from calibration.engine.huggingface import serve_transformers as serve
    else:
        from calibration.engine.serve import serve
    row = serve(SHAPES[name], trace, settings, options.out, run_id, device=device,
                deadline_ns=deadline_ns, say=_say)  # fmt: skip
    print(_summary(row))


def _device(options: argparse.Namespace) -> Device | None:
    if options.device == "cuda":
        try:
            kernels("cases")
            return probe()
        except (RuntimeError, ImportError) as error:
            raise CannotServe(str(error)) from None
    if large := [name for name in options.shape if not name.startswith("tiny")]:
        raise CannotServe(f"--device cpu serves tiny and tiny-moe, not {large[0]}")
    return None


def _trace(options: argparse.Namespace) -> Trace:
    if options.trace == "synthetic":
        return synthetic(options.num or 200, options.rate or DEFAULT_RATE, options.input_len,
                         options.output_len, options.seed)  # fmt: skip
    trace = read_trace(Path(options.trace))
    trace = trace.first(options.num) if options.num else trace
    return trace.at_rate(options.rate) if options.rate else trace


def _run_id(name: str, trace: Trace, options: argparse.Namespace) -> str:
    """Of everything that makes a run another run."""
    parts = [name, trace.name]
    parts += [f"first{options.num}"] if options.num and options.trace != "synthetic" else []
    rate = options.rate or (DEFAULT_RATE if options.trace == "synthetic" else 0)
    parts += [f"{rate:g}rps"] if rate else []
    parts += [options.device if options.device == "cpu" else f"gemm-{options.gemm}"]
    parts += [options.engine] if options.engine != "headway" else []
    settings = (("tok", options.max_num_batched_tokens, 8192), ("seqs", options.max_num_seqs, 256),
                ("blocks", options.num_blocks, 0))  # fmt: skip
    parts += [f"{value}{unit}" for unit, value, default in settings if value != default]
    return "_".join(parts)


def _finished(out: Path) -> set[str]:
    from calibration.engine.results import read_rows

    path = out / "runs.csv"
    return {row["run_id"] for row in read_rows(path)} if path.exists() else set()


def _summary(row: Mapping[str, object]) -> str:
    times = ", ".join(
        f"{name.upper()} {row[f'{name}_mean_ms'] or '-'} ms" for name in ("ttft", "tpot", "e2e")
    )
    return (
        f"{row['run_id']}: {row['num_ok']} of {row['num_requests']} requests in "
        f"{row['duration_s']} s; mean {times}; {row['output_tok_s']} output tokens/s"
    )


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number > 0 (got {text!r})")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an int >= 1 (got {text!r})")
    return int(text)


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected an int >= 0 (got {text!r})")
    return int(text)
