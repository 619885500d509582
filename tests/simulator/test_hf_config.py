"""Every architecture's parser on a tiny config, number formats, and bad configs."""

from __future__ import annotations

import pytest

from simulator.errors import ConfigError
from simulator.hf_config import model_from_config
from simulator.huggingface.parsers import ARCHITECTURES
from simulator.params import embedding_params, num_params

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}
MOE = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
TINY = {
    "DeepseekV2ForCausalLM": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 4,
        "v_head_dim": 8,
    },
    "FalconForCausalLM": {"new_decoder_architecture": True, "num_kv_heads": 2},
    "GptOssForCausalLM": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "Llama4ForCausalLM": {
        "num_local_experts": 8,
        "num_experts_per_tok": 1,
        "intermediate_size_mlp": 256,
    },
    "MixtralForCausalLM": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "OPTForCausalLM": {"ffn_dim": 256},
    "Qwen2MoeForCausalLM": {**MOE, "shared_expert_intermediate_size": 64},
    "Qwen3MoeForCausalLM": MOE,
}
TINY["DeepseekV3ForCausalLM"] = TINY["DeepseekV2ForCausalLM"]
TINY["Llama4ForConditionalGeneration"] = TINY["Llama4ForCausalLM"]


def tiny(architecture="LlamaForCausalLM", **keys):
    config = {**LLAMA, **TINY.get(architecture, {}), "architectures": [architecture], **keys}
    return model_from_config(config, "tiny", "tiny.json")


def layer_windows(model):
    return [model.layer_kinds[kind].attention.window for kind in model.layer_order]


def fp8(**keys):
    return {"quant_method": "fp8", **keys}


def compressed(num_bits, kind, activations=True, group_size=None, **keys):
    weights = {"num_bits": num_bits, "type": kind, "group_size": group_size}
    group = {"weights": weights, "input_activations": {"num_bits": 8} if activations else None}
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, **keys}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_parses(architecture):
    model = tiny(architecture)
    assert architecture == model.architecture
    assert model.num_layers == 4
    assert num_params(model) > 100 * 64


def test_absent_tie_word_embeddings_takes_the_default_of_the_architecture():
    tied = {name for name in ARCHITECTURES if tiny(name).tied_embeddings}
    gemma = {"Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"}
    assert gemma | {"FalconForCausalLM", "OPTForCausalLM"} == tied
    assert tiny(tie_word_embeddings=True).tied_embeddings


def test_windows_by_layer():
    assert layer_windows(tiny("Gemma2ForCausalLM")) == [4096, 0, 4096, 0]
    assert layer_windows(tiny("GptOssForCausalLM")) == [128, 0, 128, 0]
    assert layer_windows(tiny("Llama4ForCausalLM")) == [8192, 8192, 8192, 0]
    assert layer_windows(tiny("MistralForCausalLM", sliding_window=8)) == [8] * 4
    assert layer_windows(tiny("MistralForCausalLM", sliding_window=None)) == [0] * 4
    types = ["full_attention", *["sliding_attention"] * 3]
    ministral = tiny("MinistralForCausalLM", sliding_window=8, layer_types=types)
    assert layer_windows(ministral) == [0, 8, 8, 8]
    gemma3 = tiny("Gemma3ForCausalLM", num_hidden_layers=12, sliding_window=1024)
    assert layer_windows(gemma3) == ([1024] * 5 + [0]) * 2


def test_qwen2_ignores_sliding_window_unless_told_to_use_it():
    assert layer_windows(tiny("Qwen2ForCausalLM", sliding_window=8)) == [0] * 4
    used = {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}
    assert layer_windows(tiny("Qwen2ForCausalLM", **used)) == [0, 0, 0, 8]


def test_moe_layers_and_dense_layers():
    model = tiny("Qwen3MoeForCausalLM", mlp_only_layers=[0], decoder_sparse_step=2)
    assert [model.layer_kinds[k].ffn.num_experts for k in model.layer_order] == [0, 8, 0, 8]
    model = tiny("DeepseekV3ForCausalLM", first_k_dense_replace=3, n_shared_experts=2)
    assert [model.layer_kinds[k].ffn.num_experts for k in model.layer_order] == [0, 0, 0, 8]
    assert model.layer_kinds[1].ffn.shared_ffn_size == 64
    model = tiny("Llama4ForCausalLM", interleave_moe_layer_step=2)
    assert [model.layer_kinds[k].ffn.ffn_size for k in model.layer_order] == [256, 128] * 2


def test_old_falcon_has_one_kv_head_and_one_norm():
    model = tiny("FalconForCausalLM", new_decoder_architecture=False)
    assert (model.layer_kinds[0].attention.num_kv_heads, model.layer_kinds[0].num_norms) == (1, 1)


def test_opt_350m_projects_its_embedding():
    model = tiny("OPTForCausalLM", word_embed_proj_dim=32)
    assert embedding_params(model) == 100 * 32 + 2 * 32 * 64 + 514 * 64


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        (None, ("bf16", "bf16", "bf16")),
        (fp8(), ("fp8", "fp8", "bf16")),
        (fp8(kv_cache_scheme={"num_bits": 8, "type": "float"}), ("fp8", "fp8", "fp8")),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128}, ("int4_g128",) * 2 + ("bf16",)),
        ({"quant_method": "awq", "bits": 4}, ("int4_g128", "int4_g128", "bf16")),
        ({"quant_method": "mxfp4"}, ("bf16", "mxfp4", "bf16")),
        (compressed(8, "float"), ("fp8", "fp8", "bf16")),
        (compressed(8, "int"), ("int8", "int8", "bf16")),
        (compressed(4, "int", False, 128), ("int4_g128", "int4_g128", "bf16")),
        (fp8(ignore=["re:.*self_attn.*", "re:.*shared_expert.*"]), ("bf16", "fp8", "bf16")),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, ("fp8", "fp8", "bf16")),
    ],
)
def test_quantization_config(section, expected):
    model = tiny("MixtralForCausalLM", quantization_config=section, torch_dtype="bfloat16")
    assert expected == (model.weight_format, model.expert_weight_format, model.kv_format)


def test_float16_checkpoint_keeps_its_name():
    assert (
        tiny(dtype="float16").weight_format,
        tiny(dtype="float16").kv_format,
    ) == ("fp16", "fp16")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"architectures": ["LamaForCausalLM"]}, "did you mean 'LlamaForCausalLM'"),
        ({"architectures": ["MambaForCausalLM"]}, "known: DeepseekV2ForCausalLM"),
        ({"architectures": None}, "architectures must be a list"),
        ({"hidden_size": None}, "missing key 'hidden_size'"),
        ({"vocab_size": "100"}, "vocab_size must be an int"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be an int between 1 and 10000"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers must be an int"),
        ({"num_attention_heads": True}, "num_attention_heads must be an int"),
        ({"intermediate_size": float("nan")}, "intermediate_size must be an int"),
        ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads"),
        ({"hidden_size": 65}, "without head_dim, hidden_size must be a multiple"),
        ({"attention_bias": "yes"}, "attention_bias must be true or false"),
        ({"torch_dtype": "int3"}, "torch_dtype must be one of"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
        ({"quantization_config": {"quant_method": "gguf"}}, "unknown quant_method 'gguf'"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 3}}, "got bits 3"),
        ({"quantization_config": compressed(8, "int", False)}, "weight-only formats"),
        ({"quantization_config": compressed(4, "float")}, "got 4 bits, float"),
        ({"quantization_config": fp8(kv_cache_scheme={"num_bits": 4})}, "kv_cache_scheme"),
    ],
)
def test_bad_config_is_one_line_with_file_and_key(keys, message):
    with pytest.raises(ConfigError) as error:
        model_from_config({**LLAMA, **keys}, "bad", "bad.json")
    assert message in str(error.value)
    assert str(error.value).startswith("bad.json: ")
    assert "\n" not in str(error.value)


def test_bad_layer_types():
    with pytest.raises(ConfigError, match="layer_types must have 4 entries"):
        tiny("MistralForCausalLM", layer_types=["full_attention"])
    with pytest.raises(ConfigError, match="'linear_attention' is not modelled"):
        tiny("MistralForCausalLM", layer_types=["linear_attention"] * 4)
    with pytest.raises(ConfigError, match="missing key 'sliding_window'"):
        tiny("MistralForCausalLM", layer_types=["sliding_attention"] * 4)


def test_more_experts_per_token_than_experts():
    with pytest.raises(ConfigError, match="at most num_local_experts = 8"):
        tiny("MixtralForCausalLM", num_experts_per_tok=9)


def test_head_dim_defaults_to_hidden_size_by_heads():
    assert tiny().layer_kinds[0].attention.head_dim == 16
    assert tiny(head_dim=32).layer_kinds[0].attention.head_dim == 32
