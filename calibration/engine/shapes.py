"""Shapes of models that the engine serves with random weights.

A shape is as much of a Llama or Mixtral as its speed depends on. `hf_config` writes it as the
config.json that Headway and transformers read, so that whoever prices the run prices the same
model.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A dense Llama, or a Mixtral where num_experts > 0; bf16 on a GPU."""

    name: str
    model_hf: str  # as `simulator.catalog` knows it; empty: by the path of its config.json
    hidden_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int  # of one expert where num_experts > 0
    vocab_size: int
    max_context_tokens: int
    num_experts: int = 0
    experts_per_token: int = 0
    rope_base: float = 5e5
    norm_eps: float = 1e-5

    @property
    def qkv_size(self) -> int:
        """Outputs of the joint projection to queries, keys and values."""
        return (self.num_q_heads + 2 * self.num_kv_heads) * self.head_dim

    def kv_bytes_per_token(self, element_bytes: int = 2) -> int:
        """Keys and values of one token over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * element_bytes

    def num_params(self, *, active: bool = False) -> int:
        """Weights; `active`: of the experts, only those a token visits."""
        out_size = self.num_q_heads * self.head_dim
        attention = self.hidden_size * (self.qkv_size + out_size)
        experts = self.experts_per_token if active else self.num_experts
        ffn = 3 * self.hidden_size * self.ffn_size * max(experts, 1)
        layer = attention + ffn + self.hidden_size * (self.num_experts + 2)
        return self.num_layers * layer + (2 * self.vocab_size + 1) * self.hidden_size

    def hf_config(self) -> dict[str, object]:
        """Contents of its config.json."""
        config: dict[str, object] = {
            "architectures": ["MixtralForCausalLM" if self.num_experts else "LlamaForCausalLM"],
            "model_type": "mixtral" if self.num_experts else "llama",
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_q_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.ffn_size,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_context_tokens,
            "rope_theta": self.rope_base,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }
        if self.num_experts:
            config |= {
                "num_local_experts": self.num_experts,
                "num_experts_per_tok": self.experts_per_token,
                "sliding_window": None,
            }
        return config


_TINY = {
    "model_hf": "", "hidden_size": 128, "num_layers": 2, "num_q_heads": 2, "num_kv_heads": 1,
    "head_dim": 64, "ffn_size": 96, "vocab_size": 192, "max_context_tokens": 4096,
}  # fmt: skip
# small-moe: attention and experts of Qwen3-30B-A3B, a third of its layers, without its norms of
# queries and keys: 20 GB of weights that the tables of measured experts cover.
SHAPES: dict[str, Shape] = {
    shape.name: shape
    for shape in (
        Shape(
            name="llama-3.1-8b", model_hf="meta-llama/Llama-3.1-8B", hidden_size=4096,
            num_layers=32, num_q_heads=32, num_kv_heads=8, head_dim=128, ffn_size=14336,
            vocab_size=128256, max_context_tokens=131072,
        ),
        Shape(
            name="small-moe", model_hf="headway-small-moe", hidden_size=2048, num_layers=16,
            num_q_heads=32, num_kv_heads=4, head_dim=128, ffn_size=768, vocab_size=151936,
            max_context_tokens=40960, num_experts=128, experts_per_token=8, rope_base=1e6,
        ),
        Shape(name="tiny", **_TINY),  # type: ignore[arg-type]
        Shape(name="tiny-moe", num_experts=4, experts_per_token=2, **_TINY),  # type: ignore[arg-type]
    )
}  # fmt: skip
