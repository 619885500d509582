"""Models, GPUs and clusters by name: what is bundled under `configs/`, or a file of one's own.

Names match without regard to case. What is bundled is read once; a file given by its path is read
again at every call.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cache, lru_cache
from pathlib import Path

import simulator
from simulator.errors import ConfigError, unknown_name
from simulator.gpu_file import GpuFile, read_gpu_file
from simulator.hf_config import model_from_config
from simulator.spec import ClusterSpec, GpuSpec, ModelSpec, NodeGroup

CONFIGS = Path(next(iter(simulator.__path__))).parent / "configs"
MAX_GPUS = 100_000
_MAX_FILE_BYTES = 1_000_000

# Last part of a Hugging Face id, less what `_NOISE` and `_FORMATS` strip, to the bundled shape.
_MODEL_ALIASES = {
    "deepseek-r1": "deepseek-v3",
    "deepseek-r1-0528": "deepseek-v3",
    "deepseek-v3-0324": "deepseek-v3",
    "deepseek-v3.1": "deepseek-v3",
    "llama-4-scout-17b-16e": "llama-4-scout",
    "ministral-8b-2410": "ministral-8b",
    "mistral-7b-v0.2": "mistral-7b",
    "mistral-nemo": "mistral-nemo-12b",
    "mistral-nemo-2407": "mistral-nemo-12b",
    "mixtral-8x22b-v0.1": "mixtral-8x22b",
    "mixtral-8x7b-v0.1": "mixtral-8x7b",
}
_NOISE = ("instruct", "chat", "hf", "it", "base", "meta", "dynamic", "kv")
_FORMATS = {
    "fp8": "fp8",
    "w8a8": "int8",
    "int8": "int8",
    "awq": "int4_g128",
    "gptq": "int4_g128",
    "int4": "int4_g128",
    "w4a16": "int4_g128",
    "quantized.w8a8": "int8",
    "quantized.w4a16": "int4_g128",
}


def model_names() -> list[str]:
    """Names of the bundled models, in order."""
    return sorted(path.stem for path in (CONFIGS / "models").glob("*.json"))


def load_model(name_or_path: str, *, weight_format: str = "", kv_format: str = "") -> ModelSpec:
    """A bundled model by its name or Hugging Face id, or the config.json at a path.

    A quantisation that the id's name states ("…-FP8", "…-AWQ") is applied; `weight_format` and
    `kv_format` override what the model is stored in.

    Raises:
        ConfigError: unknown name or format, or a config that cannot be used.
    """
    if not isinstance(name_or_path, str) or not name_or_path.strip():
        raise ConfigError(
            f"model: expected a name or the path of a config.json (got {name_or_path!r})"
        )
    known = {name.lower(): name for name in model_names()}
    name = name_or_path.strip()
    stated_format = ""
    if name.lower() in known:
        model = _bundled_model(known[name.lower()])
    elif (path := _model_path(name)) is not None:
        model = _read_model(
            path, path.resolve().parent.name if path.name == "config.json" else path.stem
        )
    else:
        shape, stated_format = _hugging_face_shape(name)
        if shape not in known:
            raise unknown_name("model", name, known)
        model = _bundled_model(known[shape])
    return model.with_formats(weight_format or stated_format, kv_format)


def gpu_names() -> list[str]:
    """Names of the bundled GPUs, in order."""
    return sorted(file.gpu.name for file in _gpu_files())


def load_gpu(name: str) -> GpuSpec:
    """A bundled GPU by its name, an alias or a prefix that fits one only; or a YAML file's path.

    Raises:
        ConfigError: unknown or ambiguous name, or a file that cannot be used.
    """
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"gpu: expected a name such as 'H100-SXM' (got {name!r})")
    if name.endswith((".yaml", ".yml")):
        return read_gpu_file(Path(name)).gpu
    wanted = _gpu_key(name)
    by_key: dict[str, GpuSpec] = {}
    for file in _gpu_files():
        by_key |= {_gpu_key(alias): file.gpu for alias in (file.gpu.name, *file.aliases)}
    if wanted in by_key:
        return by_key[wanted]
    found = {gpu.name: gpu for gpu in by_key.values() if _gpu_key(gpu.name).startswith(wanted)}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        raise ConfigError(f"GPU '{name}' is ambiguous (could be {', '.join(sorted(found))})")
    raise unknown_name("GPU", name, gpu_names())


def parse_cluster(text: str) -> ClusterSpec:
    """A cluster such as "8xH100-SXM", "2x8xH100-SXM" (nodes x GPUs each) or a sum with "+".

    Raises:
        ConfigError: not of that form, no whole number of nodes, or too many GPUs.
    """
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"cluster: expected text such as '8xH100-SXM' (got {text!r})")
    if len(text) > 1000:
        raise ConfigError(f"cluster '{text[:40]}…': expected at most 1000 characters")
    groups = tuple(_node_group(part.strip(), text) for part in text.split("+"))
    num_gpus = sum(group.num_gpus for group in groups)
    if num_gpus > MAX_GPUS:
        raise ConfigError(f"cluster '{text}': at most {MAX_GPUS} GPUs (got {num_gpus})")
    return ClusterSpec(name="+".join(_group_name(group) for group in groups), groups=groups)


def _node_group(part: str, text: str) -> NodeGroup:
    match = re.fullmatch(r"(\d+)\s*x\s*(?:(\d+)\s*x\s*)?(\S.*)", part, re.ASCII | re.IGNORECASE)
    if match is None:
        raise ConfigError(
            f"cluster '{text}': expected COUNTxGPU or NODESxCOUNTxGPU, such as '8xH100-SXM' or "
            f"'2x8xH100-SXM' (got '{part}')"
        )
    counts = [digits for digits in match.groups()[:2] if digits is not None]
    for digits in counts:
        if len(digits) > 9 or not 1 <= int(digits) <= MAX_GPUS:
            raise ConfigError(
                f"cluster '{text}': counts must be between 1 and {MAX_GPUS} (got {digits[:20]})"
            )
    gpu = load_gpu(match[3])
    per_node = int(counts[-1])
    if len(counts) == 2:
        num_nodes = int(counts[0])
    else:
        num_nodes = max(1, per_node // gpu.gpus_per_node)
        if per_node % num_nodes or per_node // num_nodes > gpu.gpus_per_node:
            raise ConfigError(
                f"cluster '{text}': {gpu.name} nodes have {gpu.gpus_per_node} GPUs; expected at "
                f"most one node or whole nodes (got {per_node} GPUs)"
            )
        per_node //= num_nodes
    if per_node > gpu.gpus_per_node:
        raise ConfigError(
            f"cluster '{text}': nodes of {gpu.name} have at most {gpu.gpus_per_node} GPUs "
            f"(got {per_node})"
        )
    return NodeGroup(num_nodes=num_nodes, gpus_per_node=per_node, gpu=gpu)


def _group_name(group: NodeGroup) -> str:
    if group.num_nodes == 1 or group.gpus_per_node == group.gpu.gpus_per_node:
        return f"{group.num_gpus}x{group.gpu.name}"
    return f"{group.num_nodes}x{group.gpus_per_node}x{group.gpu.name}"


def _hugging_face_shape(name: str) -> tuple[str, str]:
    """Bundled name and weight format ("" = as bundled) that a Hugging Face id stands for."""
    kept: list[str] = []
    weight_format = ""
    for token in name.rstrip("/").rsplit("/", 1)[-1].lower().split("-"):
        if token in _FORMATS:
            weight_format = _FORMATS[token]
        elif token not in _NOISE:
            kept.append(token)
    shape = "-".join(kept)
    return _MODEL_ALIASES.get(shape, shape), weight_format


def _model_path(name: str) -> Path | None:
    """The config a path leads to; None where `name` is not a path that exists."""
    path = Path(name)
    try:
        if path.is_dir():
            path = path / "config.json"
        return path if path.is_file() or path.suffix == ".json" else None
    except (OSError, ValueError):
        return None


def _read_model(path: Path, name: str) -> ModelSpec:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_FILE_BYTES + 1)
        config = json.loads(text) if len(text) <= _MAX_FILE_BYTES else None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from None
    if config is None:
        raise ConfigError(f"{path}: expected a config of at most {_MAX_FILE_BYTES} bytes")
    if not isinstance(config, Mapping):
        raise ConfigError(f"{path}: expected a JSON object (got {type(config).__name__})")
    return model_from_config(config, name, str(path))


@cache
def _bundled_model(name: str) -> ModelSpec:
    return _read_model(CONFIGS / "models" / f"{name}.json", name)


@lru_cache(maxsize=1)
def _gpu_files() -> tuple[GpuFile, ...]:
    return tuple(read_gpu_file(path) for path in sorted((CONFIGS / "hardware").glob("*.yaml")))


def _gpu_key(name: str) -> str:
    return re.sub(r"[\s_-]+", "-", name.strip().lower())
