"""The truth of the engine's tests: one request at a time, recomputed in full for every token.

Plain torch, no cache, no pages, no batch, none of the engine's operations.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional

from calibration.engine.executor import Executor, Limits, graph_sizes
from calibration.engine.inputs import Sizes
from calibration.engine.lane import EngineLane
from calibration.engine.model import kv_cache, random_model
from calibration.engine.replay import Log, replay
from calibration.engine.trace import Trace

CPU = torch.device("cpu")


def trace_of(*requests: tuple[float, int, int]) -> Trace:
    """From (arrival_s, input_tokens, output_tokens)."""
    arrival_s, inputs, outputs = zip(*requests, strict=True)
    return Trace(
        name="test",
        arrival_ns=np.rint(np.array(arrival_s) * 1e9).astype(np.int64),
        input_tokens=np.array(inputs),
        output_tokens=np.array(outputs),
    )


class Ticking:
    """A clock that moves 1 ms whenever it is read, and sleeps at once."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        self.now_ns += 1_000_000
        return self.now_ns

    def sleep(self, seconds: float) -> None:
        self.now_ns += round(seconds * 1e9)


def prompts_of(trace: Trace, vocab_size: int) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, vocab_size, n).astype(np.int32) for n in trace.input_tokens]


class Replayed:
    """What stands in for a CUDA graph on the CPU: the pass of its size, over the same buffers."""

    def __init__(self, executor: Executor, size: int, width: int) -> None:
        self._sizes = Sizes(decodes=size, chunks=0, tokens=size, table_width=width)
        self._executor, self.sampled = executor, torch.zeros(size, dtype=torch.int64)

    def replay(self) -> None:
        self.sampled.copy_(self._executor._forward(self._sizes))


def serve(trace, shape, ops, limits: Limits, *, padded=False):  # type: ignore[no-untyped-def]
    """(model, lane, log) of a whole trace on the CPU, with a clock of its own; `padded`: batches of
    decodes at the sizes of graphs."""
    dtype = torch.float32
    lane = EngineLane(
        trace, prompts_of(trace, shape.vocab_size), num_blocks=limits.num_blocks,
        block_tokens=limits.block_tokens, max_num_tokens=limits.max_num_tokens,
        max_num_seqs=limits.max_num_seqs,
    )  # fmt: skip
    width = lane.table.shape[1]
    model = random_model(shape, width * limits.block_tokens, CPU, dtype, seed=1)
    cache = kv_cache(shape, limits.num_blocks, limits.block_tokens, CPU, dtype)
    clock = Ticking()
    executor = Executor(model, cache, ops, limits, width, clock)
    executor.warm_up(deadline_ns=1 << 60)
    for size in graph_sizes(limits.max_num_seqs) if padded else ():
        graph = Replayed(executor, size, width)
        executor._graphs[size] = (graph, graph.sampled)
        executor._sizes.append(size)
    log: Log = replay(trace, lane, executor, clock=clock, sleep=clock.sleep)
    return model, lane, log


def logits_of(model, tokens: list[int]) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """[len(tokens), V]: a whole sequence at once."""
    shape = model.shape
    x = model.embedding[torch.tensor(tokens)]
    for layer in model.layers:
        h = functional.rms_norm(x, (shape.hidden_size,), layer.norm_1, shape.norm_eps)
        heads = (h @ layer.qkv.T).view(len(tokens), -1, shape.head_dim).transpose(0, 1)
        q, k, v = heads.split([shape.num_q_heads, shape.num_kv_heads, shape.num_kv_heads])
        q, k = rotated(q, shape.rope_base), rotated(k, shape.rope_base)
        group = shape.num_q_heads // shape.num_kv_heads
        k, v = (t.repeat_interleave(group, 0) for t in (k, v))
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + attended.transpose(0, 1).flatten(1) @ layer.out.T
        h = functional.rms_norm(x, (shape.hidden_size,), layer.norm_2, shape.norm_eps)
        x = x + feed_forward(h, layer, shape)
    return functional.rms_norm(x, (shape.hidden_size,), model.norm, shape.norm_eps) @ model.head.T


def rotated(x: torch.Tensor, base: float) -> torch.Tensor:
    """[heads, T, D], by complex multiplication: channel i is paired with i + D/2."""
    half = x.shape[-1] // 2
    turns = torch.arange(x.shape[1])[:, None] * base ** (-torch.arange(half) / half)
    spun = torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * turns)
    return torch.cat([spun.real, spun.imag], -1).to(x.dtype)


def feed_forward(h, layer, shape):  # type: ignore[no-untyped-def]
    def expert(h, gate_up, down):  # type: ignore[no-untyped-def]
        gate, up = (h @ gate_up.T).chunk(2, -1)
        return (functional.silu(gate) * up) @ down.T

    if not shape.num_experts:
        return expert(h, layer.gate_up, layer.down)
    shares = torch.softmax(h @ layer.router.T, -1)
    best, chosen = shares.topk(shape.experts_per_token, -1)
    share = torch.zeros_like(shares).scatter(1, chosen, best / best.sum(-1, keepdim=True))
    every = [expert(h, g, d) for g, d in zip(layer.gate_up, layer.down, strict=True)]
    return (share.T[..., None] * torch.stack(every)).sum(0)


def greedy(model, prompt: np.ndarray, num: int) -> list[int]:  # type: ignore[no-untyped-def]
    """The truth: `num` tokens after a prompt."""
    tokens = prompt.tolist()
    for _ in range(num):
        tokens.append(int(logits_of(model, tokens)[-1].argmax()))
    return tokens[len(prompt) :]
