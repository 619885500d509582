"""A `GpuSpec` from a YAML file of `configs/hardware`, strictly checked.

Every key is required and none is ignored; every figure carries its unit and has an entry under
`sources`. Each refusal is one ConfigError line that names the file, the key and both values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from simulator.errors import ConfigError, unknown_name
from simulator.spec import WEIGHT_FORMATS, GpuSpec, LinkSpec
from simulator.units import parse

_FIGURES = (
    *("memory", "memory_bandwidth", "flops", "num_sms", "l2", "tdp", "idle", "price"),
    *("gpus_per_node", "gpu_link", "host_link", "inter_node"),
)
_KEYS = ("name", "family", "aliases", "price_date", *_FIGURES, "sources")
_LINK_KEYS = ("name", "rate", "latency")
_FAMILIES = ("ada", "ampere", "blackwell", "cdna3", "hopper", "turing")
_COMPUTE = sorted({f.compute for f in WEIGHT_FORMATS.values()})
_MAX_FILE_BYTES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFile:
    """What one file holds."""

    gpu: GpuSpec
    aliases: tuple[str, ...]


def read_gpu_file(path: Path) -> GpuFile:
    """The GPU a YAML file describes.

    Raises:
        ConfigError: unreadable file, unknown, missing or repeated key, bad value or unit.
    """
    document = _section(_read_yaml(path), _KEYS, str(path))
    where = f"{path}: "
    sources = _section(document["sources"], _FIGURES, f"{path}: sources")
    flops = _flops(document["flops"], f"{path}: flops")
    aliases = document["aliases"]
    if not isinstance(aliases, list) or not all(isinstance(alias, str) for alias in aliases):
        raise ConfigError(f"{where}aliases: expected a list of names (got {aliases!r})")
    family = _text(document, "family", where)
    if family not in _FAMILIES:
        raise ConfigError(f"{where}{unknown_name('family', family, _FAMILIES)}")
    gpu = GpuSpec(
        name=_text(document, "name", where),
        memory_bytes=_figure(document, "memory", "bytes", where),
        memory_bytes_per_s=_figure(document, "memory_bandwidth", "bytes/s", where),
        flops_per_s=flops,
        num_sms=_count(document, "num_sms", where),
        l2_bytes=_figure(document, "l2", "bytes", where),
        tdp_w=_figure(document, "tdp", "power", where),
        idle_w=_figure(document, "idle", "power", where),
        price_per_hour=_price(document["price"], f"{where}price"),
        price_date=_text(document, "price_date", where),
        gpu_link=_link(document["gpu_link"], f"{path}: gpu_link"),
        host_link=_link(document["host_link"], f"{path}: host_link"),
        gpus_per_node=_count(document, "gpus_per_node", where),
        inter_node=_link(document["inter_node"], f"{path}: inter_node"),
        family=family,
        source="; ".join(f"{key}: {_text(sources, key, f'{path}: sources.')}" for key in _FIGURES),
    )
    if gpu.idle_w > gpu.tdp_w:
        raise ConfigError(
            f"{where}idle: must be at most tdp (got {gpu.idle_w:g} W, {gpu.tdp_w:g} W)"
        )
    return GpuFile(gpu=gpu, aliases=tuple(aliases))


def _read_yaml(path: Path) -> object:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1).decode("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    if len(text) > _MAX_FILE_BYTES:
        raise ConfigError(f"{path}: expected at most {_MAX_FILE_BYTES} bytes")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_repeats(node, path, set())
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None


def _refuse_repeats(node: yaml.Node | None, path: Path, visited: set[int]) -> None:
    """Refuse a key given twice, of which YAML silently keeps the last, and anchors."""
    if id(node) in visited:
        raise ConfigError(f"{path}: anchors and aliases are not supported")
    visited.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_repeats(child, path, visited)
    if not isinstance(node, yaml.MappingNode):
        return
    seen: set[str] = set()
    for key, value in node.value:
        if str(key.value) in seen:
            line = key.start_mark.line + 1
            raise ConfigError(f"{path}: key '{key.value}' is given twice (line {line})")
        seen.add(str(key.value))
        _refuse_repeats(value, path, visited)


def _section(value: object, keys: tuple[str, ...], where: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: expected a mapping of {', '.join(keys)} (got {value!r})")
    for key in value:
        if key not in keys:
            raise ConfigError(f"{where}: {unknown_name('key', str(key), keys)}")
    missing = [key for key in keys if key not in value]
    if missing:
        raise ConfigError(f"{where}: missing key '{missing[0]}'")
    return value


def _text(section: Mapping[str, object], key: str, where: str) -> str:
    value = section[key]
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{where}{key}: expected text, in quotes where a date (got {value!r})")
    return value


def _count(section: Mapping[str, object], key: str, where: str) -> int:
    value = section[key]
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= 100_000:
        raise ConfigError(f"{where}{key}: expected an int between 1 and 100000 (got {value!r})")
    return value


def _figure(section: Mapping[str, object], key: str, dimension: str, where: str) -> float:
    value = parse(section[key], dimension, key=f"{where}{key}")
    if value <= 0:
        raise ConfigError(f"{where}{key}: must be > 0 (got {section[key]!r})")
    return value


def _flops(value: object, where: str) -> Mapping[str, float]:
    if not isinstance(value, dict) or "bf16" not in value:
        raise ConfigError(f"{where}: expected a mapping with at least bf16 (got {value!r})")
    for key in value:
        if key not in _COMPUTE:
            raise ConfigError(f"{where}: {unknown_name('key', str(key), _COMPUTE)}")
    return {key: _figure(value, key, "flop/s", f"{where}.") for key in value}


def _price(value: object, key: str) -> float:
    match = (
        re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?) USD/h", value) if isinstance(value, str) else None
    )
    if match is None:
        raise ConfigError(f"{key}: expected a price such as '2.95 USD/h' (got {value!r})")
    return float(match[1])


def _link(value: object, where: str) -> LinkSpec:
    section = _section(value, _LINK_KEYS, where)
    return LinkSpec(
        name=_text(section, "name", f"{where}."),
        bytes_per_s=_figure(section, "rate", "bytes/s", f"{where}."),
        latency_s=_figure(section, "latency", "time", f"{where}."),
    )
