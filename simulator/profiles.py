"""Engine profiles: what a serving engine's version does by default, as data.

`configs/engines/<name>.yaml` states the limits a version serves with on each class of GPU, whether
it schedules asynchronously, how it counts memory, and the host times that no kernel table holds.
Each value is sourced or fitted, and the file says which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from simulator.catalog import CONFIGS
from simulator.costs.efficiency import HostProfile
from simulator.errors import ConfigError, unknown_name
from simulator.spec import GpuSpec

GIB = 2**30
DEFAULT_PROFILE = "vllm-0.33"  # the version whose behaviour the scheduler and memory follow
FOLDER = CONFIGS / "engines"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """Defaults of one version of one engine."""

    name: str
    engine: str
    since: tuple[int, ...]  # first version it describes
    aliases: tuple[str, ...] = ()  # texts by which alone a run names it; () = versions do
    async_scheduling: bool = False
    reserve_graphs: bool = True  # CUDA graphs are counted before KV memory is (vLLM 0.21)
    reserve_full_prompt: bool = True  # a request is admitted only with pages for all its prompt
    gpu_memory_utilization: float = 0.92
    prefix_caching: bool = True
    block_tokens: int = 16
    largest_graph: int = 512  # tokens
    disaggregates: bool = True  # False = its prefill and decode instances served requests whole
    # (least GPU memory in GiB, token budget, sequences), first match from the top
    limits: tuple[tuple[float, int, int], ...] = ((0.0, 2048, 256),)
    small_a100: bool = True  # an A100 has the limits of a GPU with less memory
    host: Mapping[str, float] = field(default_factory=dict)  # fields of HostProfile, seconds

    def server_limits(self, gpu: GpuSpec) -> tuple[int, int]:
        """(max_num_batched_tokens, max_num_seqs) on this GPU."""
        memory_gib = gpu.memory_bytes / GIB
        if self.small_a100 and "a100" in gpu.name.lower():
            memory_gib = min(memory_gib, 69.0)
        return next((t, s) for least, t, s in self.limits if memory_gib >= least)


def load_profile(name_or_path: str) -> EngineProfile:
    """A bundled profile by its name, or a YAML file of one's own.

    Raises:
        ConfigError: unknown, not readable, or a key or value that cannot be used.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        return _read(path)
    bundled = {profile.name: profile for profile in bundled_profiles()}
    if name_or_path not in bundled:
        raise unknown_name("engine profile", name_or_path, bundled)
    return bundled[name_or_path]


@lru_cache(maxsize=1)
def bundled_profiles() -> tuple[EngineProfile, ...]:
    """Every profile of `configs/engines`, oldest version of each engine first."""
    found = [_read(path) for path in FOLDER.glob("*.yaml")]
    return tuple(sorted(found, key=lambda profile: (profile.engine, profile.since)))


def profiles_of(engine: str) -> list[EngineProfile]:
    """The bundled profiles of an engine, oldest version first; ConfigError where there is none."""
    name = re.sub(r"[\s_]+", "-", engine.strip().lower())
    name = ENGINE_ALIASES.get(name, name)
    mine = [profile for profile in bundled_profiles() if profile.engine == name]
    if not mine:
        raise unknown_name("engine", engine, sorted({p.engine for p in bundled_profiles()}))
    return mine


def profile_of_version(engine: str, version: str) -> EngineProfile:
    """The profile that describes a version: the newest one not newer than it.

    Raises:
        ConfigError: an engine or version that no profile describes.
    """
    mine = profiles_of(engine)
    text = version.lower()
    for profile in mine:
        if any(alias.lower() in text for alias in profile.aliases):
            return profile
    found = re.search(r"\d+(?:\.\d+)+", text)
    number = tuple(int(part) for part in found[0].split(".")) if found else ()
    fitting = [p for p in mine if p.since <= number and not p.aliases]
    if not fitting or number[0] > mine[-1].since[0] + 1 or number[:2] > NEWEST[mine[-1].engine]:
        first = ".".join(map(str, mine[0].since))
        last = ".".join(map(str, NEWEST[mine[-1].engine]))
        raise ConfigError(
            f"engine_version: expected one of {engine} from {first} to {last} (got {version!r})"
        )
    return fitting[-1]


ENGINE_ALIASES = {
    "trtllm": "tensorrt-llm",
    "trt-llm": "tensorrt-llm",
    "tensorrtllm": "tensorrt-llm",
}
# Newest version of each engine that its profiles are taken to hold for.
NEWEST: Mapping[str, tuple[int, ...]] = {
    "vllm": (0, 33),
    "sglang": (0, 9),
    "tensorrt-llm": (1, 9),
    "headway-check": (9, 9),
}


def _read(path: Path) -> EngineProfile:
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: expected a mapping (got {type(data).__name__})")
    data.pop("sources", None)
    known = {f.name for f in fields(EngineProfile)}
    for key in data:
        if key not in known:
            raise ConfigError(f"{path}: {unknown_name('key', str(key), known)}")
    try:
        return _profile(data)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path}: not usable ({type(error).__name__}: {error})") from None


def _profile(data: dict[str, Any]) -> EngineProfile:
    data["since"] = tuple(int(part) for part in str(data["since"]).split("."))
    data["aliases"] = tuple(data.get("aliases", ()))
    if "limits" in data:
        data["limits"] = tuple((float(m), int(t), int(s)) for m, t, s in data["limits"])
    host = {key: float(value) for key, value in data.get("host", {}).items()}
    for key in host:
        if key not in HostProfile.__dataclass_fields__:
            raise ValueError(str(unknown_name("host", key, HostProfile.__dataclass_fields__)))
        if not host[key] >= 0:
            raise ValueError(f"host.{key}: expected seconds >= 0 (got {host[key]})")
    return EngineProfile(**data | {"host": host})
