"""Who may import whom. Every import counts: at the top, inside a function, under TYPE_CHECKING.

A module or package of `simulator` belongs to one layer and imports its own layer or lower ones,
never in a circle. A new one gets a line in `LAYERS`.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

LAYERS: tuple[set[str], ...] = (
    # 0: nothing but the standard library
    {"errors", "units"},
    # 1: what things are
    {"spec", "request"},
    # 2: arithmetic on them, and the books of a run
    {
        "batch",
        "draft",
        "graphs",
        "memory",
        "params",
        "placement",
        "ragged",
        "recorder",
        "samples",
        "sharding",
        "sharing",
        "work",
    },
    # 3: policies and inputs
    {"allocators", "costs", "routers", "schedulers", "speculation", "workloads"}
    | {"catalog", "defaults", "gpu_file", "hf_config", "huggingface", "profiles"},
    # 4: the loop
    {
        "chunks",
        "clashes",
        "cluster",
        "collect",
        "copying",
        "drafting",
        "experiment",
        "fleet",
        "forking",
    }
    | {"forking", "host_copies", "kv_link", "lane", "lanes", "lockstep", "migration", "offload"}
    | {"rank", "replica", "setup", "speculating", "switching", "typed_lane"},
    # 5: one run
    {"engine"},
    # 6: around a run
    {
        *(
            "bench_results",
            "disaggregated",
            "energy",
            "fragmentation",
            "frames",
            "itl",
            "latency",
            "metrics",
        ),
        *(
            "live",
            "occupancy",
            "openmetrics",
            "save",
            "segments",
            "utilisation",
            "config",
            "papers",
            "report",
        ),
        *("search", "serve", "timeline", "uncertainty", "validation"),
        "comparison",
    },
    # 7: the command line
    {"cli", "commands", "__main__"},
)
POLICIES = {
    "allocators",
    "costs",
    "routers",
    "schedulers",
    "speculation",
    "workloads",
}  # not each other
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}

# Third-party libraries, and where in `simulator` each may be imported.
SIMPY = {"cluster", "engine", "live", "replica"}
AROUND_A_RUN = LAYERS[6] | LAYERS[7]
ALLOWED: dict[str, set[str]] = {
    "numpy": set(LAYER) - LAYERS[0],
    "simpy": SIMPY,
    "yaml": {"config", "gpu_file", "papers", "profiles", "search", "validation", "workloads"},
    "pyarrow": {"workloads", *AROUND_A_RUN},  # traces are read by its CSV reader, runs are not
    "scipy": {"costs", "workloads", *AROUND_A_RUN},
    "pandas": AROUND_A_RUN,
    "pydantic": {"config", "serve"},
    "starlette": {"serve"},
    "prometheus_client": {"serve"},
    "uvicorn": {"serve"},
    "matplotlib": {"report"},
    "plotly": {"report"},
    "rich": {"cli", "commands", "report"},
    "typer": {"cli", "commands"},
    "ray": {"search"},
}
# Importing layer, imported layer: the reason an exception is right.
EXCEPTIONS: dict[tuple[str, str], str] = {}


def modules(package: str) -> list[Path]:
    """Source files of a top-level package, in order."""
    return sorted((ROOT / package).rglob("*.py"))


def dotted(path: Path) -> str:
    """Dotted name of a source file; of a package, that of its __init__."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit(name: str) -> str:
    """The part of `simulator` a dotted name belongs to: `simulator.costs.ops` is in `costs`."""
    return name.split(".")[1] if "." in name else ""


@cache
def imports(path: Path) -> frozenset[str]:
    """Dotted names a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert 0 == node.level, f"{path}:{node.lineno}: relative import"
            module = node.module or ""
            # `from package import module` imports the module.
            for alias in node.names:
                child = f"{module}.{alias.name}"
                is_module = (ROOT / child.replace(".", "/")).with_suffix(".py").exists()
                is_package = (ROOT / child.replace(".", "/") / "__init__.py").exists()
                found.add(child if is_module or is_package else module)
    return frozenset(found)


def of_simulator(path: Path) -> set[str]:
    """Dotted names inside `simulator` that a file imports."""
    return {name for name in imports(path) if name.startswith("simulator.")}


def test_every_module_has_one_layer() -> None:
    found = {unit(dotted(path)) for path in modules("simulator")} - {""}
    assert set() == found - LAYER.keys(), "give them a line in LAYERS"
    assert set() == LAYER.keys() - found, "gone from the tree: take them out of LAYERS"
    assert [] == [name for name, num in Counter(n for s in LAYERS for n in s).items() if num > 1]


@pytest.mark.parametrize("path", modules("simulator"), ids=dotted)
def test_imports_point_down(path: Path) -> None:
    importer = unit(dotted(path))
    imported = {unit(name) for name in of_simulator(path)} - {importer}
    too_high = {
        name
        for name in imported
        if LAYER.get(name, -1) > LAYER.get(importer, len(LAYERS))
        and (importer, name) not in EXCEPTIONS
    }
    assert set() == too_high
    if importer in POLICIES:
        assert set() == imported & POLICIES, "policies do not import each other"


def test_no_circle_of_imports() -> None:
    graph = {dotted(path): of_simulator(path) for path in modules("simulator")}
    TopologicalSorter(graph).prepare()  # raises CycleError, which shows the circle


@pytest.mark.parametrize("path", modules("simulator"), ids=dotted)
def test_libraries_stay_where_they_belong(path: Path) -> None:
    importer = unit(dotted(path))
    outside = {name.split(".")[0] for name in imports(path)}
    outside -= {"simulator", "__future__", *sys.stdlib_module_names}
    assert set() == {name for name in outside if importer not in ALLOWED.get(name, set())}


def test_side_packages_meet_the_simulator_only_through_calibration() -> None:
    assert set() == {
        f"{dotted(path)} imports {name}"
        for path in modules("kernels")
        for name in imports(path)
        if name.split(".")[0] in ("simulator", "calibration")
    }
    for path in modules("calibration"):
        roots = {name.split(".")[0] for name in imports(path)}
        assert "kernels" not in roots or dotted(path) == "calibration.profile"
        too_high = {name for name in of_simulator(path) if LAYER.get(unit(name), 99) > 3}
        assert set() == too_high, dotted(path)
