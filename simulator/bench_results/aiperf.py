"""aiperf's profile exports: a summary, and beside it a line a request.

The format of aiperf 0.13.0 (src/aiperf/common/models/export_models.py, docs on profile exports);
older versions hold the load elsewhere in `input_config`. Each statistic states its unit, and that
is what is read. Traps: `inter_token_latency` is a request's mean gap, which is TPOT;
`inter_chunk_latency` pools the gaps between chunks, which are ITL's where each chunk is one token.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simulator.bench_results.result import (
    PERCENTILES,
    BenchResult,
    in_order,
    known,
    number,
    statistics_of,
    text,
    whole,
)
from simulator.errors import ConfigError

SUMMARY, RECORDS = "profile_export_aiperf.json", "profile_export.jsonl"
TAGS = {
    "ttft": "time_to_first_token",
    "tpot": "inter_token_latency",
    "itl": "inter_chunk_latency",
    "e2e": "request_latency",
}
SECONDS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "seconds": 1.0}
SHAPES = {"poisson": 1.0, "constant": math.inf}
Entry = Mapping[str, Any]


def is_summary(document: Entry) -> bool:
    """Whether it is a profile_export_aiperf.json."""
    latency = document.get("request_latency")
    return isinstance(latency, dict) and "unit" in latency


def is_record(document: Entry) -> bool:
    """Whether it is a line of a profile_export.jsonl."""
    return isinstance(document.get("metadata"), dict) and "metrics" in document


def read_summary(path: Path, document: Entry) -> BenchResult:
    """The run of a summary, with the requests of the records beside it."""
    config = document.get("input_config") or {}
    beside = path.with_name(RECORDS)
    records = [json.loads(line) for line in beside.read_text().splitlines()] if _is(beside) else []
    failed = _single(document, "error_request_count", path)
    return BenchResult(
        path=path,
        name=path.stem,
        tool="aiperf",
        tool_version=text(document.get("aiperf_version")),
        model=_model(config),
        completed=_count(_single(document, "request_count", path)),
        # Statistics of nothing are left out of the file: without errors this one is.
        failed=0 if failed is None and document.get("error_summary") == [] else _count(failed),
        duration_s=_seconds(document.get("benchmark_duration"), "avg", path),
        **_load(config, path),
        total_input_tokens=_total(document, "total_isl", "input_sequence_length", path),
        total_output_tokens=_total(document, "total_osl", "output_sequence_length", path),
        output_tokens_per_s=_single(document, "output_token_throughput", path),
        **_requests(_done(records)),
        latencies_s={
            name: found
            for name, tag in TAGS.items()
            if (found := _statistics(document.get(tag), path))
        },
        notes=_notes(document, path),
    )


def read_records(path: Path, records: Sequence[Entry]) -> BenchResult:
    """The run of the records alone, whose statistics are taken here."""
    done = _done(records)
    phase = [r for r in records if _is_measured(r)]
    if not done:
        raise ConfigError(f"{path}: expected at least one completed request (got none)")
    starts = [r["metadata"]["request_start_ns"] for r in done]
    ends = [r["metadata"]["request_end_ns"] for r in done]
    columns = _requests(done)
    total = {name: int(columns[name].sum()) if name in columns else None for name in _LENGTHS}
    return BenchResult(
        path=path,
        name=path.stem,
        tool="aiperf",
        completed=len(done),
        failed=len(phase) - len(done),
        duration_s=(max(ends) - min(starts)) / 1e9,
        total_input_tokens=total["input_tokens"],
        total_output_tokens=total["output_tokens"],
        **columns,
        latencies_s={
            name: found
            for name, tag in TAGS.items()
            if (found := statistics_of(np.array(_values_s(done, tag, path))))
        },
    )


def _is(path: Path) -> bool:
    return path.is_file()


def _model(config: Entry) -> str | None:
    """Of 0.13, and of 0.1 to 0.5."""
    items = (config.get("models") or {}).get("items") or [{}]
    names = (config.get("endpoint") or {}).get("model_names") or [None]
    return text(items[0].get("name")) or text(names[0])


def _load(config: Entry, path: Path) -> dict[str, Any]:
    phases = [p for p in config.get("phases") or () if p.get("kind", "profiling") == "profiling"]
    if len(phases) > 1:
        raise ConfigError(f"{path}: phases: expected one that is measured (got {len(phases)})")
    if phases:
        phase = phases[0]
        kind, rate = str(phase.get("type")), number(phase, "rate", path)
    else:  # versions before 0.6
        phase = config.get("loadgen") or {}
        rate = number(phase, "request_rate", path)
        kind = str(phase.get("request_rate_mode") or "poisson") if rate else "concurrency"
    if "fixed_schedule" in kind:
        return {"is_replay": True}
    limit = whole(phase, "concurrency", path)
    if rate is None:
        return {"request_rate_per_s": math.inf if limit else None, "max_concurrency": limit}
    shape = number(phase, "smoothness", path) or 1.0
    return {
        "request_rate_per_s": rate,
        "burstiness": SHAPES.get(kind, shape),
        "max_concurrency": limit,
    }


def _entry(value: object, path: Path) -> Entry:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: expected a statistic with its unit (got {value!r})")
    return value


def _single(document: Entry, tag: str, path: Path) -> float | None:
    return number(_entry(document.get(tag), path), "avg", path)


def _count(value: float | None) -> int | None:
    return None if value is None else round(value)


def _total(document: Entry, tag: str, each: str, path: Path) -> int | None:
    stated = _single(document, tag, path)
    return _count(
        number(_entry(document.get(each), path), "sum", path) if stated is None else stated
    )


def _scale(entry: Entry, path: Path) -> float:
    unit = entry.get("unit")
    if unit not in SECONDS:
        raise ConfigError(f"{path}: unit: expected one of {', '.join(SECONDS)} (got {unit!r})")
    return SECONDS[str(unit)]


def _seconds(value: object, key: str, path: Path) -> float | None:
    entry = _entry(value, path)
    found = number(entry, key, path)
    return None if found is None else found * _scale(entry, path)


def _statistics(value: object, path: Path) -> dict[str, float]:
    entry = _entry(value, path)
    stated = {f"p{percent}": number(entry, f"p{percent}", path) for percent in PERCENTILES}
    return (
        known({"mean": number(entry, "avg", path)} | stated, _scale(entry, path)) if entry else {}
    )


def _is_measured(record: Entry) -> bool:
    return bool(record["metadata"].get("benchmark_phase", "profiling") == "profiling")


def _done(records: Sequence[Entry]) -> list[Entry]:
    """Those that were answered, of the phase that is measured."""
    return [r for r in records if _is_measured(r) and not r.get("error") and r.get("metrics")]


_LENGTHS = {"input_tokens": "input_sequence_length", "output_tokens": "output_sequence_length"}


def _requests(done: Sequence[Entry]) -> dict[str, Any]:
    if not done or not all(tag in r["metrics"] for r in done for tag in _LENGTHS.values()):
        return {}
    columns: dict[str, list[Any]] = {
        name: [int(r["metrics"][tag]["value"]) for r in done] for name, tag in _LENGTHS.items()
    }
    columns["sent_s"] = [r["metadata"]["request_start_ns"] / 1e9 for r in done]
    return in_order(columns)


def _values_s(done: Sequence[Entry], tag: str, path: Path) -> list[float]:
    """Of every request, or of every gap."""
    found: list[float] = []
    for record in done:
        entry = record["metrics"].get(tag)
        if entry:
            value = entry["value"]
            scale = _scale(entry, path)
            found += [v * scale for v in (value if isinstance(value, list) else [value])]
    return found


def _notes(document: Entry, path: Path) -> tuple[str, ...]:
    """Where the client's tokenizer counts otherwise than the server."""
    mine = _total(document, "total_osl", "output_sequence_length", path)
    theirs = _single(document, "total_usage_completion_tokens", path)
    if not mine or not theirs or abs(mine / theirs - 1) < 0.02:
        return ()
    return (f"the client counts {mine} output tokens, the server {theirs:.0f}",)
