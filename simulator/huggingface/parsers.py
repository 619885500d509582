"""One small parser for each known architecture, and the defaults its published configs rely on.

A parser gives every layer in order; `simulator.hf_config` folds equal layers into kinds. To add an
architecture, write a parser and a row of `ARCHITECTURES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from simulator.errors import ConfigError
from simulator.huggingface.keys import ConfigKeys, attention, dense_ffn, moe_ffn, stack, windows
from simulator.spec import AttentionSpec, FfnSpec, LayerSpec, MlaSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """Every layer in order, and what lies outside the layers."""

    layers: list[LayerSpec]
    num_learned_positions: int = 0
    embedding_size: int = 0  # 0 = hidden_size
    final_norm_bias: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How to read the configs of one architecture."""

    parse: Callable[[ConfigKeys], Body]
    # Of keys that published configs leave out, as the transformers library's config class has them.
    defaults: Mapping[str, object] = field(default_factory=dict)


def llama(c: ConfigKeys) -> Body:
    bias = c.flag("attention_bias", False)
    layer = LayerSpec(attention=attention(c, bias, bias), ffn=dense_ffn(c))
    return Body(layers=[layer] * c.num_layers)


def mistral(c: ConfigKeys) -> Body:
    """Mistral, Ministral and Phi-3: a window on every layer unless `layer_types` says otherwise."""
    window = c.count("sliding_window", 0, minimum=0)
    layer = LayerSpec(attention=attention(c), ffn=dense_ffn(c))
    return Body(layers=stack(layer, windows(c, [window > 0] * c.num_layers, window)))


def mixtral(c: ConfigKeys) -> Body:
    window = c.count("sliding_window", 0, minimum=0)
    ffn = moe_ffn(c, "intermediate_size", "num_local_experts")
    layer = LayerSpec(attention=attention(c), ffn=ffn)
    return Body(layers=stack(layer, [window] * c.num_layers))


def qwen2(c: ConfigKeys) -> Body:
    return _qwen(c, attention(c, qkv_bias=True), None)


def qwen2_moe(c: ConfigKeys) -> Body:
    ffn = replace(
        moe_ffn(c, "moe_intermediate_size", "num_experts"),
        shared_ffn_size=c.count("shared_expert_intermediate_size"),
        shared_gate=True,
    )
    return _qwen(c, attention(c, qkv_bias=c.flag("qkv_bias", True)), ffn)


def qwen3(c: ConfigKeys) -> Body:
    bias = c.flag("attention_bias", False)
    return _qwen(c, replace(attention(c, bias, bias), qk_norm=True), None)


def qwen3_moe(c: ConfigKeys) -> Body:
    bias = c.flag("attention_bias", False)
    ffn = moe_ffn(c, "moe_intermediate_size", "num_experts")
    return _qwen(c, replace(attention(c, bias, bias), qk_norm=True), ffn)


def _qwen(c: ConfigKeys, heads: AttentionSpec, sparse: FfnSpec | None) -> Body:
    """Qwen layers; where `sparse` is given, all but the layers the config names are MoE."""
    every = c.count("decoder_sparse_step", 1)
    dense_layers = c.items("mlp_only_layers") or []
    layers = []
    for i, window in enumerate(_qwen_windows(c)):
        is_moe = sparse is not None and i not in dense_layers and (i + 1) % every == 0
        ffn = sparse if sparse is not None and is_moe else dense_ffn(c)
        layers.append(LayerSpec(attention=replace(heads, window=window), ffn=ffn))
    return Body(layers=layers)


def _qwen_windows(c: ConfigKeys) -> list[int]:
    if not c.flag("use_sliding_window", False):
        return [0] * c.num_layers
    first = c.count("max_window_layers", c.num_layers, minimum=0)
    local = [i >= first for i in range(c.num_layers)]
    return windows(c, local, c.count("sliding_window", 0, minimum=0))


def deepseek(c: ConfigKeys) -> Body:
    """DeepSeek-V2 and V3: MLA; the first layers dense. V3 adds a balancing bias to the router."""
    mla = MlaSpec(
        q_lora_rank=c.count("q_lora_rank", 0, minimum=0),
        kv_lora_rank=c.count("kv_lora_rank"),
        nope_head_dim=c.count("qk_nope_head_dim"),
        rope_head_dim=c.count("qk_rope_head_dim"),
        v_head_dim=c.count("v_head_dim"),
    )
    num_heads = c.count("num_attention_heads")
    heads = AttentionSpec(
        num_q_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=mla.nope_head_dim + mla.rope_head_dim,
        mla=mla,
    )
    sparse = moe_ffn(c, "moe_intermediate_size", "n_routed_experts")
    shared = c.count("n_shared_experts", 0, minimum=0) * sparse.ffn_size
    biased = c.keys.get("topk_method") == "noaux_tc"
    dense = LayerSpec(attention=heads, ffn=dense_ffn(c))
    moe = replace(dense, ffn=replace(sparse, shared_ffn_size=shared, router_bias=biased))
    first = c.count("first_k_dense_replace", 0, minimum=0)
    every = c.count("moe_layer_freq", 1)
    is_moe = [i >= first and i % every == 0 for i in range(c.num_layers)]
    return Body(layers=[moe if chosen else dense for chosen in is_moe])


def gpt_oss(c: ConfigKeys) -> Body:
    """Alternating window and full attention with sinks; biases on every matrix."""
    bias = c.flag("attention_bias", True)
    ffn = moe_ffn(c, "intermediate_size", "num_local_experts")
    layer = LayerSpec(
        attention=replace(attention(c, bias, bias), sinks=True),
        ffn=replace(ffn, bias=True, router_bias=True),
    )
    local = [i % 2 == 0 for i in range(c.num_layers)]
    return Body(layers=stack(layer, windows(c, local, c.count("sliding_window"))))


def falcon(c: ConfigKeys) -> Body:
    """Falcon with parallel attention; the old decoder has one norm and, as a rule, one KV head."""
    if c.flag("alibi", False) or not c.flag("parallel_attn", True):
        raise ConfigError(f"{c.where}: Falcon with alibi or without parallel_attn is not modelled")
    new = c.flag("new_decoder_architecture", False)
    num_kv_heads = c.count("num_attention_heads")
    if new:
        num_kv_heads = c.count("num_kv_heads", num_kv_heads)
    elif c.flag("multi_query", True):
        num_kv_heads = 1
    hidden, bias = c.count("hidden_size"), c.flag("bias", False)
    heads = replace(c, keys={**c.keys, "num_key_value_heads": num_kv_heads})
    layer = LayerSpec(
        attention=attention(heads, bias, bias),
        ffn=FfnSpec(ffn_size=c.count("ffn_hidden_size", 4 * hidden), gated=False, bias=bias),
        num_norms=c.count("num_ln_in_parallel_attn", 2 if new else 1),
        norm_bias=True,
    )
    return Body(layers=[layer] * c.num_layers, final_norm_bias=True)


def opt(c: ConfigKeys) -> Body:
    bias, hidden = c.flag("enable_bias", True), c.count("hidden_size")
    layer = LayerSpec(
        attention=attention(c, bias, bias),
        ffn=FfnSpec(ffn_size=c.count("ffn_dim"), gated=False, bias=bias),
        norm_bias=True,
    )
    width = c.count("word_embed_proj_dim", hidden)
    return Body(
        layers=[layer] * c.num_layers,
        # The table has two rows more than there are positions: OPT counts them from 2.
        num_learned_positions=c.count("max_position_embeddings") + 2,
        embedding_size=0 if width == hidden else width,
        final_norm_bias=True,
    )


def gemma2(c: ConfigKeys) -> Body:
    """Window on even layers; a norm before and after attention and FFN."""
    bias = c.flag("attention_bias", False)
    heads = replace(attention(c, bias, bias), softcap=True)
    layer = LayerSpec(attention=heads, ffn=dense_ffn(c), num_norms=4)
    local = [i % 2 == 0 for i in range(c.num_layers)]
    return Body(layers=stack(layer, windows(c, local, c.count("sliding_window"))))


def gemma3(c: ConfigKeys) -> Body:
    """Five layers with a window, then one without."""
    bias = c.flag("attention_bias", False)
    heads = replace(attention(c, bias, bias), qk_norm=True)
    layer = LayerSpec(attention=heads, ffn=dense_ffn(c), num_norms=4)
    pattern = c.count("sliding_window_pattern")
    local = [(i + 1) % pattern != 0 for i in range(c.num_layers)]
    return Body(layers=stack(layer, windows(c, local, c.count("sliding_window"))))


def llama4(c: ConfigKeys) -> Body:
    """Three layers of chunked attention, then one of full; one shared expert where MoE.

    A chunk is taken for a window of its size, which is what a KV cache reserves for it; a query in
    mid-chunk sees less. The norm of Q and K has no weights.
    """
    bias = c.flag("attention_bias", False)
    moe = moe_ffn(c, "intermediate_size", "num_local_experts")
    moe = replace(moe, shared_ffn_size=moe.ffn_size)
    dense = dense_ffn(c, "intermediate_size_mlp")
    every = c.count("interleave_moe_layer_step", 1)
    chosen = c.items("moe_layers") or list(range(every - 1, c.num_layers, every))
    with_rope = c.items("no_rope_layers") or [(i + 1) % 4 for i in range(c.num_layers)]
    if len(with_rope) != c.num_layers:
        raise ConfigError(
            f"{c.where}: no_rope_layers must have {c.num_layers} entries (got {len(with_rope)})"
        )
    layer_windows = windows(c, [bool(rope) for rope in with_rope], c.count("attention_chunk_size"))
    heads = attention(c, bias, bias)
    layers = [
        LayerSpec(attention=replace(heads, window=window), ffn=moe if i in chosen else dense)
        for i, window in enumerate(layer_windows)
    ]
    return Body(layers=layers)


_GEMMA2 = {
    "head_dim": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
_GEMMA3 = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
    "sliding_window_pattern": 6,
    "tie_word_embeddings": True,
}
_FALCON = {"max_position_embeddings": 2048, "tie_word_embeddings": True}
_GPT_OSS = {"head_dim": 64, "sliding_window": 128}

# By name in `architectures`. tie_word_embeddings is false where a row does not say otherwise.
ARCHITECTURES: dict[str, Architecture] = {
    "DeepseekV2ForCausalLM": Architecture(parse=deepseek),
    "DeepseekV3ForCausalLM": Architecture(parse=deepseek),
    "FalconForCausalLM": Architecture(parse=falcon, defaults=_FALCON),
    "Gemma2ForCausalLM": Architecture(parse=gemma2, defaults=_GEMMA2),
    "Gemma3ForCausalLM": Architecture(parse=gemma3, defaults=_GEMMA3),
    "Gemma3ForConditionalGeneration": Architecture(parse=gemma3, defaults=_GEMMA3),
    "GptOssForCausalLM": Architecture(parse=gpt_oss, defaults=_GPT_OSS),
    "Llama4ForCausalLM": Architecture(parse=llama4, defaults={"attention_chunk_size": 8192}),
    "Llama4ForConditionalGeneration": Architecture(
        parse=llama4, defaults={"attention_chunk_size": 8192}
    ),
    "LlamaForCausalLM": Architecture(parse=llama),
    "MinistralForCausalLM": Architecture(parse=mistral),
    "MistralForCausalLM": Architecture(parse=mistral),
    "MixtralForCausalLM": Architecture(parse=mixtral),
    "OPTForCausalLM": Architecture(parse=opt, defaults={"tie_word_embeddings": True}),
    "Phi3ForCausalLM": Architecture(parse=mistral),
    "Qwen2ForCausalLM": Architecture(parse=qwen2),
    "Qwen2MoeForCausalLM": Architecture(parse=qwen2_moe),
    "Qwen3ForCausalLM": Architecture(parse=qwen3),
    "Qwen3MoeForCausalLM": Architecture(parse=qwen3_moe),
}
