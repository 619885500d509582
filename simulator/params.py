"""Exact parameter counts and bytes of a model, whole and by the pieces that parallel plans shard.

Conventions. Matrices of the linear layers are stored in the model's weight format (routed experts
in its expert format); embeddings, LM head, router, norms, biases and attention sinks in 16 bits.
Scales of fp8 and int8 (one per row, or per 128 x 128 block) are not counted: under 0.1 %.
"""

from __future__ import annotations

from simulator.spec import KV_FORMATS, WEIGHT_FORMATS, LayerSpec, ModelSpec

PLAIN_BYTES = 2  # of every parameter that is not a quantisable matrix


def attention_params(layer: LayerSpec, model: ModelSpec) -> int:
    """Parameters of the Q, K, V and output matrices of one layer (MLA: its six matrices)."""
    attention, hidden = layer.attention, model.hidden_size
    mla = attention.mla
    if mla is None:
        heads = 2 * attention.num_q_heads + 2 * attention.num_kv_heads
        return hidden * heads * attention.head_dim
    num_heads = attention.num_q_heads
    query_size = num_heads * (mla.nope_head_dim + mla.rope_head_dim)
    query = hidden * query_size
    if mla.q_lora_rank:
        query = (hidden + query_size) * mla.q_lora_rank
    latent = hidden * (mla.kv_lora_rank + mla.rope_head_dim)
    expand = mla.kv_lora_rank * num_heads * (mla.nope_head_dim + mla.v_head_dim)
    return query + latent + expand + num_heads * mla.v_head_dim * hidden


def ffn_params(layer: LayerSpec, model: ModelSpec) -> int:
    """Parameters of the matrices every token passes: the dense FFN, or the shared experts."""
    ffn = layer.ffn
    width = ffn.shared_ffn_size if ffn.num_experts else ffn.ffn_size
    return _num_matrices(layer) * model.hidden_size * width


def expert_params(layer: LayerSpec, model: ModelSpec) -> int:
    """Parameters of the matrices of one routed expert; 0 for a dense layer."""
    if not layer.ffn.num_experts:
        return 0
    return _num_matrices(layer) * model.hidden_size * layer.ffn.ffn_size


def expert_bias_params(layer: LayerSpec, model: ModelSpec) -> int:
    """Biases of one routed expert; 0 for a dense layer."""
    return _ffn_bias(layer, model) if layer.ffn.num_experts else 0


def router_params(layer: LayerSpec, model: ModelSpec) -> int:
    """Router, its bias, and the gate of the shared experts; 0 for a dense layer."""
    ffn, hidden = layer.ffn, model.hidden_size
    bias = ffn.num_experts if ffn.router_bias else 0
    return hidden * ffn.num_experts + bias + (hidden if ffn.shared_gate else 0)


def norm_params(layer: LayerSpec, model: ModelSpec) -> int:
    """Parameters of every norm of one layer: around its blocks, on Q and K, on the MLA latents."""
    attention = layer.attention
    blocks = layer.num_norms * model.hidden_size * (2 if layer.norm_bias else 1)
    heads = 2 * attention.head_dim if attention.qk_norm else 0
    latents = 0 if attention.mla is None else attention.mla.q_lora_rank + attention.mla.kv_lora_rank
    return blocks + heads + latents


def bias_params(layer: LayerSpec, model: ModelSpec) -> int:
    """Biases of the attention and of a dense FFN, and attention sinks, of one layer."""
    attention = layer.attention
    heads = attention.num_q_heads + 2 * attention.num_kv_heads
    qkv = heads * attention.head_dim if attention.qkv_bias else 0
    out = model.hidden_size if attention.out_bias else 0
    sinks = attention.num_q_heads if attention.sinks else 0
    return qkv + out + sinks + (0 if layer.ffn.num_experts else _ffn_bias(layer, model))


def layer_params(layer: LayerSpec, model: ModelSpec) -> int:
    """Parameters of one layer, all experts included."""
    return _layer_params(layer, model, layer.ffn.num_experts)


def active_layer_params(layer: LayerSpec, model: ModelSpec) -> int:
    """Parameters of one layer that one token passes: `experts_per_token` of the experts."""
    return _layer_params(layer, model, layer.ffn.experts_per_token)


def embedding_params(model: ModelSpec) -> int:
    """Token embedding, learned positions, and projections where its width is not hidden_size."""
    width = model.embedding_size or model.hidden_size
    projections = 2 * width * model.hidden_size if width != model.hidden_size else 0
    positions = model.num_learned_positions * model.hidden_size
    return model.vocab_size * width + positions + projections


def lm_head_params(model: ModelSpec) -> int:
    """The LM head's own parameters; none of its matrix where it is tied to the embedding.

    A tied head computes, and reads, vocab_size x hidden_size all the same.
    """
    width = model.embedding_size or model.hidden_size
    bias = model.vocab_size if model.lm_head_bias else 0
    return bias + (0 if model.tied_embeddings else model.vocab_size * width)


def final_norm_params(model: ModelSpec) -> int:
    """Parameters of the norm after the last layer."""
    return model.hidden_size * (2 if model.final_norm_bias else 1)


def num_params(model: ModelSpec) -> int:
    """Parameters of the model; multi-token-prediction layers are not counted."""
    layers = sum(
        count * layer_params(model.layer_kinds[kind], model)
        for kind, count in model.kind_counts().items()
    )
    return layers + _outer_params(model)


def num_active_params(model: ModelSpec) -> int:
    """A token's routed experts and everything else, embedding and LM head in full.

    Publishers often leave out the embedding, or both: gpt-oss-120b is "5.1B" without the embedding
    and 5.7B here.
    """
    layers = sum(
        count * active_layer_params(model.layer_kinds[kind], model)
        for kind, count in model.kind_counts().items()
    )
    return layers + _outer_params(model)


def layer_weight_bytes(layer: LayerSpec, model: ModelSpec) -> float:
    """Bytes of the stored weights of one layer, all experts included."""
    num_experts = layer.ffn.num_experts
    plain = router_params(layer, model) + norm_params(layer, model) + bias_params(layer, model)
    plain += num_experts * expert_bias_params(layer, model)
    dense = attention_params(layer, model) + ffn_params(layer, model)
    return (
        plain * PLAIN_BYTES
        + dense * bytes_per_param(model.weight_format)
        + num_experts * expert_params(layer, model) * bytes_per_param(model.expert_weight_format)
    )


def weight_bytes(model: ModelSpec) -> float:
    """Bytes of the stored weights of the model."""
    layers = sum(
        count * layer_weight_bytes(model.layer_kinds[kind], model)
        for kind, count in model.kind_counts().items()
    )
    return layers + _outer_params(model) * PLAIN_BYTES


def bytes_per_param(weight_format: str) -> float:
    """Bytes of one parameter of a matrix, scales and zero points included."""
    return WEIGHT_FORMATS[weight_format].bits / 8


def layer_kv_bytes_per_token(layer: LayerSpec, model: ModelSpec) -> float:
    """Bytes one token in the context takes in one layer: K and V, or the MLA latent and its key."""
    attention = layer.attention
    values = 2 * attention.num_kv_heads * attention.head_dim
    if attention.mla is not None:
        values = attention.mla.kv_lora_rank + attention.mla.rope_head_dim
    return values * KV_FORMATS[model.kv_format].bits / 8


def kv_bytes_per_token(model: ModelSpec) -> float:
    """Bytes one token in the context takes over all layers, windows disregarded."""
    return sum(
        count * layer_kv_bytes_per_token(model.layer_kinds[kind], model)
        for kind, count in model.kind_counts().items()
    )


def _layer_params(layer: LayerSpec, model: ModelSpec, num_experts: int) -> int:
    expert = expert_params(layer, model) + expert_bias_params(layer, model)
    dense = attention_params(layer, model) + ffn_params(layer, model)
    plain = router_params(layer, model) + norm_params(layer, model) + bias_params(layer, model)
    return dense + plain + num_experts * expert


def _outer_params(model: ModelSpec) -> int:
    return embedding_params(model) + lm_head_params(model) + final_norm_params(model)


def _num_matrices(layer: LayerSpec) -> int:
    return 3 if layer.ffn.gated else 2


def _ffn_bias(layer: LayerSpec, model: ModelSpec) -> int:
    if not layer.ffn.bias:
        return 0
    return (2 if layer.ffn.gated else 1) * layer.ffn.ffn_size + model.hidden_size
