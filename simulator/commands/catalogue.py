"""`headway models`, `hardware`, `workloads` and `schema`: what there is to choose from."""

from __future__ import annotations

from typing import Any

from simulator.catalog import gpu_names, load_gpu, load_model, model_names
from simulator.commands.output import console, print_json
from simulator.params import kv_bytes_per_token, num_active_params, num_params, weight_bytes
from simulator.spec import LinkSpec, ModelSpec
from simulator.units import show_bytes, show_count
from simulator.workloads import WORKLOADS, Preset, bundled_workloads, presets

Row = dict[str, Any]


def models(as_json: bool) -> None:
    """List the bundled models."""
    rows = [_model(load_model(name)) for name in model_names()]
    if as_json:
        print_json(rows)
        return
    _table(
        ("model", "params", "active", "weights", "format", "KV / token", "layers", "context"),
        [
            (
                row["name"],
                show_count(row["params"]),
                show_count(row["active_params"]),
                show_bytes(row["weight_bytes"]),
                _formats(row),
                show_bytes(row["kv_bytes_per_token"]),
                str(row["layers"]),
                show_count(row["context"]),
            )
            for row in rows
        ],
        left=(0, 4),
    )


def _model(model: ModelSpec) -> Row:
    return {
        "name": model.name,
        "architecture": model.architecture,
        "params": num_params(model),
        "active_params": num_active_params(model),
        "weight_bytes": weight_bytes(model),
        "kv_bytes_per_token": kv_bytes_per_token(model),
        "layers": model.num_layers,
        "hidden_size": model.hidden_size,
        "context": model.max_context_tokens,
        "weight_format": model.weight_format,
        "expert_weight_format": model.expert_weight_format if _has_experts(model) else None,
        "kv_format": model.kv_format,
    }


def _has_experts(model: ModelSpec) -> bool:
    return any(kind.ffn.num_experts for kind in model.layer_kinds)


def _formats(row: Row) -> str:
    """Weight format; with that of the experts where it is another one."""
    formats = (row["weight_format"], row["expert_weight_format"] or row["weight_format"])
    return "+".join(dict.fromkeys(formats))


def hardware(as_json: bool) -> None:
    """List the bundled GPUs."""
    rows = [_gpu(name) for name in gpu_names()]
    if as_json:
        print_json(rows)
        return
    _table(
        ("GPU", "memory", "bandwidth", "bf16", "fp8", "link", "per node", "TDP", "$/h"),
        [
            (
                row["name"],
                show_bytes(row["memory_bytes"]),
                f"{show_bytes(row['memory_bytes_per_s'])}/s",
                _teraflops(row, "bf16"),
                _teraflops(row, "fp8"),
                f"{show_bytes(row['gpu_link']['bytes_per_s'])}/s",
                str(row["gpus_per_node"]),
                f"{row['tdp_w']:.0f} W",
                f"{row['price_per_hour']:.2f}",
            )
            for row in rows
        ],
        left=(0,),
    )


def _gpu(name: str) -> Row:
    gpu = load_gpu(name)
    return {
        "name": gpu.name,
        "family": gpu.family,
        "memory_bytes": gpu.memory_bytes,
        "memory_bytes_per_s": gpu.memory_bytes_per_s,
        "flops_per_s": dict(gpu.flops_per_s),
        "num_sms": gpu.num_sms,
        "l2_bytes": gpu.l2_bytes,
        "tdp_w": gpu.tdp_w,
        "idle_w": gpu.idle_w,
        "price_per_hour": gpu.price_per_hour,
        "price_date": gpu.price_date,
        "gpu_link": _link(gpu.gpu_link),
        "host_link": _link(gpu.host_link),
        "gpus_per_node": gpu.gpus_per_node,
        "inter_node": _link(gpu.inter_node),
        "source": gpu.source,
    }


def _link(link: LinkSpec) -> Row:
    return {"name": link.name, "bytes_per_s": link.bytes_per_s, "latency_s": link.latency_s}


def _teraflops(row: Row, number_format: str) -> str:
    flops_per_s = row["flops_per_s"].get(number_format)
    return f"{flops_per_s / 1e12:.0f} T" if flops_per_s else ""


def _table(
    headings: tuple[str, ...],
    rows: list[tuple[str, ...]],
    left: tuple[int, ...],
    wraps: int = -1,  # column that takes what is left of the line
) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for index, heading in enumerate(headings):
        table.add_column(
            heading, justify="left" if index in left else "right", no_wrap=index != wraps
        )
    for row in rows:
        table.add_row(*row)
    console().print(table)


def workloads(as_json: bool) -> None:
    """List the bundled workloads: files, presets with the statistics they follow, and kinds."""
    rows = [_preset(preset) for preset in presets().values()]
    files = list(bundled_workloads())
    if as_json:
        print_json({"presets": rows, "files": files, "kinds": sorted(WORKLOADS)})
        return
    _table(
        ("preset", "input tokens", "output tokens", "what"),
        [
            (
                row["name"],
                _statistics(row["row"].get("input") or row["row"]["first_prompt"]),
                _statistics(row["row"]["output"]),
                row["what"],
            )
            for row in rows
        ],
        left=(0, 3),
        wraps=3,
    )
    console().print("tokens: mean / median / 90th percentile of the source, as far as it says")
    console().print(f"files: {', '.join(files)}\nkinds: {', '.join(sorted(WORKLOADS))}")


def _preset(preset: Preset) -> Row:
    return {
        "name": preset.name,
        "what": preset.what,
        "source": preset.source.strip(),
        "row": dict(preset.row),
        "kind": preset.workload["kind"],
    }


def _statistics(row: Row) -> str:
    """Mean, median and 90th percentile, those that the source gives."""
    return " / ".join(f"{row[key]:,.0f}" for key in ("mean", "p50", "p90") if key in row)


def schema() -> None:
    """Print the JSON Schema of an experiment file."""
    from simulator.config import json_schema

    print_json(json_schema())
