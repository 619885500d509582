"""Timing on a GPU, and one point's trials turned into rows.

A maker prepares a point's trials (one a kernel, already found to agree with its reference), a
timer times them, and `measure` gives the rows and the refusals. Nothing here imports torch before
it times.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from calibration.suites import Point

Call = Callable[[], object]
Cell = int | float | str
SLEEP_CYCLES = 600_000  # about 0.3 ms: longer than the launch of a graph takes the host
TAIL = ("time_s", "p20_s", "p80_s", "num_replays", "graph", "l2", "config", "point")


def torch_module() -> Any:
    """torch, when it is needed: listing a grid and checking types do without."""
    return importlib.import_module("torch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Of one call, over replays."""

    median_s: float
    p20_s: float
    p80_s: float
    num_replays: int
    graph: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One kernel at one point, ready to be timed.

    `calls` do the same work, each on its own inputs; `flush` says that these do not push each
    other out of the L2 cache. A call does the work of `units` of the row's. `weight` is how often
    a sum of parts contains this one (0: it is no part). `l2` overrides the point's.
    """

    kernel: str
    calls: Sequence[Call]
    flush: bool = False
    units: int = 1
    graph: bool = True
    config: str = ""
    weight: int = 0
    l2: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A kernel that yields no number at a point, and why."""

    kernel: str
    reason: str


Made = tuple[Mapping[str, Cell], Iterable[Trial | Rejected]]  # the row's shape, the trials
Maker = Callable[[Point], Made]


class Timer(Protocol):
    """What `run` needs of a device."""

    def time(self, trial: Trial, l2: str) -> Timing: ...
    def usable(self) -> bool: ...


def summarise(samples_s: Sequence[float], *, graph: bool) -> Timing:
    """Median and spread of one call's time.

    Raises:
        ValueError: a time that is not positive: the subtraction of the flush drowned it.
    """
    p20_s, median_s, p80_s = (float(x) for x in np.quantile(samples_s, (0.2, 0.5, 0.8)))
    if not median_s > 0:
        raise ValueError(f"a median of {median_s:.3g} s is below what this method resolves")
    return Timing(
        median_s=median_s, p20_s=p20_s, p80_s=p80_s, num_replays=len(samples_s), graph=graph
    )


class CudaTimer:
    """CUDA-graph replays of many calls, or eager loops where a call cannot be captured.

    Cold calls rotate through inputs that together exceed the L2 cache. Where those would be too
    many, every call follows a read of twice the cache, timed alone as well and subtracted.
    """

    def __init__(self, l2_bytes: int, *, replay_s: float = 2e-3, num_replays: int = 20) -> None:
        self._torch = torch_module()
        self._replay_s, self._num_replays = replay_s, num_replays
        self._large = self._torch.zeros(max(2 * l2_bytes // 4, 1), device="cuda")
        self._stream = self._torch.cuda.Stream()
        self._max = self._torch.zeros((), device="cuda")

    def time(self, trial: Trial, l2: str) -> Timing:
        """Time one trial, `l2` "cold" or "warm"."""
        calls = list(trial.calls[:1] if l2 == "warm" else trial.calls)
        flush = trial.flush and l2 == "cold"
        for call in calls:
            call()
        round_s = max(self._elapsed_s(lambda: _each(calls)), 1e-7)
        limit = max((24 if flush else 200) // len(calls), 1)
        calls *= min(max(math.ceil(self._replay_s / round_s), 1), limit)
        sequence = [x for call in calls for x in (self._flush, call)] if flush else calls
        launch, graph = self._launcher(sequence, capture=trial.graph)
        idle = self._launcher([self._flush] * len(calls), capture=graph)[0] if flush else None
        replay_s = self._elapsed_s(launch)
        num_replays = min(max(int(0.05 / max(replay_s, 1e-6)), 5), self._num_replays)
        samples = []
        for _ in range(num_replays):
            idle_s = self._elapsed_s(idle, ahead=graph) if idle else 0.0
            samples.append(
                (self._elapsed_s(launch, ahead=graph) - idle_s) / (len(calls) * trial.units)
            )
        return summarise(samples, graph=graph)

    def usable(self) -> bool:
        """False once a kernel has broken the context."""
        try:
            self._torch.cuda.synchronize()
            self._torch.cuda.empty_cache()
        except RuntimeError:
            return False
        return True

    def _launcher(self, sequence: Sequence[Call], *, capture: bool) -> tuple[Call, bool]:
        """What runs the whole sequence, and whether as a graph."""
        torch = self._torch
        if capture and not self._synchronises(sequence):
            free, total = torch.cuda.mem_get_info()
            if free < total // 3:  # a capture cannot make the allocator give back what it caches
                torch.cuda.empty_cache()
            graph = torch.cuda.CUDAGraph()
            try:
                torch.cuda.synchronize()
                with torch.cuda.stream(self._stream):
                    graph.capture_begin()
                    try:
                        _each(sequence)
                    finally:
                        graph.capture_end()
            except RuntimeError:  # it cannot be captured for another reason
                torch.cuda.synchronize()
            else:
                graph.replay()
                return graph.replay, True
        return lambda: _each(sequence), False

    def _synchronises(self, sequence: Sequence[Call]) -> bool:
        """Whether a call waits for the device: capturing it would fail half way."""
        cuda = self._torch.cuda
        with warnings.catch_warnings():  # torch says that the mode is a prototype
            warnings.simplefilter("ignore")
            cuda.set_sync_debug_mode("error")
            try:
                _each(sequence[:2])
            except RuntimeError:
                return True
            finally:
                cuda.set_sync_debug_mode("default")
        return False

    def _elapsed_s(self, launch: Call, *, ahead: bool = False) -> float:
        """`ahead`: the device is kept busy meanwhile, so that the host's launch is not timed."""
        torch = self._torch
        start, end = (torch.cuda.Event(enable_timing=True) for _ in "se")
        torch.cuda.synchronize()
        if ahead:
            torch.cuda._sleep(SLEEP_CYCLES)
        start.record()
        launch()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    def _flush(self) -> None:
        self._torch.amax(self._large, 0, out=self._max)


def _each(calls: Sequence[Call]) -> None:
    for call in calls:
        call()


def measure(
    point: Point, make: Maker, timer: Timer
) -> tuple[list[dict[str, Cell]], list[Rejected]]:
    """Rows and refusals of one point."""
    rows: list[dict[str, Cell]] = []
    refused: list[Rejected] = []
    parts: list[tuple[int, Timing]] = []
    shape: Mapping[str, Cell] = {}
    try:
        shape, trials = make(point)
        for trial in trials:
            timing = trial if isinstance(trial, Rejected) else _timed(trial, point, timer)
            if isinstance(timing, Rejected):
                refused.append(timing)
                continue
            assert isinstance(trial, Trial)
            rows.append(_row(point, shape, trial, timing))
            parts += [(trial.weight, timing)] if trial.weight else []
    except Exception as error:  # a point that cannot be prepared is a result too
        refused.append(Rejected("*", one_line(error)))
    if parts and not refused:
        rows.append(_row(point, shape, Trial(kernel="sum", calls=()), _total(parts)))
    return rows, refused


def _timed(trial: Trial, point: Point, timer: Timer) -> Timing | Rejected:
    try:
        return timer.time(trial, trial.l2 or point.l2)
    except Exception as error:  # a provider that this chip or torch lacks
        return Rejected(trial.kernel, one_line(error))


def _total(parts: list[tuple[int, Timing]]) -> Timing:
    sums = [sum(n * getattr(t, name) for n, t in parts) for name in ("median_s", "p20_s", "p80_s")]
    return Timing(
        median_s=sums[0], p20_s=sums[1], p80_s=sums[2],
        num_replays=min(t.num_replays for _, t in parts), graph=all(t.graph for _, t in parts),
    )  # fmt: skip


def _row(point: Point, shape: Mapping[str, Cell], trial: Trial, timing: Timing) -> dict[str, Cell]:
    times = [f"{t:.6g}" for t in (timing.median_s, timing.p20_s, timing.p80_s)]
    l2 = trial.l2 or point.l2
    tail: tuple[Cell, ...] = (
        *times,
        timing.num_replays,
        int(timing.graph),
        l2,
        trial.config,
        point.key,
    )
    return {
        "op": point.table, "kernel": trial.kernel, **shape, **dict(zip(TAIL, tail, strict=True))
    }  # fmt: skip


def one_line(error: BaseException) -> str:
    """An exception as one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
