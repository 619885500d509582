"""Which format a trace file has, by its header or first lines."""

from __future__ import annotations

import json
from pathlib import Path

from simulator.errors import ConfigError
from simulator.workloads.bundled import resolve
from simulator.workloads.checks import shown
from simulator.workloads.reading import decode_lines, read_bytes
from simulator.workloads.table import is_parquet

_HEAD_BYTES = 1 << 18
# Kind and the columns that give it away, most specific first; lower case.
_HEADERS: tuple[tuple[str, frozenset[str]], ...] = (
    ("azure", frozenset({"timestamp", "contexttokens", "generatedtokens"})),
    ("burstgpt", frozenset({"timestamp", "model", "request tokens", "response tokens"})),
    ("servegen", frozenset({"client", "window_start_s", "rate_rps", "family", "shape"})),
    ("table", frozenset({"arrival_s", "input_tokens", "output_tokens"})),
    ("lengths", frozenset({"input_tokens", "output_tokens"})),
)
_RECORD = frozenset({"timestamp", "input_length", "output_length"})
KNOWN_FORMATS = (
    "known formats, plain or gzip: "
    "azure (CSV TIMESTAMP,ContextTokens,GeneratedTokens), "
    "burstgpt (CSV Timestamp,Model,Request tokens,Response tokens,...), "
    "table (CSV or Parquet arrival_s,input_tokens,output_tokens"
    "[,client,session,priority,hash_ids]), "
    "lengths (CSV input_tokens,output_tokens,...), "
    "servegen (CSV client,window_start_s,rate_rps,cv,family,shape,scale_s), "
    "mooncake and timed_trace (JSON lines timestamp,input_length,output_length,hash_ids)"
)


def detect(path: str | Path) -> str:
    """Workload kind of a trace file or of a bundled workload's name.

    Raises:
        ConfigError: not a file that can be read, or no known format.
    """
    file = resolve(path)
    if file.is_file() and is_parquet(file):
        return "table"
    data = read_bytes(file, _HEAD_BYTES)
    if len(data) == _HEAD_BYTES:  # the cut may fall inside a line, even inside a character
        data = data[: data.rfind(b"\n") + 1] or data
    lines = [line for line in decode_lines(file, data) if line.strip()]
    if lines[0].lstrip().startswith("{"):
        return _detect_json(file, lines)
    columns = {cell.strip().strip('"').lower() for cell in lines[0].split(",")}
    for kind, header in _HEADERS:
        if header <= columns:
            return kind
    raise ConfigError(
        f"{file.name}: unknown trace format (first line {shown(lines[0])}); {KNOWN_FORMATS}"
    )


def _detect_json(file: Path, lines: list[str]) -> str:
    """Mooncake and timed_trace share their keys; the tokens behind each hash id tell them apart."""
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(record, dict) or not record.keys() >= _RECORD:
            continue
        ids, tokens = record.get("hash_ids"), record["input_length"]
        if not isinstance(ids, list) or not isinstance(tokens, int):
            continue
        fits = [
            kind
            for kind, size in (("mooncake", 512), ("timed_trace", 16))
            if len(ids) == -(-tokens // size)
        ]
        if len(fits) == 1:
            return fits[0]
    if any(all(f'"{key}"' in line for key in _RECORD) for line in lines):
        raise ConfigError(
            f"{file.name}: could be mooncake (timestamps in ms) or timed_trace (in s), and no "
            "hash_ids tell which; say kind: mooncake or kind: timed_trace in the workload"
        )
    raise ConfigError(
        f"{file.name}: unknown trace format (first line {shown(lines[0])}); {KNOWN_FORMATS}"
    )
