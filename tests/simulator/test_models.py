"""Parameters and bytes of the bundled models against published counts; models by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.catalog import CONFIGS, load_model, model_names
from simulator.errors import ConfigError
from simulator.params import (
    attention_params,
    embedding_params,
    expert_params,
    kv_bytes_per_token,
    layer_params,
    lm_head_params,
    num_active_params,
    num_params,
    weight_bytes,
)

# name: (parameters, active parameters in billions, KV KiB a token in bf16 over all layers), the
# mechanisms tables, section 18. OPT rows: see test_opt_counts_positions_biases_and_norms.
PUBLISHED = {
    "llama-2-7b": (6.74, 6.74, 512),
    "llama-2-13b": (13.02, 13.02, 800),
    "llama-2-70b": (68.98, 68.98, 320),
    "llama-3.1-8b": (8.03, 8.03, 128),
    "llama-3.1-70b": (70.55, 70.55, 320),
    "llama-3.1-405b": (405.85, 405.85, 504),
    "mistral-7b": (7.24, 7.24, 128),
    "mixtral-8x7b": (46.7, 12.9, 128),
    "mixtral-8x22b": (140.6, 39.2, 224),
    "qwen2.5-7b": (7.62, 7.62, 56),
    "qwen2.5-72b": (72.7, 72.7, 320),
    "qwen3-32b": (32.76, 32.76, 256),
    "qwen3-30b-a3b": (30.5, 3.35, 96),
    "qwen3-235b-a22b": (235.1, 22.2, 188),
    "deepseek-v3": (671.0, 37.6, (512 + 64) * 2 * 61 / 1024),
    "gpt-oss-120b": (116.8, 5.7, 72),
    "falcon-180b": (178.6, 178.6, 160),
    "opt-13b": (12.84, 12.84, 800),
    "opt-66b": (65.69, 65.69, 2304),
    "opt-175b": (174.6, 174.6, 4608),
    "gemma-2-2b": (2.61, 2.61, 104),
    "gemma-2-9b": (9.24, 9.24, 336),
    "gemma-2-27b": (27.23, 27.23, 368),
    "yi-34b": (34.39, 34.39, 240),
}

# Sums over the tensors of the published checkpoints, to the parameter.
CHECKPOINTS = {
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "mistral-7b": 7_241_732_096,
    "mixtral-8x7b": 46_702_792_704,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-8b": 8_190_735_360,
    "qwen3-30b-a3b": 30_532_122_624,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    "deepseek-v2-lite": 15_706_484_224,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "yi-34b": 34_388_917_248,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_match_the_published_count(name):
    total, active, _ = PUBLISHED[name]
    model = load_model(name)
    assert num_params(model) / 1e9 == pytest.approx(total, rel=0.005)
    assert num_active_params(model) / 1e9 == pytest.approx(active, rel=0.005)


@pytest.mark.parametrize("name", PUBLISHED)
def test_kv_bytes_of_a_token_are_exact(name):
    model = load_model(name)
    assert PUBLISHED[name][2] * 1024 == kv_bytes_per_token(model)
    assert PUBLISHED[name][2] * 512 == kv_bytes_per_token(model.with_formats(kv_format="fp8"))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_parameters_match_the_checkpoint_exactly(name):
    assert CHECKPOINTS[name] == num_params(load_model(name))


@pytest.mark.parametrize("name", ["opt-13b", "opt-66b", "opt-175b"])
def test_opt_counts_positions_biases_and_norms(name):
    """The published 12.84 and 65.69 B leave these out: 0.10 and 0.04 % of the model."""
    model = load_model(name)
    hidden, layers = model.hidden_size, model.num_layers
    positions = 2050 * hidden
    vectors = layers * (4 + 5 + 4) * hidden + 2 * hidden  # attention and FFN biases, norms
    matrices = layers * 12 * hidden**2 + 50272 * hidden
    assert matrices + positions + vectors == num_params(model)
    assert matrices / 1e9 == pytest.approx(PUBLISHED[name][0], abs=0.05 if "175" in name else 0.006)


def test_gpt_oss_active_count_leaves_out_no_embedding():
    """OpenAI's 5.1B are without the embedding: 5.71 - 201088 x 2880 / 1e9 = 5.13."""
    model = load_model("gpt-oss-120b")
    assert num_active_params(model) - embedding_params(model) == pytest.approx(5.13e9, rel=0.002)


def test_deepseek_v3_without_the_multi_token_prediction_layer():
    model = load_model("deepseek-v3")
    assert tuple(model.kind_counts().values()) == (3, 58)
    assert num_params(model) == 671_026_419_200
    assert 61 * attention_params(model.layer_kinds[0], model) == 61 * (187_107_328 - 1536 - 512)


def test_every_bundled_model_loads_and_is_whole():
    assert set(PUBLISHED) <= set(model_names())
    for name in model_names():
        model = load_model(name)
        assert name == model.name
        assert 0 < num_active_params(model) <= num_params(model)
        layers = sum(layer_params(model.layer_kinds[k], model) for k in model.layer_order)
        assert layers < num_params(model) < 2e12


def test_weight_bytes_follow_the_format():
    model = load_model("llama-3.1-8b")
    plain = 2 * 128256 * 4096 + (2 * 32 + 1) * 4096
    matrices = num_params(model) - plain
    for weight_format, byte in {"bf16": 2, "fp8": 1, "int8": 1, "int4_g128": 4.15625 / 8}.items():
        stored = load_model("llama-3.1-8b", weight_format=weight_format)
        assert 2 * plain + byte * matrices == weight_bytes(stored)


def test_weight_bytes_of_published_checkpoints():
    """Sizes of the published files: gpt-oss in MXFP4 65.25 and 13.76 GB."""
    assert weight_bytes(load_model("gpt-oss-120b")) / 1e9 == pytest.approx(65.25, abs=0.01)
    assert weight_bytes(load_model("gpt-oss-20b")) / 1e9 == pytest.approx(13.76, abs=0.01)
    model = load_model("gpt-oss-120b")
    layer = model.layer_kinds[0]
    assert (model.weight_format, model.expert_weight_format) == ("bf16", "mxfp4")
    assert expert_params(layer, model) == 3 * 2880 * 2880
    assert weight_bytes(load_model("gpt-oss-120b", weight_format="bf16")) == 2 * num_params(model)


def test_tied_head_has_no_parameters_of_its_own():
    assert lm_head_params(load_model("gemma-2-2b")) == 0
    assert lm_head_params(load_model("llama-3.1-8b")) == 128256 * 4096


def test_bundled_windows():
    assert _by_window("ministral-8b") == {32768: 27, 0: 9}
    assert _by_window("gpt-oss-120b") == {128: 18, 0: 18}
    assert _by_window("llama-4-scout") == {8192: 36, 0: 12}
    assert _by_window("gemma-2-27b") == {4096: 23, 0: 23}
    assert _by_window("mistral-7b") == {0: 32}


def _by_window(name):
    model = load_model(name)
    counts = model.kind_counts()
    return {model.layer_kinds[kind].attention.window: n for kind, n in counts.items()}


def test_head_dim_is_read_not_derived():
    for name, head_dim in {"gemma-2-2b": 256, "qwen3-32b": 128, "gpt-oss-120b": 64}.items():
        model = load_model(name)
        attention = model.layer_kinds[0].attention
        assert head_dim == attention.head_dim
        assert model.hidden_size != attention.num_q_heads * attention.head_dim


@pytest.mark.parametrize(
    ("identifier", "name", "weight_format"),
    [
        ("LLAMA-3.1-8B", "llama-3.1-8b", "bf16"),
        ("meta-llama/Llama-3.1-70B-Instruct", "llama-3.1-70b", "bf16"),
        ("meta-llama/Meta-Llama-3.1-8B", "llama-3.1-8b", "bf16"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama-2-7b", "fp16"),
        ("codellama/CodeLlama-34b-Instruct-hf", "codellama-34b", "bf16"),
        ("nvidia/Llama-3.3-70B-Instruct-FP8", "llama-3.3-70b", "fp8"),
        ("RedHatAI/Llama-4-Scout-17B-16E-Instruct-FP8-dynamic", "llama-4-scout", "fp8"),
        ("RedHatAI/Meta-Llama-3.1-8B-Instruct-quantized.w8a8", "llama-3.1-8b", "int8"),
        ("Qwen/Qwen2.5-7B-Instruct-AWQ", "qwen2.5-7b", "int4_g128"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b", "bf16"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3", "bf16"),
        ("mistralai/Ministral-8B-Instruct-2410", "ministral-8b", "bf16"),
        ("deepseek-ai/DeepSeek-R1", "deepseek-v3", "fp8"),
        ("google/gemma-2-27b-it", "gemma-2-27b", "bf16"),
    ],
)
def test_hugging_face_ids_lead_to_bundled_shapes(identifier, name, weight_format):
    model = load_model(identifier)
    assert (name, weight_format) == (model.name, model.weight_format)


def test_format_arguments_override_the_checkpoint():
    model = load_model("nvidia/Llama-3.3-70B-Instruct-FP8", weight_format="bf16", kv_format="fp8")
    assert (model.weight_format, model.kv_format) == ("bf16", "fp8")
    with pytest.raises(ConfigError, match="unknown weight format"):
        load_model("llama-3.1-8b", weight_format="fp7")


def test_a_path_to_a_config_or_its_folder(tmp_path: Path):
    folder = tmp_path / "My-Model"
    folder.mkdir()
    (folder / "config.json").write_text((CONFIGS / "models" / "llama-2-7b.json").read_text())
    assert load_model(str(folder)) == load_model(str(folder / "config.json"))
    assert load_model(str(folder)).name == "My-Model"


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[1]", "expected a JSON object"), ("\x00", "not valid JSON")],
)
def test_a_file_that_is_no_config(tmp_path: Path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_model(str(path))


def test_names_that_lead_nowhere():
    with pytest.raises(ConfigError, match=r"did you mean 'llama-3\.1-70b'"):
        load_model("llama-3.1-71b")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_model("missing/config.json")
    with pytest.raises(ConfigError, match="unknown model"):
        load_model("Qwen/Qwen3-30B-A3B-NVFP4")
    with pytest.raises(ConfigError, match="expected a name"):
        load_model(" ")


def test_bundled_configs_name_their_source():
    for path in (CONFIGS / "models").glob("*.json"):
        assert json.loads(path.read_text())["_source"], path
