"""Routing and the grouped GEMM against a loop over tokens, with empty and crowded experts."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from kernels.cases import disagreement  # noqa: E402
from kernels.configs import Config  # noqa: E402
from kernels.grouped_gemm import grouped_gemm, moe, route  # noqa: E402
from kernels.grouped_gemm_cases import draw_experts  # noqa: E402
from kernels.reference_linear import (  # noqa: E402
    grouped_reference,
    moe_reference,
    quantize_reference,
)

SMALL = Config(BLOCK_M=16, BLOCK_N=32, BLOCK_K=32, GROUP_M=2)


@pytest.mark.parametrize("skew", [0.0, 2.0], ids=["balanced", "skewed"])
@pytest.mark.parametrize(("num_tokens", "num_experts", "top_k"), [(1, 8, 2), (37, 5, 2), (9, 3, 1)])
def test_every_pair_has_one_tile_row(device, generator, num_tokens, num_experts, top_k, skew):
    experts = draw_experts(num_tokens, num_experts, top_k, skew, generator)
    routing = route(experts, num_experts, 16)
    offsets, pairs = routing.offsets.tolist(), num_tokens * top_k
    assert sorted(routing.order.tolist()) == list(range(pairs))
    owners = experts.flatten()[routing.order.long()]
    assert bool((owners[1:] >= owners[:-1]).all())
    seen = []
    for expert, row in zip(routing.tile_expert.tolist(), routing.tile_row.tolist(), strict=True):
        if expert < num_experts:
            seen += range(row, min(row + 16, offsets[expert + 1]))
    assert seen == list(range(pairs))


def test_all_tokens_on_one_expert(device):
    routing = route(torch.full((33, 1), 2, device=device), 4, 16)
    assert routing.offsets.tolist() == [0, 0, 0, 33, 33]
    assert [e for e in routing.tile_expert.tolist() if e < 4] == [2, 2, 2]


@pytest.mark.parametrize(
    ("tokens", "experts", "top_k", "hidden", "ffn", "skew"),
    [(1, 4, 2, 40, 24, 0.0), (21, 5, 2, 72, 33, 2.0)],
    ids=["T1-E4-balanced", "T21-E5-skewed"],
)
def test_moe_layer(poisoned, device, generator, tokens, experts, top_k, hidden, ffn, skew):
    def normal(*shape):
        x = torch.randn(*shape, generator=generator, device=device)
        return (x / shape[-1] ** 0.5).half()

    x, gate_up, down = normal(tokens, hidden) * 8, normal(experts, 2 * ffn, hidden), None
    down = normal(experts, hidden, ffn)
    chosen = draw_experts(tokens, experts, top_k, skew, generator)
    weights = torch.rand(tokens, top_k, generator=generator, device=device)
    found = moe(x, gate_up, down, chosen, weights, SMALL)
    assert disagreement(found, moe_reference(x, gate_up, down, chosen, weights), 6e-3) == ""


def test_fp8_experts_with_row_scales(poisoned, device, generator):
    tokens, experts, n, k, top_k = 19, 3, 40, 96, 2
    a = torch.randn(tokens, k, generator=generator, device=device)
    b = torch.randn(experts, n, k, generator=generator, device=device)
    qa, sa = quantize_reference(a, k, torch.float8_e4m3fn)
    qb, sb = quantize_reference(b.view(-1, k), k, torch.float8_e4m3fn)
    chosen = draw_experts(tokens, experts, top_k, 1.0, generator)
    ones = torch.ones(tokens * top_k, device=device)
    found = grouped_gemm(
        qa, qb.view(experts, n, k), route(chosen, experts, 16), top_k=top_k, gather=True,
        pair_weights=ones, scale_a=sa.view(-1), scale_b=sb.view(experts, n),
        out_dtype=torch.float16, config=SMALL,
    )  # fmt: skip
    rows = (qa.float() * sa).repeat_interleave(top_k, 0)
    weights = qb.float().view(experts, n, k) * sb.view(experts, n, 1)
    truth = grouped_reference(rows, weights, chosen.flatten())
    assert disagreement(found, truth, 4e-3) == ""


def test_routing_of_another_tile_height_is_refused(device):
    a, b = torch.zeros(4, 8, device=device), torch.zeros(2, 8, 8, device=device)
    routing = route(torch.zeros(4, 1, device=device, dtype=torch.int64), 2, 64)
    with pytest.raises(ValueError, match="64 rows"):
        grouped_gemm(a, b, routing, top_k=1, gather=True, config=SMALL)
