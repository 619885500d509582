"""Importer of `vllm bench forward --profile-dir DIR --output-json FILE` (vLLM 0.33, Apache-2.0).

The file is a list of cases: `requests` of {query_len, kv_len (the query included),
num_draft_tokens, chunked}, `median_us` of the whole forward, and one entry of `ranks` a GPU, whose
`profile.summary` names `<case>.rank<r>.kernels.json` with microseconds and calls of each kernel in
one forward. A whole forward cannot be divided into ops; its kernels can where their names say what
they are: attention with the write of its keys and values, and sums over GPUs. The file names
neither model nor GPU: both are given.

Attention is taken from cases whose requests are all alike (`--kv-len-jitter 0`), all decoding or
all prefills, of models whose layers share one kind of attention. A sum takes as long as on the
rank that waits least for the others. The rest is counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from calibration.columns import KERNEL, TIME
from calibration.importing import UNSTATED, Intake
from calibration.tables import Tables
from simulator.errors import ConfigError
from simulator.spec import GpuSpec, ModelSpec

US = 1e-6
KEPT = "top_kernels"
ACTIVATION_BYTES = 2
FUSED = re.compile(r"norm|fusion|fused|quant", re.IGNORECASE)
ALL_REDUCE = re.compile(r"all_?reduce|cross_device_reduce", re.IGNORECASE)
ATTENTION = re.compile(
    r"flash|fmha|attention|attn|pagedkvcache|reshape_and_cache|reduce_segments|varlen_num_blocks",
    re.IGNORECASE,
)
LAUNCHER = re.compile(r"[^A-Za-z0-9_:]+")
Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One case with the kernels of each rank that has a profile."""

    name: str
    requests: Sequence[Json]
    ranks: Sequence[Json]
    kernels: Sequence[Sequence[Json]]

    @property
    def num_tokens(self) -> int:
        return sum(int(request["query_len"]) for request in self.requests)


def import_tables(path: Path, gpu: GpuSpec, model: ModelSpec, tp: int) -> Tables:
    """Tables from the kernels of every case; `tp` GPUs shared each layer.

    Raises:
        ConfigError: not such a file, or no kernel in it that is one of our ops.
    """
    for heads in {layer.attention.num_q_heads for layer in model.layer_kinds}:
        if heads % tp:
            raise ConfigError(f"--tp: {tp} does not divide the {heads} heads of {model.name}")
    intake = Intake(gpu=gpu, unit="microseconds")
    for case in read_cases(path):
        intake.leave("forwards", 1, "a whole one is not divided into ops", "cases")
        if not case.kernels:
            intake.leave("kernels", 1, "no profile (--profile-dir)", "cases")
        elif any(rank.get("pp_rank") for rank in case.ranks):
            intake.leave("kernels", 1, "of a pipeline stage", "cases")
        else:
            _attention(case, model, tp, intake)
            _all_reduce(case, model, tp, intake)
            _others(case, intake)
    return intake.finish(
        path,
        {
            "engine": "vllm",
            "version": UNSTATED,
            "source": f"vllm bench forward {path.name} of {model.name} tp{tp}, kernel times",
            "licence": UNSTATED,
        },
    )


def read_cases(path: Path) -> list[Case]:
    """The cases of a result file, kernel files beside it included.

    Raises:
        ConfigError: not JSON, cut short, or not of this form.
    """
    data = _json(path)
    if not isinstance(data, list) or not data:
        raise ConfigError(f"{path}: expected a list of cases of `vllm bench forward`")
    return [_case(entry, number, path) for number, entry in enumerate(data)]


def _case(entry: Any, number: int, path: Path) -> Case:
    where = f"{path}: [{number}]"
    try:
        name, ranks, requests = str(entry["case"]), list(entry["ranks"]), list(entry["requests"])
        wanted = (float(entry["median_us"]), *(_request(request) for request in requests))
        profiles = [rank["profile"] for rank in ranks if rank.get("profile")]
        kernels = [_kernels(profile, path) for profile in profiles]
        for kernel in (kernel for rank in kernels for kernel in rank):
            wanted += (float(kernel["us"]), float(kernel["calls"]), len(kernel["name"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: not a case of `vllm bench forward` ({error!r})") from None
    if not requests or not all(number >= 0 for number in wanted):  # NaN is neither
        raise ConfigError(f"{where}: expected requests and times >= 0")
    return Case(name=name, requests=requests, ranks=ranks, kernels=kernels)


def _request(request: Json) -> float:
    """The request's smallest count; its lengths are checked to be a chunk and its context."""
    query, length = int(request["query_len"]), int(request["kv_len"])
    if not 1 <= query <= length:
        raise ValueError(f"query_len {query}, kv_len {length}")
    return float(request.get("num_draft_tokens", 0))


def _kernels(profile: Json, path: Path) -> list[Json]:
    """Kernels of one rank: every one from its file, or the ten longest of the result itself."""
    beside = path.parent / Path(str(profile["summary"])).name
    file = next((f for f in (Path(str(profile["summary"])), beside) if f.is_file()), None)
    found: list[Json] = list((_json(file) if file else profile)["kernels" if file else KEPT])
    return found


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ConfigError(f"{path}: not JSON, cut short? ({error})") from None


def _attention(case: Case, model: ModelSpec, tp: int, intake: Intake) -> None:
    """One row: the attention of one layer, as long as on the slowest rank."""
    found = [[k for k in kernels if is_attention(k)] for kernels in case.kernels]
    why = _not_alike(case, model)
    if why or not all(found):
        number = max(len(kernels) for kernels in found)
        intake.leave("attention", number, why, "kernels")
        if not number:
            intake.leave("attention", 1, "no such kernel among those listed", "cases")
        return
    spec = model.layer_kinds[0].attention
    request, number = case.requests[0], len(case.requests)
    query, context = int(request["query_len"]), int(request["kv_len"])
    row: dict[str, object] = {
        KERNEL: _name(max(found[0], key=lambda kernel: float(kernel["us"]))),
        "kv_format": model.kv_format,
        "num_seqs": number,
        "num_q_heads": spec.num_q_heads // tp,
        "num_kv_heads": max(1, spec.num_kv_heads // tp),
        "head_dim": spec.head_dim,
        "window": spec.window,
        TIME: US * max(_sum(kernels) for kernels in found) / model.num_layers,
    }
    if _decodes(request):
        intake.take("decode_attention", pd.DataFrame([row | {"kv_tokens": context}]))
        return
    chunk = {"compute_format": "bf16", "num_tokens": query, "context_tokens": context - query}
    intake.take("prefill_attention", pd.DataFrame([row | chunk]))


def _not_alike(case: Case, model: ModelSpec) -> str:
    """Why attention of a case is no point of a table; empty where it is."""
    kinds = {layer.attention for layer in model.layer_kinds}
    first = case.requests[0]
    if len(kinds) > 1 or any(kind.mla for kind in kinds):
        return "of a model with several kinds of attention, or MLA"
    if any(int(request.get("num_draft_tokens", 0)) for request in case.requests):
        return "of drafts being verified"
    if len({_decodes(request) for request in case.requests}) > 1:
        return "of prefills and decodes mixed"
    lengths = ("query_len", "kv_len")
    if any(request[name] != first[name] for request in case.requests for name in lengths):
        return "of unequal requests (--kv-len-jitter 0)"
    return ""


def _decodes(request: Json) -> bool:
    return int(request["query_len"]) == 1 < int(request["kv_len"])


def is_attention(kernel: Json) -> bool:
    """Attention, its split merge, its metadata, or the write of keys and values."""
    return bool(ATTENTION.search(kernel["name"])) and not is_all_reduce(kernel)


def is_all_reduce(kernel: Json) -> bool:
    """A sum over GPUs and nothing else."""
    return bool(ALL_REDUCE.search(kernel["name"])) and not FUSED.search(kernel["name"])


def _all_reduce(case: Case, model: ModelSpec, tp: int, intake: Intake) -> None:
    """One row: the mean of the forward's sums on the rank that waits least."""
    found = [[k for k in kernels if is_all_reduce(k)] for kernels in case.kernels]
    if tp == 1 or not all(found):
        intake.leave("all_reduce", max(map(len, found)), "not on every rank of tp", "kernels")
        return
    calls = [_sum(kernels) / sum(float(k["calls"]) for k in kernels) for kernels in found]
    tokens = int(case.ranks[0].get("num_tokens_after_padding") or case.num_tokens)
    row = {
        KERNEL: _name(found[0][0]),
        "launch": "graph",
        "num_gpus": tp,
        "payload_bytes": ACTIVATION_BYTES * model.hidden_size * tokens,
        TIME: US * min(calls),
    }
    intake.take("all_reduce", pd.DataFrame([row]))


def _others(case: Case, intake: Intake) -> None:
    others = [k for k in case.kernels[0] if not (is_attention(k) or is_all_reduce(k))]
    why = "several shapes under one name, or none of our ops"
    intake.leave("other", len(others), why, "kernels")


def _sum(kernels: Sequence[Json]) -> float:
    return sum(float(kernel["us"]) for kernel in kernels)


def _name(kernel: Json) -> str:
    return LAUNCHER.sub("_", kernel["name"]).strip("_")
