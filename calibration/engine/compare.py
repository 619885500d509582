"""Logged iterations against Headway's price of the same batches.

Wall time of an iteration (inputs ready to tokens on the host) and the device's part of it are
compared with the price without its host part; the gap to the next iteration (booking, planning,
inputs; waiting for arrivals taken off) with the price's host part. Runs where Headway is installed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.engine.results import ITERATION_COLUMNS, read_rows, write_csv
from simulator.catalog import load_model, parse_cluster
from simulator.costs.compiled import TICKS_PER_S, CompiledCost
from simulator.costs.price import price_iteration
from simulator.costs.roofline import compile_cost
from simulator.errors import ConfigError
from simulator.spec import EngineSettings, ParallelPlan

Floats = NDArray[np.float64]
KINDS = ("decode graph", "decode eager", "mixed eager", "prefill eager")


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """Of one kind of iteration and one measured time; empty kinds have none."""

    run_id: str
    what: str  # a kind, "all iterations" or "host gap"
    clock: str  # "wall", or "device" as the GPU's own events say
    num: int
    measured_s: float  # mean
    priced_s: float  # mean
    mape: float  # mean |priced - measured| / measured
    bias: float  # sum priced / sum measured - 1
    p90_error: float  # 90th percentile of |priced - measured| / measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Priced:
    """Iterations of a run; every column is [num_iterations], in seconds."""

    kind: list[str]
    wall: Floats
    device: Floats  # 0 where there is no GPU
    gap: Floats  # before the iteration; NaN for the first
    price: Floats  # without its host part
    host_price: Floats


def compare(folder: Path, *, gpu: str = "", calibration: str = "") -> list[Agreement]:
    """Every run of a folder; each also leaves its `priced.csv`.

    `gpu` overrides the run's own; `calibration`: folder of fitted curves, "" the embedded ones.

    Raises:
        ConfigError: no runs, an unknown GPU, or a log that is damaged.
    """
    found: list[Agreement] = []
    for run in _rows(folder / "runs.csv"):
        log = folder / run["run_id"] / "iterations.csv"
        if not log.exists():
            continue  # an engine that logs requests only
        priced = price_log(run, _rows(log), folder / run["run_id"] / "config.json",
                           gpu=gpu, calibration=calibration)  # fmt: skip
        _write(folder / run["run_id"] / "priced.csv", priced)
        found += agreements(run["run_id"], priced)
    if not found:
        raise ConfigError(f"{folder}: no run has an iterations.csv")
    return found


def price_log(
    run: Mapping[str, str], log: Sequence[Mapping[str, str]], config: Path, *,
    gpu: str = "", calibration: str = "",
) -> Priced:  # fmt: skip
    """Headway's price of every logged iteration."""
    settings = EngineSettings(
        max_num_batched_tokens=int(run["max_num_batched_tokens"]),
        max_num_seqs=int(run["max_num_seqs"]),
        block_tokens=int(run["block_size"]),
        calibration=calibration,
    )
    if missing := [name for name in ITERATION_COLUMNS if name not in log[0]]:
        raise ConfigError(f"iterations.csv of {run['run_id']}: no column {missing[0]!r}")
    if not gpu and run["gpu"] == "cpu":
        raise ConfigError(f"{run['run_id']} ran on the CPU: name a GPU to price it for (--gpu)")
    [group] = parse_cluster(f"1x{gpu or run['gpu']}").groups
    model = load_model(str(config))
    costs = {
        mode: compile_cost(model, ParallelPlan(), group, replace(settings, cuda_graphs=graphs))
        for mode, graphs in (("graph", True), ("eager", False))
    }
    prices = np.array([_price(costs[row["mode"]], row) for row in log])
    numbers = np.array([[int(row[c]) for c in ("start_ns", "end_ns", "device_ns", "idle_ns")]
                        for row in log])  # fmt: skip
    start, end, device, idle = numbers.T / 1e9
    gap = np.concatenate([[np.nan], start[1:] - end[:-1] - idle[1:]])
    return Priced(
        kind=[kind_of(row) for row in log], wall=end - start, device=device, gap=gap,
        price=prices[:, 0], host_price=prices[:, 1],
    )  # fmt: skip


def kind_of(row: Mapping[str, str]) -> str:
    """One of KINDS."""
    what = "decode" if row["prefill_seqs"] == "0" else "mixed"
    return f"{'prefill' if row['decode_seqs'] == '0' else what} {row['mode']}"


def _price(cost: CompiledCost, row: Mapping[str, str]) -> tuple[float, float]:
    """(seconds without the host, of the host)."""
    chunks = [part.split("@") for part in row["chunks"].split(";") if part]
    prefill = [(int(new), int(context)) for new, context in chunks]
    num, tokens, longest = (int(row[c]) for c in
                            ("decode_seqs", "context_tokens", "longest_context"))  # fmt: skip
    # A price knows of the contexts their sum and the longest: how the rest is split is all one.
    each, more = divmod(tokens - longest, max(num - 1, 1))
    groups = ((min(num, 1), longest), (num - 1 - more, each), (more, each + 1))
    decode = [(n, context) for n, context in groups if n > 0]
    host_s = cost.host[num + len(prefill)] / TICKS_PER_S
    return sum(price_iteration(cost, prefill, decode)) - host_s, host_s


def agreements(run_id: str, priced: Priced) -> Iterator[Agreement]:
    """By kind, in all, and of the gaps."""
    kinds = np.array(priced.kind)
    for clock, measured in (("wall", priced.wall), ("device", priced.device)):
        if not measured.any():
            continue
        for kind in KINDS:
            chosen = kinds == kind
            if chosen.any():
                yield agreement(run_id, kind, clock, measured[chosen], priced.price[chosen])
        yield agreement(run_id, "all iterations", clock, measured, priced.price)
    known = np.isfinite(priced.gap) & (priced.gap > 0)
    if known.any():
        yield agreement(run_id, "host gap", "wall", priced.gap[known], priced.host_price[known])


def agreement(
    run_id: str, what: str, clock: str, measured_s: Floats, priced_s: Floats
) -> Agreement:
    """Errors of priced against measured times."""
    error = np.abs(priced_s - measured_s) / measured_s
    return Agreement(
        run_id=run_id, what=what, clock=clock, num=len(measured_s),
        measured_s=float(measured_s.mean()), priced_s=float(priced_s.mean()),
        mape=float(error.mean()), bias=float(priced_s.sum() / measured_s.sum() - 1),
        p90_error=float(np.quantile(error, 0.9)),
    )  # fmt: skip


def as_table(found: Sequence[Agreement]) -> str:
    """For a terminal."""
    lines = []
    for run_id in dict.fromkeys(row.run_id for row in found):
        lines += [run_id, f"  {'':16}{'clock':>7}{'num':>7}{'measured':>12}{'Headway':>12}"
                  f"{'MAPE':>8}{'p90':>8}{'bias':>9}"]  # fmt: skip
        lines += [
            f"  {r.what:16}{r.clock:>7}{r.num:>7}{1e3 * r.measured_s:>9.3f} ms"
            f"{1e3 * r.priced_s:>9.3f} ms{r.mape:>8.1%}{r.p90_error:>8.1%}{r.bias:>+9.1%}"
            for r in found
            if r.run_id == run_id
        ]
    return "\n".join(lines)


def as_dicts(found: Sequence[Agreement]) -> list[dict[str, object]]:
    """For machines."""
    return [asdict(row) for row in found]


def _write(path: Path, priced: Priced) -> None:
    columns = (priced.wall, priced.device, priced.gap, priced.price, priced.host_price)
    cells = ([f"{x:.9g}" for x in column] for column in columns)
    header = ("kind", "wall_s", "device_s", "gap_s", "price_s", "host_price_s")
    write_csv(path, header, zip(priced.kind, *cells, strict=True))


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        rows = read_rows(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    if not rows:
        raise ConfigError(f"{path}: expected at least one row")
    return rows
