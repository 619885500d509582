"""Results on disk: the JSON of `vllm bench serve` and one table of requests.

Files appear whole or not at all: they are written beside their place and renamed into it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path

import numpy as np

from simulator.errors import ConfigError
from simulator.experiment import Experiment
from simulator.frames import STATUS_NAMES, request_frame
from simulator.itl import token_log, token_times
from simulator.latency import request_times
from simulator.recorder import COMPLETED, Result
from simulator.request import RequestTable

BACKEND = "headway"
EPOCH = "19700101-000000"  # of the simulated clock: results carry no wall-clock time of their own


def save_result(
    path: str | Path,
    experiment: Experiment,
    result: Result,
    summary: Mapping[str, object],
    detailed: bool,
    metadata: Mapping[str, object] | None = None,
) -> None:
    """Write what `vllm bench serve --save-result` does (0.33), and metrics of our own.

    `metadata` overrides or extends the header: a date, the configured request_rate and burstiness
    (the run itself knows only its arrivals). `latencies` and `queue_times` have an entry a request,
    as there; `detailed` adds the other arrays, with an entry a token in `itls`: O(tokens).

    Raises:
        ConfigError: the suffix is not .json, or the file cannot be written.
    """
    header = {**_header(experiment), **(metadata or {})}
    document = {**header, **_measured(summary), **_arrays(result, detailed)}

    def write(place: Path) -> None:
        with place.open("w", encoding="utf-8") as file:
            json.dump(document, file, allow_nan=False)
            file.write("\n")

    _write(path, {".json": write})


def save_requests(path: str | Path, result: Result) -> None:
    """Write `request_frame` as CSV or Parquet, by suffix.

    Raises:
        ConfigError: another suffix, or the file cannot be written.
    """
    _write(
        path,
        {
            ".csv": lambda place: request_frame(result).to_csv(place, index=False),
            ".parquet": lambda place: request_frame(result).to_parquet(place, index=False),
        },
    )


def save_text(path: str | Path, text: str) -> None:
    """Write a text.

    Raises:
        ConfigError: the file cannot be written.
    """
    target = Path(path)
    _write(target, {target.suffix: lambda place: place.write_text(text, encoding="utf-8")})


def check_writable(path: str | Path, suffixes: tuple[str, ...]) -> None:
    """Raise ConfigError unless a file of one of `suffixes` can be written: before a long run."""
    with replacing(path, suffixes) as place:
        place.touch()
        place.unlink()


def _write(path: str | Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    with replacing(path, tuple(writers)) as place:
        writers[place.suffix](place)


def _target(path: str | Path, suffixes: tuple[str, ...]) -> Path:
    target = Path(path)
    if target.suffix not in suffixes:
        raise ConfigError(f"{target}: expected a file name ending in {' or '.join(suffixes)}")
    return target


@contextmanager
def replacing(path: str | Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """A temporary place beside `path` that becomes it, if it still exists, on success.

    Raises:
        ConfigError: another suffix, or the file cannot be written.
    """
    target = _target(path, suffixes)
    place = target.with_name(f".{target.stem}.{os.getpid()}.partial{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise ConfigError(f"{target}: cannot be written (it is a folder)")
        try:
            yield place
            if place.exists():
                place.replace(target)
        finally:
            place.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{target}: cannot be written ({error.strerror or error})") from error


def _header(experiment: Experiment) -> dict[str, object]:
    table = experiment.workload
    return {
        "date": EPOCH,
        "endpoint_type": BACKEND,
        "backend": BACKEND,
        "label": experiment.name,
        "model_id": experiment.model.name,
        "tokenizer_id": None,
        "num_prompts": len(table),
        "request_rate": _request_rate(table),
        "burstiness": 1.0,  # the default there, also where a trace is replayed
        "max_concurrency": table.max_concurrency or None,
    }


def _measured(summary: Mapping[str, object]) -> dict[str, object]:
    """The summary; a latency of nothing is 0 there, not null."""
    return {k: 0.0 if v is None and k.endswith("_ms") else v for k, v in summary.items()}


def _request_rate(table: RequestTable) -> float | str:
    """Mean rate of the arrivals; "inf" where all arrive at once, as vllm bench serve writes it."""
    return (len(table) - 1) / table.duration_s if table.duration_s > 0 else "inf"


def _arrays(result: Result, detailed: bool) -> dict[str, list[object]]:
    """Entries a request, seconds; 0 where it did not complete."""
    table, log = result.table, token_log(result)
    times, done = request_times(result, log), result.completed
    rows = (result.samples or result).table
    itls = [(np.diff(ns) / 1e9).tolist() for ns in token_times(log, len(rows))]
    if table.num_samples is not None:  # of all answers to a request, one after the other
        each = iter(itls)
        itls = [list(chain(*islice(each, n))) for n in table.num_samples.tolist()]

    def seconds(values: np.typing.NDArray[np.float64]) -> list[object]:
        return [*np.where(done & ~np.isnan(values), values, 0.0).tolist()]

    always = {"latencies": seconds(times.e2e_s), "queue_times": seconds(times.client_queue_s)}
    if not detailed:
        return always
    return always | {
        "input_lens": [*table.prompt_tokens.tolist()],
        "output_lens": [*np.where(done, table.answer_tokens, 0).tolist()],
        "ttfts": seconds(times.ttft_s),
        "itls": itls,
        "start_times": [*np.where(result.sent_ns >= 0, result.sent_ns / 1e9, 0.0).tolist()],
        "generated_texts": [""] * len(table),
        "errors": ["" if x == COMPLETED else STATUS_NAMES[x] for x in result.status.tolist()],
    }
