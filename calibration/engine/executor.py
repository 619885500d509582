"""Runs batches: weights, cache and inputs on the device, decodes through CUDA graphs.

An iteration is synchronous, as in a server without asynchronous scheduling: inputs are copied,
the pass is launched (one graph, or kernel by kernel), and the tokens are read back before the next
batch is planned. `warm_up` compiles every variant of a kernel that a trace can meet; what is
compiled later all the same is counted.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from calibration.engine.inputs import Sizes, fill, num_values, views, warm_up_inputs
from calibration.engine.lane import Batch, EngineLane
from calibration.engine.model import Model, forward
from calibration.engine.operations import Operations
from calibration.measure import one_line, torch_module

Clock = Callable[[], int]  # ns
Tensor = Any
SMALL = 256  # tokens: up to here every count is warmed up


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of the engine; sizes the buffers."""

    num_blocks: int
    block_tokens: int = 16
    max_num_tokens: int = 8192
    max_num_seqs: int = 256


@dataclass(frozen=True, slots=True)
class Run:
    """What one batch took: the tokens, and when."""

    tokens: list[int]
    start_ns: int  # inputs are ready on the host
    end_ns: int  # tokens are on the host
    device_ns: int  # of that, from the first kernel's start to the last one's end; 0 on the CPU
    padded_seqs: int  # of the graph; 0: eager


@dataclass(slots=True)
class WarmUp:
    """What was done before the trace, and is no part of it."""

    seconds: float = 0.0
    batches: int = 0
    graphs: int = 0
    compiled: int = 0
    is_complete: bool = True  # False: cut short by the budget
    problem: str = ""  # why there are no graphs on a GPU; one line


def graph_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, by 8 below 256, by 16 above; the last covers max_num_seqs."""
    sizes = [1, 2, 4, *range(8, 256, 8), *range(256, max_num_seqs + 16, 16)]
    last = next(i for i, size in enumerate(sizes) if size >= max_num_seqs)
    return sizes[: last + 1]


class Compilations:
    """Counts the kernels that Triton compiles, or loads from its cache on disk."""

    def __init__(self) -> None:
        self.count = 0

    def watch(self) -> None:
        """From now on, in this process."""
        importlib.import_module("triton").knobs.compilation.listener = self._seen

    def _seen(self, *_: object, **__: object) -> None:
        self.count += 1


class Executor:
    """One model on one device."""

    def __init__(
        self, model: Model, cache: Tensor, ops: Operations, limits: Limits, table_width: int,
        clock: Clock = time.perf_counter_ns,
    ) -> None:  # fmt: skip
        torch = torch_module()
        self._torch, self._clock = torch, clock
        self.model, self.cache, self._ops, self._limits = model, cache, ops, limits
        self._width = table_width
        self._cuda = cache.device.type == "cuda"
        most = Sizes(
            decodes=limits.max_num_seqs + 16, chunks=limits.max_num_seqs,
            tokens=max(limits.max_num_tokens, limits.max_num_seqs) + 16, table_width=table_width,
        )  # fmt: skip
        self._staging = torch.zeros(num_values(most), dtype=torch.int32, pin_memory=self._cuda)
        self._host = self._staging.numpy()
        self._block = torch.zeros(num_values(most), dtype=torch.int32, device=cache.device)
        self._graphs: dict[int, tuple[Any, Tensor]] = {}  # by decodes: the graph, its tokens
        self._sizes: list[int] = []
        self._events: list[Any] = []
        self.compilations = Compilations()
        if self._cuda:
            self._events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            self.compilations.watch()

    def run(self, batch: Batch, lane: EngineLane) -> Run:
        """One iteration."""
        padded = self._graph_size(batch)
        sizes = fill(self._host, batch, lane, padded)
        start_ns = self._clock()
        self._send(sizes)
        self._record(0)
        if padded:
            graph, sampled = self._graphs[padded]
            graph.replay()
        else:
            sampled = self._forward(sizes)
        self._record(1)
        tokens = sampled[: batch.num_seqs].tolist()  # waits for the device
        end_ns = self._clock()
        device_ns = round(1e6 * self._events[0].elapsed_time(self._events[1])) if self._cuda else 0
        return Run(tokens, start_ns, end_ns, device_ns, padded)

    def warm_up(self, deadline_ns: int) -> WarmUp:
        """Capture the graphs, from the largest so that they share its memory; then compile what
        eager batches need, on one layer: the others are alike."""
        start_ns, done = self._clock(), WarmUp()
        for size in reversed(graph_sizes(self._limits.max_num_seqs)) if self._cuda else ():
            if self._clock() > deadline_ns:
                done.is_complete = False
                break
            if problem := self._capture(size):
                done.problem = problem
                break
        for sizes in self._warm_up_sizes():
            if self._clock() > deadline_ns:
                done.is_complete = False
                break
            self._try(sizes, num_layers=1)
            done.batches += 1
        self._sizes = sorted(self._graphs)
        if self._cuda:
            self._torch.cuda.synchronize()
        self.cache.zero_()
        done.graphs, done.compiled = len(self._graphs), self.compilations.count
        done.seconds = (self._clock() - start_ns) / 1e9
        return done

    def _graph_size(self, batch: Batch) -> int:
        if batch.chunks:
            return 0
        return next((size for size in self._sizes if size >= len(batch.decodes)), 0)

    def _send(self, sizes: Sizes) -> None:
        num = num_values(sizes)
        self._block[:num].copy_(self._staging[:num], non_blocking=True)

    def _record(self, number: int) -> None:
        if self._cuda:
            self._events[number].record()

    def _forward(self, sizes: Sizes, num_layers: int = 0) -> Tensor:
        at = views(self._block, sizes)
        logits = forward(self.model, self.cache, at, sizes, self._ops, num_layers)
        return self._ops.sample(logits)

    def _try(self, sizes: Sizes, num_layers: int = 0) -> None:
        """Run a batch of these sizes on made-up inputs."""
        context = min(self._limits.block_tokens, len(self.model.angles))
        warm_up_inputs(self._host, sizes, context)
        self._send(sizes)
        self._forward(sizes, num_layers).tolist()

    def _capture(self, size: int) -> str:
        """One graph; or why there is none, and then none of the others either: all is eager."""
        torch = self._torch
        sizes = Sizes(decodes=size, chunks=0, tokens=size, table_width=self._width)
        self._try(sizes)  # nothing may be compiled or loaded while a graph is captured
        torch.cuda.synchronize()
        pool = next(iter(self._graphs.values()))[0].pool() if self._graphs else None
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=pool):
                sampled = self._forward(sizes)
        except RuntimeError as error:
            self._graphs.clear()
            return one_line(error)
        self._graphs[size] = (graph, sampled)
        return ""

    def _warm_up_sizes(self) -> Iterator[Sizes]:
        """Triton compiles anew for an integer that is 1 or a multiple of 16, for another tile
        configuration and for another split of the context: every small count, and of the larger
        ones some of each kind."""
        most = self._limits.max_num_tokens
        longest = min(self._width, self._limits.num_blocks) * self._limits.block_tokens
        longest = min(longest, len(self.model.angles))
        if not self._cuda:
            yield Sizes(decodes=1, chunks=1, tokens=2, table_width=self._width, longest_chunk=1)
            return
        counts = [*range(1, SMALL), *range(SMALL, 1024, 48), *range(1024, most + 1, 496), most]
        for num in (count + odd for count in counts for odd in (0, 1)):
            if num <= most:
                chunks = -(-num // longest)
                yield Sizes(
                    decodes=0, chunks=chunks, tokens=num, table_width=self._width,
                    longest_chunk=-(-num // chunks),
                )  # fmt: skip
        for num in range(1, self._limits.max_num_seqs + 1):
            yield Sizes(decodes=num, chunks=0, tokens=num, table_width=self._width)
        if longest >= 32 and most >= 67:
            yield Sizes(decodes=3, chunks=2, tokens=67, table_width=self._width, longest_chunk=32)
