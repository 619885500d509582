"""Number formats of a Hugging Face checkpoint: the `torch_dtype` and `quantization_config` keys.

Refuses a quantisation Headway has no format for, rather than price it as something else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from simulator.errors import ConfigError, unknown_name

# Serving engines load float32 checkpoints in 16 bits.
_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "half": "fp16", "float32": "bf16"}
# (bits, type) of weights whose activations are quantised alike.
_EIGHT_BIT = {("8", "float"): "fp8", ("8", "int"): "int8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFormats:
    """Names of `spec.WEIGHT_FORMATS` and `spec.KV_FORMATS`."""

    weight_format: str
    kv_format: str
    expert_format: str = ""  # "" = weight_format


def stored_formats(
    config: Mapping[str, object], inner: Mapping[str, object], where: str
) -> StoredFormats:
    """Formats of a checkpoint; `inner` is its text config (`config` itself where not nested)."""
    dtype = next(
        (c[k] for c in (config, inner) for k in ("torch_dtype", "dtype") if c.get(k) is not None),
        "bfloat16",
    )
    if str(dtype) not in _DTYPES:
        raise ConfigError(f"{where}: torch_dtype must be one of {', '.join(_DTYPES)} (got {dtype})")
    plain = _DTYPES[str(dtype)]
    section = config.get("quantization_config") or inner.get("quantization_config")
    if section is None:
        return StoredFormats(weight_format=plain, kv_format=plain)
    if not isinstance(section, Mapping):
        raise ConfigError(f"{where}: quantization_config must be a mapping (got {section!r})")
    kv_format = _kv_format(section, plain, f"{where}: quantization_config")
    quantised = _weight_format(section, f"{where}: quantization_config")
    if quantised == "mxfp4" or _only_experts(section):
        return StoredFormats(weight_format=plain, kv_format=kv_format, expert_format=quantised)
    return StoredFormats(weight_format=quantised, kv_format=kv_format)


def _weight_format(section: Mapping[str, object], where: str) -> str:
    method = section.get("quant_method")
    if method in ("fp8", "fbgemm_fp8"):
        return "fp8"
    if method == "mxfp4":
        return "mxfp4"
    if method in ("gptq", "awq"):
        return _weight_only(section.get("bits"), section.get("group_size", 128), where)
    if method == "compressed-tensors":
        return _compressed_tensors(section, where)
    if method == "modelopt" and section.get("quant_algo") == "FP8":
        return "fp8"
    if method == "bitsandbytes":
        raise ConfigError(f"{where}: bitsandbytes kernels are not modelled; choose a weight_format")
    if method == "modelopt":
        raise ConfigError(f"{where}: modelopt {section.get('quant_algo')} is not modelled")
    known = ("awq", "compressed-tensors", "fbgemm_fp8", "fp8", "gptq", "modelopt", "mxfp4")
    error = unknown_name("quant_method", str(method), known)
    raise ConfigError(f"{where}: {error}")


def _weight_only(bits: object, group_size: object, where: str) -> str:
    if bits != 4 or group_size != 128:
        raise ConfigError(
            f"{where}: weight-only formats are modelled at 4 bits in groups of 128 "
            f"(got bits {bits}, group_size {group_size})"
        )
    return "int4_g128"


def _compressed_tensors(section: Mapping[str, object], where: str) -> str:
    groups = section.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        raise ConfigError(f"{where}.config_groups: expected exactly one group (got {groups!r})")
    group = next(iter(groups.values()))
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        raise ConfigError(f"{where}.config_groups: a group has no weights (got {group!r})")
    bits, kind = weights.get("num_bits"), weights.get("type", "int")
    if group.get("input_activations") is None:
        return _weight_only(bits, weights.get("group_size"), where)
    if (str(bits), str(kind)) not in _EIGHT_BIT:
        raise ConfigError(
            f"{where}.config_groups: weights and activations are modelled at 8 bits, float or int "
            f"(got {bits} bits, {kind})"
        )
    return _EIGHT_BIT[str(bits), str(kind)]


def _kv_format(section: Mapping[str, object], plain: str, where: str) -> str:
    scheme = section.get("kv_cache_scheme")
    if isinstance(scheme, Mapping):
        key = str(scheme.get("num_bits")), str(scheme.get("type", "float"))
        if key not in _EIGHT_BIT:
            raise ConfigError(f"{where}.kv_cache_scheme: expected 8 bits, float or int (got {key})")
        return _EIGHT_BIT[key]
    algorithm = section.get("kv_cache_quant_algo")
    if algorithm is None:
        return plain
    if str(algorithm).upper() != "FP8":
        raise ConfigError(f"{where}.kv_cache_quant_algo: expected FP8 (got {algorithm})")
    return "fp8"


def _only_experts(section: Mapping[str, object]) -> bool:
    """Whether attention and shared experts are left in 16 bits.

    A checkpoint that leaves only the attention in 16 bits counts it in the quantised format: of
    Llama-4-Scout that is 3.0 of 106 GB.
    """
    ignored: list[str] = []
    for key in ("ignore", "modules_to_not_convert"):
        entries = section.get(key)
        ignored += [str(entry) for entry in entries] if isinstance(entries, list) else []
    return all(any(part in entry for entry in ignored) for part in ("self_attn", "shared_expert"))
