"""Result files of the field's load generators, read into one form: `read_bench`.

`vllm bench serve` and SGLang's `bench_serving` (a JSON object a run), guidellm's benchmarks.json
and aiperf's profile exports are told apart by what is in them. A `BenchResult` holds what the file
states, in seconds; what it does not state is None, never a guess.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from simulator.bench_results import aiperf, flat, guidellm
from simulator.bench_results.result import LATENCIES, STATISTICS, BenchResult
from simulator.errors import ConfigError

__all__ = ["LATENCIES", "STATISTICS", "BenchResult", "read_bench", "read_benches"]

IN_A_FOLDER = (aiperf.SUMMARY, aiperf.RECORDS, guidellm.FILE)
KNOWN = (
    "a result of `vllm bench serve`, SGLang's bench_serving, guidellm (benchmarks.json) or aiperf "
    f"({aiperf.SUMMARY}, {aiperf.RECORDS})"
)


def read_bench(path: str | Path) -> BenchResult:
    """The one run of a result file, or of the folder a tool wrote.

    Raises:
        ConfigError: not a result, a value that cannot be used, or several runs in one file.
    """
    found = read_benches(path)
    if len(found) > 1:
        names = ", ".join(result.name for result in found[:4])
        raise ConfigError(f"{path}: expected one run (got {len(found)}: {names}, ...)")
    return found[0]


def read_benches(path: str | Path) -> list[BenchResult]:
    """Every run of a result file: SGLang appends them, guidellm sweeps.

    Raises:
        ConfigError: not a result, or a value that cannot be used.
    """
    file = _file_of(Path(path))
    documents = _documents(file)
    first = documents[0]
    try:
        if isinstance(first.get("benchmarks"), list):
            found = guidellm.read(file, first)
        elif aiperf.is_summary(first):
            found = [aiperf.read_summary(file, first)]
        elif aiperf.is_record(first):
            found = [aiperf.read_records(file, documents)]
        elif flat.is_result(first):
            found = [flat.read(file, number, document) for number, document in enumerate(documents)]
        else:
            raise ConfigError(f"{file}: expected {KNOWN} (got keys {_some(first)})")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{file}: {type(error).__name__}: {error}") from None
    if not found:
        raise ConfigError(f"{file}: expected at least one run (got none)")
    return _named(file, found)


def _file_of(path: Path) -> Path:
    if not path.is_dir():
        return path
    for name in IN_A_FOLDER:
        if (path / name).exists():
            return path / name
    raise ConfigError(f"{path}: expected a folder with {' or '.join(IN_A_FOLDER)}")


def _documents(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file: one, a list (of `vllm bench sweep`), or one a line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not a text file (UTF-8)") from None
    try:
        read = json.loads(text)
        found = read if isinstance(read, list) and read else [read]
    except RecursionError:
        raise ConfigError(f"{path}: not valid JSON (nested too deeply)") from None
    except ValueError as whole:
        lines = [(n, line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
        if len(lines) < 2:
            raise ConfigError(f"{path}: not valid JSON ({whole})") from None
        found = [_line(path, number, line) for number, line in lines]
    if not all(isinstance(one, dict) for one in found):
        raise ConfigError(f"{path}: expected {KNOWN} (got no JSON object)")
    return found


def _line(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ConfigError(f"{path}: line {number}: not valid JSON ({error})") from None


def _named(path: Path, found: list[BenchResult]) -> list[BenchResult]:
    """Runs of one file are told apart by their numbers, from 1."""
    stem = path.parent.name if path.name in IN_A_FOLDER and path.parent.name else path.stem
    if len(found) == 1:
        return [replace(found[0], name=stem)]
    return [replace(one, name=f"{stem}-{number}") for number, one in enumerate(found, 1)]


def _some(document: dict[str, Any]) -> str:
    return ", ".join(list(document)[:5]) or "none"
