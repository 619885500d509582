"""Checked access to the keys of a Hugging Face config, and the parts every parser builds from them.

Every refusal is one ConfigError line that names the file, the key, what was expected and what was
found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from simulator.errors import ConfigError
from simulator.spec import AttentionSpec, FfnSpec, LayerSpec

MAX_LAYERS = 10_000
MAX_SIZE = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigKeys:
    """One config, with the defaults of its architecture filled in."""

    keys: Mapping[str, object]
    where: str  # the file, for errors

    def with_defaults(self, defaults: Mapping[str, object]) -> ConfigKeys:
        """The same config with `defaults` where a key is absent or null."""
        given = {key: value for key, value in self.keys.items() if value is not None}
        return replace(self, keys={**defaults, **given})

    def count(self, key: str, default: int | None = None, minimum: int = 1) -> int:
        """The int at `key`; `default` where it is absent or null, an error where that is None."""
        value = self.keys.get(key)
        if value is None:
            value = default
        if value is None:
            raise ConfigError(f"{self.where}: missing key '{key}', expected an int >= {minimum}")
        limit = MAX_LAYERS if key == "num_hidden_layers" else MAX_SIZE
        if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= limit:
            raise ConfigError(
                f"{self.where}: {key} must be an int between {minimum} and {limit} (got {value!r})"
            )
        return value

    def flag(self, key: str, default: bool) -> bool:
        """The bool at `key`; `default` where it is absent or null."""
        value = self.keys.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise ConfigError(f"{self.where}: {key} must be true or false (got {value!r})")
        return value

    def items(self, key: str) -> list[object] | None:
        """The list at `key`; None where it is absent or null."""
        value = self.keys.get(key)
        if value is not None and not isinstance(value, list):
            raise ConfigError(f"{self.where}: {key} must be a list (got {value!r})")
        return value

    @property
    def num_layers(self) -> int:
        return self.count("num_hidden_layers")


def attention(c: ConfigKeys, qkv_bias: bool = False, out_bias: bool = False) -> AttentionSpec:
    """Multi-head or grouped-query attention over the whole context."""
    hidden, num_q_heads = c.count("hidden_size"), c.count("num_attention_heads")
    num_kv_heads = c.count("num_key_value_heads", num_q_heads)
    if num_q_heads % num_kv_heads:
        raise ConfigError(
            f"{c.where}: num_attention_heads must be a multiple of num_key_value_heads "
            f"(got {num_q_heads} and {num_kv_heads})"
        )
    if c.keys.get("head_dim") is None and hidden % num_q_heads:
        raise ConfigError(
            f"{c.where}: without head_dim, hidden_size must be a multiple of num_attention_heads "
            f"(got {hidden} and {num_q_heads})"
        )
    return AttentionSpec(
        num_q_heads=num_q_heads,
        num_kv_heads=num_kv_heads,
        head_dim=c.count("head_dim", hidden // num_q_heads),
        qkv_bias=qkv_bias,
        out_bias=out_bias,
    )


def dense_ffn(c: ConfigKeys, size_key: str = "intermediate_size") -> FfnSpec:
    """A gated feed-forward block."""
    return FfnSpec(ffn_size=c.count(size_key), bias=c.flag("mlp_bias", False))


def moe_ffn(c: ConfigKeys, size_key: str, num_experts_key: str) -> FfnSpec:
    """A mixture of gated experts without shared ones."""
    num_experts, chosen = c.count(num_experts_key), c.count("num_experts_per_tok")
    if chosen > num_experts:
        raise ConfigError(
            f"{c.where}: num_experts_per_tok must be at most {num_experts_key} = {num_experts}"
            f" (got {chosen})"
        )
    return FfnSpec(ffn_size=c.count(size_key), num_experts=num_experts, experts_per_token=chosen)


def windows(c: ConfigKeys, default: list[bool], window: int) -> list[int]:
    """Window of every layer: `window` where `layer_types`, or `default` without it, says so."""
    types = c.items("layer_types")
    local = default
    if types is not None:
        if len(types) != c.num_layers:
            raise ConfigError(
                f"{c.where}: layer_types must have {c.num_layers} entries (got {len(types)})"
            )
        for kind in types:
            if kind not in ("full_attention", "sliding_attention", "chunked_attention"):
                raise ConfigError(f"{c.where}: layer type {kind!r} is not modelled")
        local = [kind != "full_attention" for kind in types]
    if any(local) and not window:
        raise ConfigError(f"{c.where}: missing key 'sliding_window', expected an int >= 1")
    return [window if is_local else 0 for is_local in local]


def stack(layer: LayerSpec, layer_windows: list[int]) -> list[LayerSpec]:
    """The same layer at every depth but for its window."""
    kinds = {
        window: replace(layer, attention=replace(layer.attention, window=window))
        for window in set(layer_windows)
    }
    return [kinds[window] for window in layer_windows]
