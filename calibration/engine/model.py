"""A Llama or a Mixtral with random weights, and its forward pass over a paged cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from calibration.engine.inputs import Fields, Sizes
from calibration.engine.operations import Operations
from calibration.engine.shapes import Shape
from calibration.measure import torch_module
from calibration.profile import kernels

Tensor = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """Weights as torch's Linear keeps them: [outputs, inputs]. H hidden, F feed-forward."""

    norm_1: Tensor  # [H]
    qkv: Tensor  # [(QH + 2 KH) D, H]
    out: Tensor  # [H, QH D]
    norm_2: Tensor  # [H]
    router: Tensor | None  # [E, H]; None: dense
    gate_up: Tensor  # [2F, H], or [E, 2F, H]
    down: Tensor  # [H, F], or [E, H, F]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """Weights of a shape, on one device, in one dtype."""

    shape: Shape
    embedding: Tensor  # [V, H]
    layers: tuple[Layer, ...]
    norm: Tensor  # [H]
    head: Tensor  # [V, H]
    angles: Tensor  # [positions, D] fp32: cosines, then sines


def random_model(shape: Shape, num_positions: int, device: Any, dtype: Any, seed: int) -> Model:
    """Normal weights of variance 1 / inputs; what a layer adds to the residual is scaled by
    1 / sqrt(2 layers), so that activations neither vanish nor overflow."""
    torch = torch_module()
    generator = torch.Generator(device=device).manual_seed(seed)

    def normal(*sizes: int, scale: float = 1.0) -> Tensor:
        weight = torch.empty(sizes, device=device, dtype=dtype)
        return weight.normal_(0.0, scale * sizes[-1] ** -0.5, generator=generator)

    def ones() -> Tensor:
        return torch.ones(shape.hidden_size, device=device, dtype=dtype)

    hidden, ffn, added = shape.hidden_size, shape.ffn_size, (2 * shape.num_layers) ** -0.5
    experts = (shape.num_experts,) if shape.num_experts else ()
    layers = tuple(
        Layer(
            norm_1=ones(), norm_2=ones(), qkv=normal(shape.qkv_size, hidden),
            out=normal(hidden, shape.num_q_heads * shape.head_dim, scale=added),
            router=normal(*experts, hidden) if experts else None,
            gate_up=normal(*experts, 2 * ffn, hidden),
            down=normal(*experts, hidden, ffn, scale=added),
        )
        for _ in range(shape.num_layers)
    )  # fmt: skip
    angles = kernels("rope_kv").cos_sin_cache(num_positions, shape.head_dim, shape.rope_base)
    return Model(
        shape=shape, layers=layers, norm=ones(), angles=angles.to(device),
        embedding=normal(shape.vocab_size, hidden, scale=hidden**0.5),
        head=normal(shape.vocab_size, hidden),
    )  # fmt: skip


def kv_cache(shape: Shape, num_blocks: int, block_tokens: int, device: Any, dtype: Any) -> Tensor:
    """Zeros [layers, 2, blocks, block_tokens, KH, D]."""
    return torch_module().zeros(
        shape.num_layers, 2, num_blocks, block_tokens, shape.num_kv_heads, shape.head_dim,
        device=device, dtype=dtype,
    )  # fmt: skip


def forward(
    model: Model, cache: Tensor, at: Fields, sizes: Sizes, ops: Operations, num_layers: int = 0
) -> Tensor:
    """Logits [sequences, V] after each sequence's last token of the batch; the cache is written.

    `num_layers`: only the first so many layers; 0 is all.
    """
    shape, eps = model.shape, model.shape.norm_eps
    x = torch_module().nn.functional.embedding(at.tokens, model.embedding)
    residual = None
    for number, layer in enumerate(model.layers[: num_layers or None]):
        h = ops.norm(x, residual, layer.norm_1, eps)
        residual = x if residual is None else residual
        x = ops.linear(_attention(h, layer, model, cache[number], at, sizes, ops), layer.out)
        h = ops.norm(x, residual, layer.norm_2, eps)
        x = _experts(h, layer, shape, ops) if shape.num_experts else _ffn(h, layer, ops)
    rows = at.last
    h = ops.norm(x[rows], residual[rows], model.norm, eps)  # type: ignore[index]
    return ops.linear(h, model.head)


def _attention(
    h: Tensor, layer: Layer, model: Model, cache: Tensor, at: Fields, sizes: Sizes, ops: Operations
) -> Tensor:
    """h [T, H] -> [T, QH D]."""
    shape, caches = model.shape, (cache[0], cache[1])
    heads = ops.linear(h, layer.qkv).view(sizes.tokens, -1, shape.head_dim)
    groups = [shape.num_q_heads, shape.num_kv_heads, shape.num_kv_heads]
    q, k, v = torch_module().split(heads, groups, 1)
    q = ops.rope(q, k, v, model.angles, at, caches)
    out = torch_module().empty_like(q)
    if sizes.decodes:
        ops.decodes(q[: sizes.decodes], caches, at, out[: sizes.decodes])
    if sizes.chunks:
        ops.chunks(q[sizes.decodes :], caches, at, sizes.longest_chunk, out[sizes.decodes :])
    return out.view(sizes.tokens, -1)


def _ffn(h: Tensor, layer: Layer, ops: Operations) -> Tensor:
    return ops.linear(ops.gated(ops.linear(h, layer.gate_up)), layer.down)


def _experts(h: Tensor, layer: Layer, shape: Shape, ops: Operations) -> Tensor:
    """The likeliest experts of each token, their weights normalised to 1."""
    scores = ops.linear(h, layer.router).float()
    best, chosen = scores.topk(shape.experts_per_token, -1)
    return ops.experts(h, layer.gate_up, layer.down, chosen, best.softmax(-1))
