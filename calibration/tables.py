"""Tables on disk: `<op>.csv.gz` and `meta.yaml` in one folder, checked as they are read.

Everything that could make a fit silently wrong is refused here with one line: a file cut short,
NaN, points measured twice, times that are not seconds, another GPU's table, missing provenance.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from calibration.columns import KERNEL, OPS, SCHEMAS, TIME
from simulator.errors import ConfigError, unknown_name

META = "meta.yaml"
PROVENANCE = ("gpu", "engine", "version", "source", "licence", "date")
SHORTEST_S, LONGEST_S = 5e-7, 60.0  # of one call
FLOOR_S = 500e-6  # no op's fastest point takes this long: its unit would be wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Tables:
    """Measurements of one GPU under one engine, with where they come from."""

    provenance: Mapping[str, str]
    ops: Mapping[str, pd.DataFrame]
    refused: Mapping[str, str] = field(default_factory=dict)  # what was left out, and why

    @property
    def gpu(self) -> str:
        return self.provenance["gpu"]


def grid_hash(op: str, table: pd.DataFrame) -> str:
    """Of the measured points, whatever their order and times."""
    keys = list(SCHEMAS[op].key)
    text = table[keys].sort_values(keys).to_csv(index=False, lineterminator="\n")
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def write_tables(tables: Tables, folder: Path) -> list[Path]:
    """Write every table and meta.yaml; the paths, in order."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, shapes = [], {}
    for op, table in tables.ops.items():
        schema = SCHEMAS[op]
        ordered = table.sort_values([*schema.key, KERNEL])[list(schema.columns)]
        path = folder / f"{op}.csv.gz"
        text = ordered.to_csv(index=False, float_format="%.6g", lineterminator="\n")
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
        paths.append(path)
        shapes[op] = {"rows": len(ordered), "grid_hash": grid_hash(op, ordered)}
    meta = {**tables.provenance, "tables": shapes, "refused": dict(tables.refused)}
    text = yaml.safe_dump(meta, sort_keys=False, allow_unicode=True, width=100)
    (folder / META).write_text(text, encoding="utf-8")
    return [*paths, folder / META]


def read_tables(folder: Path, *, gpu: str = "") -> Tables:
    """Every table of a folder.

    Raises:
        ConfigError: missing or wrong file, provenance or value; `gpu` is not the folder's.
    """
    meta = read_meta(folder)
    if gpu and meta["gpu"] != gpu:
        raise ConfigError(f"{folder / META}: gpu: expected {gpu} (got {meta['gpu']})")
    ops = {}
    for op, stated in meta["tables"].items():
        if op not in SCHEMAS:
            raise unknown_name(f"op in {folder / META}", str(op), OPS)
        path = next(
            (p for p in (folder / f"{op}.csv", folder / f"{op}.csv.gz") if p.exists()), None
        )
        if path is None:
            raise ConfigError(f"{folder / META}: tables.{op}: {op}.csv.gz does not exist")
        ops[op] = check_table(op, read_cells(path), str(path), stated)
    return Tables(
        provenance={key: str(meta[key]) for key in PROVENANCE},
        ops=ops,
        refused={str(k): str(v) for k, v in (meta.get("refused") or {}).items()},
    )


def read_meta(folder: Path) -> dict[str, Any]:
    """meta.yaml with every key of `PROVENANCE`, and `tables`."""
    path = folder / META
    try:
        meta = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{folder}: no {META}: tables without provenance are not used") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    if not isinstance(meta, dict):
        raise ConfigError(f"{path}: expected a mapping (got {type(meta).__name__})")
    for key in PROVENANCE:
        if not meta.get(key):
            raise ConfigError(f"{path}: {key}: missing provenance")
    if not isinstance(meta.get("tables"), dict) or not meta["tables"]:
        raise ConfigError(f"{path}: tables: expected a mapping of ops (got {meta.get('tables')!r})")
    return meta


def read_cells(path: Path) -> pd.DataFrame:
    """Every cell of a CSV file as text.

    Raises:
        ConfigError: the file cannot be read, or is not CSV.
    """
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ConfigError(f"{path}: cut short or not gzip ({error})") from None
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise ConfigError(f"{path}: not a CSV table ({' '.join(str(error).split())})") from None


def check_table(op: str, raw: pd.DataFrame, name: str, stated: object = None) -> pd.DataFrame:
    """Text cells as a table of the op's columns; `stated` is its entry of meta.yaml.

    Raises:
        ConfigError: see the module.
    """
    schema = SCHEMAS[op]
    for column in schema.columns:
        if column not in raw.columns:
            raise ConfigError(
                f"{name}: no column '{column}' (expected {', '.join(schema.columns)}; "
                f"got {', '.join(map(str, raw.columns))})"
            )
    table = pd.DataFrame({column: raw[column] for column in (KERNEL, *schema.labels)})
    for column in (*schema.sizes, TIME):
        table[column] = numbers(raw[column], column, name, whole=column != TIME)
    _check_times(table[TIME].to_numpy(), name)
    _check_rows(op, table, name, stated)
    return table


def numbers(
    cells: pd.Series[Any], column: str, name: str, *, whole: bool, unit: str = "seconds"
) -> pd.Series[Any]:
    """Text cells as whole numbers, or as finite ones, none negative; their index is the row.

    Raises:
        ConfigError: the line of the first cell that is neither.
    """
    values = pd.to_numeric(cells, errors="coerce")
    array = values.to_numpy(dtype=np.float64)
    wrong = ~np.isfinite(array) | (array < 0)
    if whole:
        wrong |= array != np.floor(array)
    if wrong.any():
        row = int(np.argmax(wrong))
        what = "a whole number >= 0" if whole else f"{unit} > 0"
        cut = ": file cut short?" if row == len(array) - 1 and not str(cells.iloc[row]) else ""
        got = str(cells.iloc[row]) or "nothing"
        line = int(cells.index[row]) + 2
        raise ConfigError(f"{name}: line {line}: {column}: expected {what} (got {got}){cut}")
    return values.astype(np.int64 if whole else np.float64)


def _check_times(times: np.ndarray[Any, np.dtype[np.float64]], name: str) -> None:
    if not len(times):
        raise ConfigError(f"{name}: no rows")
    wrong = (times < SHORTEST_S) | (times > LONGEST_S)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ConfigError(
            f"{name}: line {row + 2}: {TIME}: no kernel takes {times[row]:.3g} s: expected seconds"
        )
    if times.min() > FLOOR_S and len(times) > 1:
        raise ConfigError(
            f"{name}: {TIME}: the fastest of {len(times)} points takes {times.min():.3g} s: "
            "expected seconds, are these milliseconds?"
        )


def _check_rows(op: str, table: pd.DataFrame, name: str, stated: object) -> None:
    schema = SCHEMAS[op]
    twice = table.duplicated([KERNEL, *schema.key])
    if twice.any():
        row = int(np.argmax(twice.to_numpy()))
        point = ", ".join(f"{key}={table[key].iloc[row]}" for key in schema.key)
        raise ConfigError(f"{name}: line {row + 2}: measured twice: {point}")
    if not isinstance(stated, Mapping):
        return
    rows = stated.get("rows")
    if rows is not None and rows != len(table):
        raise ConfigError(f"{name}: expected {rows} rows, as in {META} (got {len(table)})")
    if stated.get("grid_hash") not in (None, grid_hash(op, table)):
        raise ConfigError(f"{name}: its points are not those of {META} (grid_hash differs)")
