"""`python -m calibration profile | engine-check`: measure on the GPU of this machine.

Needs torch, triton, numpy and this repository; every other command of calibration is `headway
calibrate ...`, which needs no GPU. Rows are written a point (or a run) at a time: a command that is
killed loses one, and the next with the same --out goes on from there.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import json
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calibration.columns import SCHEMAS
from calibration.engine import command as engine_check
from calibration.measure import Cell, CudaTimer, Maker, Rejected, Timer, measure, torch_module
from calibration.profile import kernels, maker
from calibration.provenance import as_yaml, headway_version
from calibration.suites import SUITES, Point, grid, grid_digest, tune_grid
from calibration.system import CATALOGUE, Device, ceilings, probe

REJECTED = "rejected"
NO_GPU, LOST = 2, 3  # exit codes


class DeviceLost(Exception):
    """A kernel broke the device's context; only a new process can go on."""


@dataclass
class Store:
    """The folder of a run: `<table>.csv`, appended to, and `rejected.csv`."""

    folder: Path
    finished: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(self.folder.glob("*.csv")):
            self.finished |= {row["point"] for row in self._rows(path)}

    def tables(self) -> list[str]:
        """Names of the tables that have rows."""
        return sorted(path.stem for path in self.folder.glob("*.csv") if path.stem != REJECTED)

    def rows(self, table: str) -> list[dict[str, str]]:
        """Every row of a table."""
        path = self.folder / f"{table}.csv"
        return self._rows(path) if path.exists() else []

    def append(self, point: Point, rows: list[dict[str, Cell]], refused: list[Rejected]) -> None:
        """Write all of one point at once; it counts as finished from here on."""
        self._write(point.table, rows)
        self._write(REJECTED, [
            {"op": point.table, "kernel": r.kernel, "reason": r.reason, "point": point.key}
            for r in refused
        ])  # fmt: skip
        self.finished.add(point.key)

    def _write(self, table: str, rows: list[dict[str, Cell]]) -> None:
        if not rows:
            return
        path, text = self.folder / f"{table}.csv", io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        if path.exists() and path.stat().st_size:
            with path.open(encoding="utf-8") as file:
                header = next(csv.reader(file))
            if header != list(rows[0]):
                raise ValueError(f"{path}: its columns are {header}, not {list(rows[0])}")
        else:
            writer.writeheader()
        writer.writerows(rows)
        with path.open("a", encoding="utf-8") as file:
            file.write(text.getvalue())

    @staticmethod
    def _rows(path: Path) -> list[dict[str, str]]:
        """Complete lines only; what a killed run left of its last one is cut off."""
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) != len(data):
            path.write_bytes(whole)
        return list(csv.DictReader(io.StringIO(whole.decode())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run did: points measured now, rows, refusals, points beyond the budget."""

    points: int = 0
    rows: int = 0
    rejected: int = 0
    left: int = 0


def run(
    points: Sequence[Point], make: Maker, timer: Timer, store: Store, *, budget_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Summary:  # fmt: skip
    """Measure the points that the store lacks, in order, until the budget is spent.

    Raises:
        DeviceLost: a kernel broke the context; its point is rejected, the rest remains to be done.
    """
    start, num_rows, num_rejected = clock(), 0, 0
    todo = [point for point in points if point.key not in store.finished]
    for done, point in enumerate(todo):
        if clock() - start >= budget_s:
            return Summary(points=done, rows=num_rows, rejected=num_rejected, left=len(todo) - done)
        rows, refused = measure(point, make, timer)
        store.append(point, rows, refused)
        num_rows, num_rejected = num_rows + len(rows), num_rejected + len(refused)
        if refused and not timer.usable():
            raise DeviceLost(f"{point.key}: {refused[-1].kernel}: {refused[-1].reason}")
    return Summary(points=len(todo), rows=num_rows, rejected=num_rejected)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; the exit code."""
    options = _parser().parse_args(arguments)
    if options.command == engine_check.NAME:
        return engine_check.run(options)
    tuning = tune_grid() if options.tune else []
    points = [*tuning, *ceilings(options.suite), *grid(options.suite)]
    if options.list:
        print(listing(points))
        return 0
    if options.out is None:
        print("profile: --out DIR is needed (or --list)", file=sys.stderr)
        return NO_GPU
    return _profile(points, options.suite, options.out, options.budget_s, tune=options.tune)


def listing(points: Sequence[Point]) -> str:
    """Points a table, in the order in which tables begin."""
    counts = Counter(point.table for point in points)
    return "\n".join(f"{n:6} {table}" for table, n in [*counts.items(), ("total", len(points))])


def write_meta(store: Store, device: Device, suite: str, points: Sequence[Point]) -> Path:
    """meta.yaml: the keys that `calibration.tables` asks for, then everything else known."""
    tables: dict[str, Any] = {}
    others: dict[str, int] = {}
    for table in store.tables():
        rows = store.rows(table)
        if table in SCHEMAS:
            tables[table] = {"rows": len(rows), "grid_hash": grid_hash(table, rows)}
        else:
            others[table] = len(rows)
    meta = {
        "gpu": CATALOGUE.get(device.name, device.name),
        "engine": "headway",
        "version": headway_version(),
        "source": f"python -m calibration profile --suite {suite}, on the GPU itself",
        "licence": "Apache-2.0",
        "date": datetime.now(UTC).date().isoformat(),
        "tables": tables,
        "refused": _refused(store),
        "other_tables": others,
        "suite": suite,
        "suite_hash": grid_digest(points),
        "suite_points": len(points),
        "finished_points": len(store.finished & {p.key for p in points}),
        "device": asdict(device),
        "python": platform.python_version(),
    }
    path = store.folder / "meta.yaml"
    path.write_text(as_yaml(meta), encoding="utf-8")
    return path


def grid_hash(table: str, rows: Sequence[Mapping[str, str]]) -> str:
    """Of the measured points, as `calibration.tables` computes it from its frame."""
    schema = SCHEMAS[table]
    keys = sorted(
        (*(row[k] for k in schema.labels), *(int(row[k]) for k in schema.sizes)) for row in rows
    )
    lines = [",".join(map(str, key)) + "\n" for key in [schema.key, *keys]]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def _refused(store: Store) -> dict[str, str]:
    counts: dict[str, list[str]] = {}
    for row in store.rows(REJECTED):
        counts.setdefault(f"{row['op']} {row['kernel']}", []).append(row["reason"])
    return {name: f"{len(why)} points, first: {why[0]}" for name, why in counts.items()}


def write_tiles(store: Store, chip: int) -> Path:
    """tiles_<chip>_measured.json: every configuration's time at every tuned shape, fastest
    first. Facts only: nothing is written into the kernels' tables."""
    found: dict[str, dict[str, list[tuple[str, float]]]] = {}
    for table in (t for t in store.tables() if t.startswith("tune_")):
        shapes = found.setdefault(table.removeprefix("tune_"), {})
        for row in store.rows(table):
            times = shapes.setdefault(row["point"], [])
            times.append((row["kernel"], float(row["time_s"])))
    ordered = {
        op: {
            point: [{"config": c, "time_s": t} for c, t in sorted(times, key=lambda x: x[1])]
            for point, times in shapes.items()
        }
        for op, shapes in found.items()
    }
    path = store.folder / f"tiles_{chip}_measured.json"
    path.write_text(json.dumps(ordered, indent=1) + "\n", encoding="utf-8")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m calibration", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    profile = commands.add_parser("profile", help="measure kernels on this machine's GPU")
    profile.add_argument("--suite", choices=SUITES, default="core")
    profile.add_argument("--budget-s", type=float, default=480.0, help="stop after this long")
    profile.add_argument("--out", type=Path, help="folder of tables; an earlier run goes on")
    profile.add_argument("--list", action="store_true", help="count the points and stop")
    profile.add_argument("--tune", action="store_true", help="first, every tile configuration")
    engine_check.add_parser(commands)
    return parser


def _profile(points: list[Point], suite: str, out: Path, budget_s: float, *, tune: bool) -> int:
    try:
        device = probe()
        kernels("cases")
    except (RuntimeError, ImportError) as error:
        print(f"profile: {error}", file=sys.stderr)
        return NO_GPU
    store = Store(out)
    gpu = torch_module().device("cuda", torch_module().cuda.current_device())
    timer = CudaTimer(device.l2_bytes)
    make = maker(gpu, device.l2_bytes)
    try:
        done = run(points, make, timer, store, budget_s=budget_s)
    except DeviceLost as error:
        print(f"profile: the device was lost at {error}; run again to go on", file=sys.stderr)
        return LOST
    finally:
        write_meta(store, device, suite, points)
        if tune:
            write_tiles(store, device.capability)
    print(
        f"{device.name}: {done.points} points, {done.rows} rows, {done.rejected} rejected, "
        f"{done.left} left, in {out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
