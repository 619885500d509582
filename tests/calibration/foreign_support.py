"""Writers of foreign formats, from known points of our tables: what the importers must undo."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

from calibration.columns import KERNEL, SCHEMAS, TIME
from simulator.costs.forms import FORMS

from .tables_support import timed

STATISTICS = ("min", "max", "mean", "median", "std")
MODEL = {"n_embd": 4096, "n_expanded_embd": 14336, "n_head": 32, "n_kv_head": 8}
HEADS = {"num_q_heads": 32, "num_kv_heads": 8, "head_dim": 128, "window": 0}
TOKENS = (1, 16, 64, 128, 512, 1024, 2048, 4096)


def known(op: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with times that the op's form gives: below no roofline."""
    start = {name: parameter.start for name, parameter in FORMS[op].parameters.items()}
    return timed(op, rows.assign(**{KERNEL: "known"}), start)


def layer_gemms(degree: int) -> dict[str, tuple[int, int]]:
    """(outputs, inputs) of the GEMMs of a gated layer on one of `degree` GPUs."""
    return {
        "attn_pre_proj": (6144 // degree, 4096),
        "attn_post_proj": (4096, 4096 // degree),
        "mlp_up_proj": (28672 // degree, 4096),
        "mlp_down_proj": (4096, 14336 // degree),
    }


def gemm_points(degrees: tuple[int, ...] = (1, 4)) -> pd.DataFrame:
    """Points of every GEMM of the layer."""
    shapes = [shape for degree in degrees for shape in layer_gemms(degree).values()]
    grid = [(tokens, *shape) for shape in shapes for tokens in TOKENS]
    rows = pd.DataFrame(grid, columns=["num_tokens", "out_size", "in_size"])
    return known("gemm", rows.assign(format="bf16"))


def attention_points() -> dict[str, pd.DataFrame]:
    """Decode and prefill points of one shape of heads."""
    decode = [(seqs, tokens + 1) for seqs in (1, 8, 64, 128) for tokens in (128, 1024, 4096)]
    prefill = [(new, context) for new in (128, 512, 2048) for context in (0, 512, 2048)]
    rows = pd.DataFrame(decode, columns=["num_seqs", "kv_tokens"]).assign(kv_format="bf16", **HEADS)
    chunks = pd.DataFrame(prefill, columns=["num_tokens", "context_tokens"]).assign(
        num_seqs=1, kv_format="bf16", compute_format="bf16", **HEADS
    )
    return {
        "decode_attention": known("decode_attention", rows),
        "prefill_attention": known("prefill_attention", chunks),
    }


def all_reduce_points() -> pd.DataFrame:
    """Sums over 2 and 8 GPUs."""
    grid = [(gpus, 1024 << power) for gpus in (2, 8) for power in range(0, 17, 2)]
    rows = pd.DataFrame(grid, columns=["num_gpus", "payload_bytes"])
    return known("all_reduce", rows.assign(launch="graph"))


def vidur(folder: Path) -> dict[str, pd.DataFrame]:
    """A folder in Vidur's layout, and its points by op."""
    folder.mkdir(parents=True)
    points = {"gemm": gemm_points(), **attention_points(), "all_reduce": all_reduce_points()}
    time_s = points["gemm"].set_index(["num_tokens", "out_size", "in_size"])[TIME]
    rows: list[dict[str, object]] = []
    for degree in (1, 4):
        for tokens in TOKENS:
            row: dict[str, object] = _stats("emb", 0.01) | _stats("add", 0.01) | dict(MODEL)
            for name, shape in layer_gemms(degree).items():
                row |= _stats(name, 1e3 * float(time_s[(tokens, *shape)]))
            row |= {"use_gated_mlp": True, "vocab_size": 32000, "num_tokens": tokens}
            rows.append(row | {"num_tensor_parallel_workers": degree})
    pd.DataFrame(rows).to_csv(folder / "mlp.csv", index=False)
    _vidur_attention(points).to_csv(folder / "attention.csv", index=False)
    sums = [
        _stats("all_reduce", 1e3 * row[TIME])
        | {"rank": 0, "num_workers": row["num_gpus"], "size": row["payload_bytes"]}
        | {"collective": "all_reduce", "devices_per_node": 8, "max_devices_per_node": 8}
        for row in points["all_reduce"].to_dict("records")
    ]
    pd.DataFrame(sums).to_csv(folder / "all_reduce.csv")
    return points


def _vidur_attention(points: dict[str, pd.DataFrame]) -> pd.DataFrame:
    rows = []
    base = {"n_embd": 4096 * 2, "n_q_head": 64, "n_kv_head": 16, "block_size": 16}
    base |= {"num_tensor_parallel_workers": 2, "max_model_len": 4096}
    for op, table in points.items():
        for row in table.to_dict("records") if "attention" in op else []:
            is_prefill = op == "prefill_attention"
            name = "attn_prefill" if is_prefill else "attn_decode"
            # The write of keys and values is timed apart: a tenth of it all, say.
            stats = _stats(name, 900 * row[TIME]) | _stats("attn_kv_cache_save", 100 * row[TIME])
            new = row["num_tokens"] if is_prefill else 0
            cached = row["context_tokens"] if is_prefill else row["kv_tokens"] - 1
            sizes = {"batch_size": row["num_seqs"], "prefill_chunk_size": new}
            what = {"is_prefill": is_prefill, "attention_backend": "AttentionBackend.FLASHINFER"}
            rows.append(stats | _stats("attn_output_reshape", 0.001) | base | sizes | what)
            rows[-1]["kv_cache_size"] = cached
    return pd.DataFrame(rows)


def _stats(op: str, milliseconds: float) -> dict[str, object]:
    return {f"time_stats.{op}.{name}": milliseconds for name in STATISTICS}


def apex(folder: Path) -> dict[str, pd.DataFrame]:
    """A folder in APEX+'s layout, and its points by op: times are whole microseconds."""
    folder.mkdir(parents=True)
    whole = pd.concat([gemm_points((1,)), gemm_points((1,))]).drop_duplicates()
    chunks = attention_points()["prefill_attention"].assign(num_kv_heads=32, context_tokens=0)
    prompts = known("prefill_attention", chunks.drop_duplicates(["num_tokens"]))
    points = {"gemm": whole, "prefill_attention": prompts, "all_reduce": all_reduce_points()}
    points = {op: table.assign(**{TIME: _whole_us(table)}) for op, table in points.items()}
    head = {"gpu": "H200-SXM-141GB", "dtype": "half"}
    us = {op: (table[TIME] * 1e6).round().astype(int) for op, table in points.items()}
    names = {"out_size": "m", "in_size": "k", "num_tokens": "n"}
    gemm = whole.rename(columns=names)[[*names.values()]].assign(**head)
    gemm.assign(**{"time(us)": us["gemm"]}).to_csv(folder / "gemm_0.csv", index=False)
    names = {"num_q_heads": "num_heads", "head_dim": "head_size", "num_seqs": "batch_size"}
    mha = prompts.rename(columns={**names, "num_tokens": "seq_len"})
    mha = mha[["num_heads", "head_size", "batch_size", "seq_len"]].assign(**head)
    mha.assign(**{"time(us)": us["prefill_attention"]}).to_csv(folder / "mha_0.csv", index=False)
    sums = points["all_reduce"]
    sizes = {"num_nodes": 1, "num_gpus_per_node": sums["num_gpus"]}
    kilobytes = {"size(kb)": sums["payload_bytes"] // 1024, "time(us)": us["all_reduce"]}
    table = pd.DataFrame({**head, **sizes, **kilobytes})
    table.to_csv(folder / "all_reduce.csv", index=False)
    return points


def _whole_us(table: pd.DataFrame) -> Any:
    return (table[TIME] * 1e6).apply(lambda us: max(1.0, -(-us // 1.0))) * 1e-6


def forward(folder: Path, layers: int = 32) -> dict[str, pd.DataFrame]:
    """results.json and kernel files of `vllm bench forward`, tp 2, and its points by op."""
    folder.mkdir(parents=True)
    heads = {"num_q_heads": 16, "num_kv_heads": 4}
    points = {op: known(op, t.assign(**heads)) for op, t in attention_points().items()}
    cases = []
    for op, table in points.items():
        for row in table.to_dict("records"):
            new = row.get("num_tokens", 1)
            length = row.get("context_tokens", row.get("kv_tokens", 0) - 1) + new
            name = f"{op}-{row['num_seqs']}x{new}at{length}"
            request = {"query_len": new, "kv_len": length, "num_draft_tokens": 0, "chunked": False}
            cases.append((name, [request] * row["num_seqs"], row[TIME] * 1e6 * layers))
    results = [case_json(folder, name, requests, us, layers) for name, requests, us in cases]
    (folder / "results.json").write_text(json.dumps(results))
    return points


def case_json(
    folder: Path, name: str, requests: list[dict[str, Any]], us: float, layers: int = 32
) -> dict[str, Any]:
    """One case on two ranks, its kernel files written; `us` of attention on the slower one."""
    tokens = sum(request["query_len"] for request in requests)
    ranks = []
    for rank, slower in enumerate((0.99, 1.0)):
        kernels = [
            {"name": "nvjet_tst_128x64", "us": 9 * us, "calls": 4 * layers},
            {"name": "cutlass::device_kernel<flash::Fwd>", "us": 0.8 * slower * us},
            {"name": "vllm::reshape_and_cache_flash_kernel", "us": 0.2 * slower * us},
            {
                "name": "vllm::cross_device_reduce_1stage",
                "us": (20 + rank + 0.05 * tokens) * 2 * layers,
            },
        ]
        full = [{"calls": layers, "pct": 1.0, "example": ""} | kernel for kernel in kernels]
        full[3]["calls"] = 2 * layers
        summary = f"{name}.rank{rank}.kernels.json"
        (folder / summary).write_text(json.dumps({"replays": 3, "kernels": full}))
        profile = {"summary": f"/elsewhere/{summary}", "span_us": us, "top_kernels": full[:1]}
        ranks.append({"num_tokens": tokens, "profile": profile})
    return {"case": name, "requests": requests, "median_us": 11 * us, "ranks": ranks}


def same_points(op: str, expected: pd.DataFrame, actual: pd.DataFrame) -> None:
    """The same shapes with the same times, in any order and by whatever kernel."""
    keys = list(SCHEMAS[op].key)
    both = [t.sort_values(keys).reset_index(drop=True)[[*keys, TIME]] for t in (expected, actual)]
    pd.testing.assert_frame_equal(both[0], both[1], check_dtype=False, rtol=1e-6)
