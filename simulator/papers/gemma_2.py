"""Gemma 2 (arXiv 2408.00118): windows on every other layer, and capped attention scores."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simulator.costs.attention import attention_time
from simulator.costs.roofline import layout_of
from simulator.engine import prepare
from simulator.papers.case import Case, Line, Measure, Picture
from simulator.params import embedding_params, num_params
from simulator.spec import ModelSpec
from simulator.work import attention_work, prefill_pairs

SIZES = ("2b", "9b", "27b")
CONTEXT = 8192


def model_of(case: Case, size: str) -> ModelSpec:
    return case.experiment({"model": f"gemma-2-{size}"}).model


def _params(size: str) -> Measure:
    """Billions of parameters."""
    return lambda case: num_params(model_of(case, size)) / 1e9


def kept_share(model: ModelSpec, tokens: int) -> float:
    """KV bytes that a request of so many tokens needs, over those of all layers keeping all."""
    needed = whole = 0.0
    for kind in model.layer_order:
        heads = model.layer_kinds[kind].attention
        size = attention_work(heads, model.kv_format, 1).kv_bytes_per_token
        needed += size * (min(tokens, heads.window) if heads.window else tokens)
        whole += size * tokens
    return needed / whole


def _saved(size: str, tokens: int) -> Measure:
    return lambda case: 1 - kept_share(model_of(case, size), tokens)


def prefill_flops_share(case: Case) -> float:
    """FLOPs of attention over a prompt of 8K, windows over full."""
    model = model_of(case, "27b")
    some = every = 0.0
    for kind in model.layer_order:
        heads = model.layer_kinds[kind].attention
        flops = attention_work(heads, model.kv_format, 1).prefill_flops_per_pair
        some += flops * prefill_pairs(CONTEXT, 0, heads.window)
        every += flops * prefill_pairs(CONTEXT, 0)
    return some / every


def decode_bytes_share(case: Case) -> float:
    """KV bytes that a decode at 8K is priced to read, windows over full.

    The priced attention of one more sequence at 8K, less that of one at 0: a slope a token.
    """
    cost = prepare(case.experiment({"model": "gemma-2-27b"})).kinds[0].cost
    (stage,) = cost.stages
    read = sum(a.decode_per_token[1] * min(CONTEXT, a.window or CONTEXT) for a in stage.attention)
    return read / sum(a.decode_per_token[1] * CONTEXT for a in stage.attention)


def logits_share(case: Case) -> float:
    """Share of Gemma-2-2B's weights that the product with the vocabulary reads."""
    model = model_of(case, "2b")
    return embedding_params(model) / num_params(model)


def softcap_price(case: Case) -> float:
    """Price of a query-key pair of a prompt, scores capped over not."""
    experiment = case.experiment()
    group = experiment.cluster.groups[0]
    layout = layout_of(experiment.model, experiment.plan, group, experiment.settings)
    work = layout.kinds[0].attention
    price = [
        attention_time(replace(work, softcap=capped), np.ones(1), layout.machine)
        for capped in (True, False)
    ]
    return price[0].prefill_per_pair_s / price[1].prefill_per_pair_s


def gain_of_short(case: Case) -> float:
    """Requests a second of prompts below the window, windows freed over kept."""
    ends = [case.simulate({"allocator": {"kind": kind}}).end_ns for kind in ("uniform", "jenga")]
    return ends[0] / ends[1]


MEASURES: dict[str, Measure] = {
    **{f"params_{size}": _params(size) for size in SIZES},
    **{f"saved_{size}": _saved(size, CONTEXT) for size in SIZES},
    "saved_4k": _saved("27b", 4096),
    "prefill_flops": prefill_flops_share,
    "decode_bytes": decode_bytes_share,
    "logits_share": logits_share,
    "softcap_price": softcap_price,
    "gain_of_short": gain_of_short,
}


def picture(case: Case) -> Picture:
    """KV of one request of each model over its length."""
    tokens = tuple(range(0, CONTEXT + 1, 128))
    lines = []
    for size in SIZES:
        model = model_of(case, size)
        whole = sum(
            attention_work(model.layer_kinds[k].attention, model.kv_format, 1).kv_bytes_per_token
            for k in model.layer_order
        )
        kept = [n * whole * (kept_share(model, n) if n else 0) / 2**20 for n in tokens]
        lines.append(Line(label=f"{size}, windows", x=tuple(map(float, tokens)), y=tuple(kept)))
        full = tuple(n * whole / 2**20 for n in tokens)
        lines.append(
            Line(label=f"{size}, all full", x=tuple(map(float, tokens)), y=full, dashed=True)
        )
    return Picture(
        title="Gemma 2: KV of one request",
        x_label="tokens",
        y_label="MiB",
        lines=tuple(lines),
    )
