"""One shape, start to end: weights, cache, warm-up, the trace, and what is left of the device."""

from __future__ import annotations

import gc
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from calibration.engine.executor import Executor, Limits, WarmUp
from calibration.engine.lane import EngineLane, Ints32
from calibration.engine.model import kv_cache, random_model
from calibration.engine.operations import KernelOperations, Operations, ReferenceOperations
from calibration.engine.replay import Log, replay
from calibration.engine.results import Cell, Conditions, write_run
from calibration.engine.shapes import Shape
from calibration.engine.trace import CannotServe, Trace
from calibration.measure import torch_module
from calibration.provenance import as_yaml, headway_version
from calibration.system import Device

Say = Callable[[str], None]
GIB = 2**30
WARM_UP_SHARE = 0.6  # of the time: what the warm-up may take at most
ARRIVAL_SHARE = 0.7  # of what is left: requests that arrive later are not sent
CPU_BLOCKS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Of the engine, for every shape."""

    max_num_tokens: int = 8192
    max_num_seqs: int = 256
    block_tokens: int = 16
    num_blocks: int = 0  # 0: what fits
    memory_share: float = 0.9
    gemm: str = "ours"
    seed: int = 0


def serve(
    shape: Shape, trace: Trace, settings: Settings, out: Path, run_id: str, *,
    device: Device | None, deadline_ns: int, say: Say,
) -> dict[str, Cell]:  # fmt: skip
    """Warm up, replay, write; `device` None: the references, on the CPU. The row of runs.csv.

    Raises:
        CannotServe: requests that do not fit, or no time left to send any.
    """
    began_ns = time.perf_counter_ns()
    _check_context(shape, trace)
    executor, lane, limits = build(shape, trace, settings, on_gpu=device is not None)
    say(f"{shape.name}: {limits.num_blocks} blocks of {limits.block_tokens} tokens; warming up")
    warm_up = _warm_up(executor, deadline_ns)
    say(f"{shape.name}: {warm_up.compiled} kernels and {warm_up.graphs} graphs "
        f"in {warm_up.seconds:.0f} s of warm-up {warm_up.problem}".rstrip())  # fmt: skip
    sent = affordable(trace, deadline_ns - time.perf_counter_ns())
    if len(sent) < len(trace):
        lane = lane_of(sent, shape, limits, settings.seed, like=trace)
        say(f"{shape.name}: only the first {len(sent)} of {len(trace)} requests: time is short")
    set_up_s = (time.perf_counter_ns() - began_ns) / 1e9
    log = replay(sent, lane, executor, deadline_ns=deadline_ns, report=say)
    lane.check()
    if not log.iterations:
        raise CannotServe("the budget ended with the warm-up: give a larger --budget-s")
    about = Conditions(
        run_id=run_id, shape=shape, trace=sent, limits=limits, version=headway_version(),
        gpu=device.name if device else "cpu", seed=settings.seed, max_model_len=trace.longest,
        memory_share=settings.memory_share, dtype="bf16" if device else "fp32",
        flags=() if device else ("cpu_references",),
        cuda_graph="default, decode batches only" if warm_up.graphs else "enforce-eager",
    )  # fmt: skip
    row = write_run(out, about, lane.progress, log, warm_up)
    _write_meta(out / run_id, settings, device, warm_up, log, set_up_s)
    return row


def build(
    shape: Shape, trace: Trace, settings: Settings, *, on_gpu: bool
) -> tuple[Executor, EngineLane, Limits]:
    """Weights, then a cache in the memory that is left, and an idle lane."""
    torch = torch_module()
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()  # what an earlier shape held must not look taken
    place = torch.device("cuda" if on_gpu else "cpu")
    dtype = torch.bfloat16 if on_gpu else torch.float32
    model = random_model(shape, trace.longest, place, dtype, settings.seed)
    limits = _limits(shape, settings, place)
    lane = lane_of(trace, shape, limits, settings.seed)
    cache = kv_cache(shape, limits.num_blocks, limits.block_tokens, place, dtype)
    ops: Operations = KernelOperations(place, settings.gemm) if on_gpu else ReferenceOperations()
    return Executor(model, cache, ops, limits, lane.table.shape[1]), lane, limits


def _warm_up(executor: Executor, deadline_ns: int) -> WarmUp:
    now_ns = time.perf_counter_ns()
    return executor.warm_up(now_ns + round(WARM_UP_SHARE * (deadline_ns - now_ns)))


def affordable(trace: Trace, left_ns: int) -> Trace:
    """The requests that can be served in the time left.

    Raises:
        CannotServe: there is none.
    """
    if left_ns <= 0:
        raise CannotServe("the budget was spent before the trace began: give a larger --budget-s")
    return trace.before(ARRIVAL_SHARE * left_ns / 1e9)


def lane_of(
    trace: Trace, shape: Shape, limits: Limits, seed: int, like: Trace | None = None
) -> EngineLane:
    """An idle engine. `like`: a longer trace whose block tables' width to take."""
    return EngineLane(
        trace, prompts(trace, shape.vocab_size, seed), num_blocks=limits.num_blocks,
        block_tokens=limits.block_tokens, max_num_tokens=limits.max_num_tokens,
        max_num_seqs=limits.max_num_seqs, longest=(like or trace).longest,
    )  # fmt: skip


def prompts(trace: Trace, vocab_size: int, seed: int) -> list[Ints32]:
    """Random tokens."""
    rng = np.random.default_rng([seed, zlib.crc32(b"engine-check.prompts")])
    return [rng.integers(0, vocab_size, int(n), dtype=np.int32) for n in trace.input_tokens]


def activation_bytes(shape: Shape, limits: Limits) -> int:
    """Room to leave beside weights and cache: twice the widest layer's activations, the logits,
    and 2 GiB for the context, graphs and libraries."""
    slots = max(shape.experts_per_token, 1)
    widest = slots * (3 * shape.ffn_size + 2 * shape.hidden_size) + 2 * shape.qkv_size
    layer = 2 * (widest + 4 * shape.hidden_size) * limits.max_num_tokens
    return 2 * layer + 4 * limits.max_num_seqs * shape.vocab_size + 2 * GIB


def _limits(shape: Shape, settings: Settings, place: Any) -> Limits:
    limits = Limits(
        num_blocks=settings.num_blocks or CPU_BLOCKS, block_tokens=settings.block_tokens,
        max_num_tokens=settings.max_num_tokens, max_num_seqs=settings.max_num_seqs,
    )  # fmt: skip
    if settings.num_blocks or place.type == "cpu":
        return limits
    free, total = torch_module().cuda.mem_get_info()
    room = free - (1 - settings.memory_share) * total - activation_bytes(shape, limits)
    num = int(room // (shape.kv_bytes_per_token() * settings.block_tokens))
    if num < 1:
        raise CannotServe(f"{shape.name}: no memory for a KV cache beside the weights")
    return replace(limits, num_blocks=num)


def _check_context(shape: Shape, trace: Trace) -> None:
    if trace.longest > shape.max_context_tokens:
        raise CannotServe(
            f"{trace.name}: a request of {trace.longest} tokens, {shape.name} has a context of "
            f"{shape.max_context_tokens}"
        )


def _write_meta(
    folder: Path, settings: Settings, device: Device | None, warm_up: WarmUp, log: Log,
    set_up_s: float,
) -> None:  # fmt: skip
    values = {
        "version": headway_version(),
        "device": asdict(device) if device else "cpu",
        "settings": asdict(settings),
        "warm_up": asdict(warm_up),
        "set_up_s": round(set_up_s, 3),
        "compiled_during_run": log.compiled,
        "iterations": len(log.iterations),
    }
    (folder / "meta.yaml").write_text(as_yaml(values), encoding="utf-8")
