"""The grids, as data: which points a suite measures, and in which order.

A point names a table (a CSV file), a maker (who prepares it: `calibration.profile`) and the
maker's arguments. Ceilings come first and whole (`calibration.system`); then one point of each
maker in turn, so that a run cut short by its budget still covers every op. Inside a maker the
order is a fixed shuffle: any prefix of it spans the grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

SUITES = ("smoke", "core", "full")
MIB = 1 << 20

# [num_tokens, in_size] x [in_size, out_size] as (out_size, in_size): qkv, out, gate+up, down.
DENSE_8B = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
DENSE_70B_TP8 = ((1280, 8192), (8192, 1024), (7168, 8192), (8192, 3584))
HEADS = {"smoke": ((32, 8),), "core": ((32, 8), (8, 1)), "full": ((32, 8), (8, 1), (32, 32))}
EXPERTS: tuple[dict[str, int], ...] = (
    {"num_experts": 8, "top_k": 2, "hidden_size": 4096, "ffn_size": 14336},
    {"num_experts": 128, "top_k": 8, "hidden_size": 2048, "ffn_size": 768},
)
LAYERS: Mapping[str, Mapping[str, int]] = {
    "llama-3.1-8b": {"hidden": 4096, "q_heads": 32, "kv_heads": 8, "ffn": 14336},
    "llama-3.1-70b/tp8": {"hidden": 8192, "q_heads": 8, "kv_heads": 1, "ffn": 3584},
    "olmoe-1b-7b": {
        "hidden": 2048, "q_heads": 16, "kv_heads": 16, "ffn": 1024, "experts": 64, "top_k": 8,
    },
}  # fmt: skip

# Tiles to try beside those of the kernels' tables.
TUNE_SMALL_M: tuple[dict[str, Any], ...] = tuple(
    {"BLOCK_M": 16, "BLOCK_N": n, "BLOCK_K": k, "SPLIT_K": s, "num_warps": 4, "num_stages": 4}
    for n, k, s in product((32, 64, 128), (128, 256), (1, 4))
)
TUNE_LARGE_M: tuple[dict[str, Any], ...] = tuple(
    {"BLOCK_M": 128, "BLOCK_N": n, "BLOCK_K": 64, "TMA": t, "num_warps": 8, "num_stages": s}
    for n, s, t in product((128, 256), (3, 4), (False, True))
)
LayerPart = tuple[str, str, dict[str, int]]  # name, maker, arguments


@dataclass(frozen=True, slots=True)
class Point:
    """One point to measure. `repeat` tells apart measurements meant to be equal."""

    table: str
    maker: str
    arguments: tuple[tuple[str, Any], ...]
    l2: str = "cold"
    repeat: int = 0

    @property
    def key(self) -> str:
        """What a finished row carries, e.g. "gemm: dense m=16 n=4096 k=4096 cold 0"."""
        inside = " ".join(f"{name}={value}" for name, value in self.arguments)
        return f"{self.table}: {self.maker} {inside} {self.l2} {self.repeat}"


def point(table: str, maker: str, /, **arguments: Any) -> Point:
    """A point from keyword arguments."""
    return Point(table, maker, tuple(arguments.items()))


def grid(suite: str) -> list[Point]:
    """Every op's points of a suite, in the order of measurement (`system.ceilings` precede)."""
    size = SUITES.index(suite)
    ops = [
        *_gemm(suite), *_experts(size), *_decode(suite), *_prefill(suite), *_mixed(size),
        *_mla(size), *_small(size), *_copies(size), *_layers(size), *_spread(size),
    ]  # fmt: skip
    return round_robin(ops)


def round_robin(points: Iterable[Point]) -> list[Point]:
    """One of each lane (table and maker) in turn, lanes by first appearance."""
    lanes: dict[tuple[str, str], list[Point]] = {}
    for p in points:
        lanes.setdefault((p.table, p.maker), []).append(p)
    for lane in lanes.values():
        lane.sort(key=lambda p: hashlib.sha256(p.key.encode()).digest())
    longest = max(map(len, lanes.values()), default=0)
    return [lane[i] for i in range(longest) for lane in lanes.values() if i < len(lane)]


def grid_digest(points: Sequence[Point]) -> str:
    """Of a suite's points, whatever their order."""
    text = "\n".join(sorted(p.key for p in points))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _gemm(suite: str) -> list[Point]:
    shapes = {"smoke": DENSE_8B[1:2], "core": DENSE_8B + DENSE_70B_TP8}.get(
        suite, (*DENSE_8B, *DENSE_70B_TP8, (128256, 4096), (2048, 2048), (8192, 28672))
    )
    tokens = {"smoke": [16, 1024], "core": [1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192]}.get(
        suite, [1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536,
                2048, 3072, 4096, 6144, 8192, 16384]
    )  # fmt: skip
    few = tokens if suite != "core" else [1, 16, 64, 256, 1024, 4096]
    main = shapes if suite == "full" else shapes[:4]
    points = [point("gemm", "dense", m=m, n=n, k=k) for m in tokens for n, k in shapes]
    if suite == "core":  # steps of waves and tiles
        odd = (24, 48, 96, 192, 384, 768, 1536, 3072)
        points += [point("gemm", "dense", m=m, n=n, k=k) for m in odd for n, k in shapes[:2]]
    quantised = ("fp8", "fp8_block", "int8", "int4_g128")
    points += [
        point("gemm", f, m=m, n=n, k=k)
        for f, m, (n, k) in product(quantised, few, main)
    ]  # fmt: skip
    return points


def _experts(size: int) -> list[Point]:
    tokens = ([16], [1, 16, 64, 256, 1024, 4096], [1, 4, 16, 64, 128, 256, 512, 1024, 4096, 8192])
    points = []
    for t, shape, skew in product(tokens[size], EXPERTS[: size + 1], (0.0, 0.5, 1.0)[: size + 1]):
        points.append(point("moe", "moe", num_tokens=t, **shape, skew=skew))
        sizes = {"num_experts": shape["num_experts"], "top_k": shape["top_k"]}
        sizes |= {"n": 2 * shape["ffn_size"], "k": shape["hidden_size"]}
        points.append(point("grouped_gemm", "grouped", num_tokens=t, **sizes, skew=skew))
    return points


def _decode(suite: str) -> list[Point]:
    seqs = {"smoke": [16], "core": [1, 4, 16, 64, 256]}.get(suite, [1, 2, 4, 8, 16, 32, 64, 256])
    kv = {"smoke": [2048], "core": [128, 1024, 2048, 8192, 32768, 131072]}.get(
        suite, [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072]
    )
    size, points = SUITES.index(suite), []
    for s, n, (q, h) in product(seqs, kv, HEADS[suite]):
        if s * n * h <= 2**23:
            where = {"num_seqs": s, "kv_tokens": n, "num_q_heads": q, "num_kv_heads": h}
            points.append(point("decode_attention", "decode", **where))
            if size and (q, h) == (32, 8) and n in (1024, 8192):
                points.append(point("decode_attention", "decode_fp8", **where, kv_format="fp8"))
    one: dict[str, Any] = {"num_seqs": 64, "kv_tokens": 4096}
    for s, n, long in [(16, 512, 32768), (64, 512, 131072), (64, 2048, 16384)][: 1 + 2 * size]:
        ragged = {"num_seqs": s, "kv_tokens": n, "long_tokens": long}
        points.append(point("decode_ragged", "decode", **ragged))
    variants: tuple[dict[str, Any], ...] = (
        *({"num_queries": k} for k in (2, 4, 8)), *({"block_tokens": b} for b in (32, 64, 128)),
        {"window": 1024}, {"kv_format": "int8"}, {"softcap": 50.0},
    )  # fmt: skip
    for extra in variants if size else ():
        points.append(point("decode_variants", "decode", **one, **extra))
    return points


def _prefill(suite: str) -> list[Point]:
    tokens = {"smoke": [512], "core": [128, 512, 2048, 8192]}.get(
        suite, [64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384]
    )
    context = {"smoke": [0, 4096], "core": [0, 2048, 8192, 32768]}.get(
        suite, [0, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
    )
    seqs = (1,) if suite == "smoke" else (1, 4, 16)
    points = [
        point("prefill_attention", "prefill", num_seqs=s, num_tokens=t, context_tokens=c,
              num_q_heads=q, num_kv_heads=h)
        for s, t, c, (q, h) in product(seqs, tokens, context, HEADS[suite])
        if s * t <= 16384 and s * (t + c) <= 2**17
    ]  # fmt: skip
    one = {"num_seqs": 1, "num_tokens": 2048, "context_tokens": 8192}
    if suite != "smoke":
        for extra in ({"block_tokens": 0}, {"block_tokens": 64}, {"window": 4096},
                      {"kv_format": "fp8"}):  # fmt: skip
            points.append(point("prefill_variants", "prefill", **one, **extra))
        points += [point("block_sparse_attention", "sparse", num_tokens=n) for n in (4096, 16384)]
    return points


def _mixed(size: int) -> list[Point]:
    """A chunk and decodes: in one launch (`prefill_mixed`), and back to back."""
    batches = [(512, 2048, 32, 2048), (1024, 0, 64, 2048), (256, 8192, 128, 1024),
               (2048, 0, 16, 8192), (512, 0, 128, 4096), (128, 32768, 64, 4096)]  # fmt: skip
    names = ("num_tokens", "context_tokens", "num_decodes", "decode_kv_tokens")
    return [
        point(table, maker, **dict(zip(names, batch, strict=True)))
        for batch in batches[: (1, 4, 6)[size]]
        for table, maker in (("prefill_mixed", "prefill"), ("mixed_launches", "mixed"))
    ]


def _mla(size: int) -> list[Point]:
    seqs, kv = ([16], [1, 16, 64, 128], [1, 4, 16, 64, 128, 256]), (2048, 512, 8192, 32768)
    return [
        point("mla_decode", "mla", num_seqs=s, kv_tokens=n, num_heads=heads)
        for s, n, heads in product(seqs[size], kv[: 1 + 3 * size], (128, 16)[: size + 1])
        if s * n <= 2**21
    ]


def _small(size: int) -> list[Point]:
    tokens = ([16], [1, 16, 64, 256, 2048, 8192], [1, 4, 16, 64, 256, 1024, 2048, 4096, 8192])[size]
    points = []
    for t in tokens:
        for hidden, ffn, q, h in ((4096, 14336, 32, 8), (8192, 3584, 8, 1))[: size + 1]:
            points.append(point("add_rmsnorm", "norm", num_tokens=t, hidden_size=hidden))
            points.append(point("gated_activation", "gated", num_tokens=t, ffn_size=ffn))
            heads = {"num_q_heads": q, "num_kv_heads": h, "head_dim": 128}
            points.append(point("rope_kv", "rope", num_tokens=t, **heads))
            points.append(point("quantize", "quantize", num_tokens=t, k=hidden, group=0))
        if t <= 256:
            for greedy in (False, True)[: size + 1]:
                drawn = {"num_seqs": t, "vocab_size": 128256, "greedy": greedy}
                points.append(point("sample", "sample", **drawn))
    return points


def _copies(size: int) -> list[Point]:
    shapes = ((256, 32768), (16, 32768), (2048, 32768), (64, MIB), (16, 4 * MIB), (4096, 16384))
    return [
        point("kv_copy_to_host" if h else "kv_copy", "kv_copy", num_blocks=n, block_bytes=b,
              to_host=h)
        for n, b in shapes[: (1, 4, 6)[size]] for h in (False, True)
    ]  # fmt: skip


def _layers(size: int) -> list[Point]:
    batches = [("decode", 32, 2048), ("prefill", 2048, 0), ("decode", 1, 1024),
               ("decode", 128, 2048), ("prefill", 512, 8192)]  # fmt: skip
    return [
        point("layer", "layer", model=m, phase=phase, num_tokens=t, context_tokens=c)
        for m, (phase, t, c) in product(list(LAYERS)[: 1 + 2 * size], batches[: (1, 5, 5)[size]])
    ]


def _spread(size: int) -> list[Point]:
    """The same points again: as repeats, and with their inputs left in the L2 cache."""
    some: list[tuple[str, str, dict[str, Any]]] = [
        ("gemm", "dense", {"m": 16, "n": 4096, "k": 4096}),
        ("decode_attention", "decode", {"num_seqs": 16, "kv_tokens": 1024}),
        ("gemm", "dense", {"m": 2048, "n": 4096, "k": 4096}),
        ("add_rmsnorm", "norm", {"num_tokens": 256, "hidden_size": 4096}),
    ]
    some = some[: 1 + 3 * size]
    again = [
        replace(point(f"{t}_repeats", m, **a), repeat=i)
        for (t, m, a), i in product(some, range(2 + size))
    ]
    return again + [
        replace(point(f"{t}_l2", m, **a), l2=l2)
        for (t, m, a), l2 in product(some, ("cold", "warm"))
    ]


def tune_grid() -> list[Point]:
    """Few shapes, each with every tile configuration of its kernel."""
    dense = [(m, n, k) for m in (1, 16, 64, 256, 4096) for n, k in (DENSE_8B[0], DENSE_8B[3])]
    decode = [(1, 32768), (16, 2048), (64, 8192), (256, 1024)]
    prefill = [(2048, 0), (8192, 0), (512, 8192), (2048, 32768)]
    return round_robin([
        *(point("tune_gemm", "tune_dense", m=m, n=n, k=k) for m, n, k in dense),
        *(point("tune_decode", "tune_decode", num_seqs=s, kv_tokens=n) for s, n in decode),
        *(point("tune_prefill", "tune_prefill", num_seqs=1, num_tokens=t, context_tokens=c)
          for t, c in prefill),
    ])  # fmt: skip


def layer_parts(model: str, phase: str, num_tokens: int, context_tokens: int) -> list[LayerPart]:
    """(name, maker, arguments) of each op of a layer, in order."""
    spec = LAYERS[model]
    t, hidden, ffn = num_tokens, spec["hidden"], spec["ffn"]
    heads = {"num_q_heads": spec["q_heads"], "num_kv_heads": spec["kv_heads"], "head_dim": 128}
    q_size, qkv = 128 * spec["q_heads"], 128 * (spec["q_heads"] + 2 * spec["kv_heads"])
    past = {"num_seqs": t, "kv_tokens": context_tokens}
    chunk = {"num_seqs": 1, "num_tokens": t, "context_tokens": context_tokens}
    attention = past if phase == "decode" else chunk
    norm = ("norm", {"num_tokens": t, "hidden_size": hidden})
    parts: list[LayerPart] = [
        ("norm_1", *norm),
        ("qkv", "dense", {"m": t, "n": qkv, "k": hidden}),
        ("rope_kv", "rope", {"num_tokens": t, **heads}),
        ("attention", phase, {**attention, **heads}),
        ("out", "dense", {"m": t, "n": hidden, "k": q_size}),
        ("norm_2", *norm),
    ]
    if "experts" not in spec:
        return [
            *parts, ("gate_up", "dense", {"m": t, "n": 2 * ffn, "k": hidden}),
            ("gated", "gated", {"num_tokens": t, "ffn_size": ffn}),
            ("down", "dense", {"m": t, "n": hidden, "k": ffn}),
        ]  # fmt: skip
    experts = {"num_experts": spec["experts"], "top_k": spec["top_k"]}
    sizes = {"hidden_size": hidden, "ffn_size": ffn}
    return [
        *parts, ("router", "dense", {"m": t, "n": spec["experts"], "k": hidden}),
        ("experts", "moe", {"num_tokens": t, **experts, **sizes}),
    ]  # fmt: skip
