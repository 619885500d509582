"""A `ModelSpec` from the contents of a Hugging Face config.json.

Refuses an architecture or a quantisation it does not know, and a config whose sizes are missing, of
the wrong type or inconsistent. Encoders of multimodal models and multi-token-prediction layers are
left out: `text_config` is what is served.
"""

from __future__ import annotations

from collections.abc import Mapping

from simulator.errors import ConfigError, unknown_name
from simulator.huggingface.formats import stored_formats
from simulator.huggingface.keys import ConfigKeys
from simulator.huggingface.parsers import ARCHITECTURES
from simulator.spec import ModelSpec


def model_from_config(config: Mapping[str, object], name: str, where: str) -> ModelSpec:
    """The model a Hugging Face config describes; `where` names the file in errors.

    Raises:
        ConfigError: unknown architecture, unknown quantisation, or a bad or missing key.
    """
    architecture = _architecture(config, where)
    nested = config.get("text_config")
    text_config = nested if isinstance(nested, Mapping) else config
    row = ARCHITECTURES[architecture]
    keys = ConfigKeys(keys=text_config, where=where).with_defaults(row.defaults)
    body = row.parse(keys)
    formats = stored_formats(config, text_config, where)
    kinds = tuple(dict.fromkeys(body.layers))
    index = {kind: i for i, kind in enumerate(kinds)}
    return ModelSpec(
        name=name,
        architecture=architecture,
        hidden_size=keys.count("hidden_size"),
        vocab_size=keys.count("vocab_size"),
        layer_kinds=kinds,
        layer_order=tuple(index[layer] for layer in body.layers),
        tied_embeddings=keys.flag("tie_word_embeddings", False),
        max_context_tokens=keys.count("max_position_embeddings"),
        num_learned_positions=body.num_learned_positions,
        embedding_size=body.embedding_size,
        final_norm_bias=body.final_norm_bias,
        weight_format=formats.weight_format,
        expert_format=formats.expert_format,
        kv_format=formats.kv_format,
    )


def _architecture(config: Mapping[str, object], where: str) -> str:
    names = config.get("architectures")
    if not isinstance(names, list) or not names:
        raise ConfigError(
            f"{where}: architectures must be a list such as ['LlamaForCausalLM'] (got {names!r})"
        )
    for name in names:
        if isinstance(name, str) and name in ARCHITECTURES:
            return name
    raise ConfigError(f"{where}: {unknown_name('architecture', str(names[0]), ARCHITECTURES)}")
