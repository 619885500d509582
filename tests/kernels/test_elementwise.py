"""Norm, activation, rope + KV write, sampling and block copies against naive torch."""

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from kernels.cases import disagreement  # noqa: E402
from kernels.elementwise import add_rmsnorm, gated_activation  # noqa: E402
from kernels.kv_copy import copy_blocks, gather_pairs  # noqa: E402
from kernels.reference_linear import (  # noqa: E402
    copy_blocks_reference,
    gated_reference,
    philox_uniform,
    rmsnorm_reference,
    rope_reference,
    sample_reference,
    write_kv_reference,
)
from kernels.rope_kv import cos_sin_cache, rope_kv  # noqa: E402
from kernels.sampling import PART, sample  # noqa: E402

FP8 = torch.float8_e4m3fn


def normal(generator, device, *shape, dtype=torch.float16):
    return torch.randn(*shape, generator=generator, device=device).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=["fp16", "fp32"])
@pytest.mark.parametrize(("tokens", "hidden"), [(1, 1), (3, 1000), (5, 2560)], ids=str)
def test_add_rmsnorm(poisoned, device, generator, tokens, hidden, dtype):
    x, residual = (normal(generator, device, tokens, hidden, dtype=dtype) for _ in range(2))
    weight = normal(generator, device, hidden, dtype=dtype)
    truth, sum_ = rmsnorm_reference(x, residual, weight, 1e-6)
    found = add_rmsnorm(x, residual, weight)
    assert disagreement((found, residual), (truth, sum_), 3e-3) == ""


def test_rmsnorm_without_residual_and_with_gemma_weights(poisoned, device, generator):
    x = normal(generator, device, 4, 200)[:, :130]
    weight = normal(generator, device, 130)
    found = add_rmsnorm(x, None, weight, weight_offset=1.0)
    assert disagreement(found, rmsnorm_reference(x, None, weight + 1, 1e-6)[0], 3e-3) == ""


@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize(("tokens", "ffn"), [(1, 7), (3, 2500)], ids=str)
def test_gated_activation(poisoned, device, generator, tokens, ffn, activation):
    x = normal(generator, device, tokens, 2 * ffn) * 4
    found = gated_activation(x, activation)
    assert disagreement(found, gated_reference(x, activation), 3e-3) == ""


def test_an_unknown_activation_is_refused(device):
    with pytest.raises(ValueError, match="'relu'"):
        gated_activation(torch.zeros(1, 2, device=device), "relu")


HEADS = [(5, 8, 2, 64, 64), (3, 9, 1, 80, 80), (4, 12, 12, 96, 32)]
HEAD_IDS = [f"T{t}-QH{q}-KH{k}-D{d}-R{r}" for t, q, k, d, r in HEADS]


def rope_inputs(generator, device, tokens, q_heads, kv_heads, head_dim, rotary):
    qkv = normal(generator, device, tokens, q_heads + 2 * kv_heads, head_dim)
    positions = torch.randint(0, 50, (tokens,), generator=generator, device=device)
    slots = torch.randperm(24, generator=generator, device=device)[:tokens]
    slots[1] = -1
    table = cos_sin_cache(50, rotary).to(device)
    return *qkv.split((q_heads, kv_heads, kv_heads), 1), table, positions, slots


@pytest.mark.parametrize("shape", HEADS, ids=HEAD_IDS)
def test_rope_and_kv_write(device, generator, shape):
    q, k, v, table, positions, slots = rope_inputs(generator, device, *shape)
    caches = [normal(generator, device, 6, 4, shape[2], shape[3]) for _ in range(2)]
    truth = (
        rope_reference(q, table, positions),
        *(
            write_kv_reference(cache, x, slots, 1.0)
            for cache, x in zip(caches, (rope_reference(k, table, positions), v), strict=True)
        ),
    )
    rope_kv(q, k, v, table, positions, slots, *caches)
    assert disagreement((q, *caches), truth, 2e-3) == ""


@pytest.mark.parametrize("dtype", [torch.int8, FP8], ids=["int8", "fp8"])
@pytest.mark.parametrize("kind", ["head", "token"])
def test_quantised_kv_write_comes_back_within_a_code(device, generator, dtype, kind):
    q, k, v, table, positions, slots = rope_inputs(generator, device, 5, 4, 3, 64, 64)
    exact = rope_reference(k, table, positions).float(), v.float()
    caches = [torch.zeros(6, 4, 3, 64, device=device).to(dtype) for _ in range(2)]
    largest = 127.0 if dtype == torch.int8 else 448.0
    scales = [torch.full((3,) if kind == "head" else (6, 4, 3), 6.0 / largest, device=device)] * 2
    scales = [s.clone() for s in scales]
    rope_kv(q, k, v, table, positions, slots, *caches, *scales)
    kept = slots >= 0
    for cache, scale, truth in zip(caches, scales, exact, strict=True):
        by_slot = scale if kind == "head" else scale.view(-1, 3)[slots[kept]]
        back = cache.float().view(24, 3, 64)[slots[kept]] * by_slot[..., None]
        if kind == "token":
            largest_found = truth[kept].abs().amax(-1) / largest
            assert torch.allclose(by_slot, largest_found, rtol=1e-5)
        error = (back - truth[kept]).abs() / by_slot[..., None]
        # Half a code of int8; 2^-4 of an e4m3 value, but where the interpreter loses the carry into
        # the next power of two (see test_gemm.without_carry): 3 % of values or so.
        code = truth[kept].abs() / by_slot[..., None]
        wrong = error > (0.51 if dtype == torch.int8 else code / 15 + 0.01)
        lost_carries = 0.08 if dtype == FP8 and device.type == "cpu" else 0.0
        assert float(wrong.float().mean()) <= lost_carries


@pytest.mark.parametrize("vocab", [5, PART, PART + 1, 2 * PART + 77], ids=lambda v: f"V{v}")
def test_greedy_takes_the_first_maximum(poisoned, device, generator, vocab):
    logits = torch.randint(-3, 4, (3, vocab), generator=generator, device=device).half()
    greedy = torch.zeros(3, device=device)
    assert sample(logits, greedy, 1).tolist() == [
        int((row == row.max()).nonzero()[0]) for row in logits
    ]


def test_uniforms_are_philox(device, generator):
    logits = normal(generator, device, 4, PART + 100, dtype=torch.float32)
    heat = torch.tensor([1.0, 0.3, 0.0, 5.0], device=device)
    assert torch.equal(sample(logits, heat, 99), sample_reference(logits, heat, 99))


def test_reference_uniforms_look_uniform():
    u = philox_uniform(3, torch.arange(20_000))
    assert 0.0 <= float(u.min()) < float(u.max()) < 1.0
    assert abs(float(u.mean()) - 0.5) < 0.01
    assert abs(float(u.var()) - 1 / 12) < 0.003


def test_samples_follow_the_softmax(device):
    logits = torch.tensor([[1.0, 0.0, -1.0, 2.0]], device=device).repeat(1500, 1)
    heat = torch.full((1500,), 0.8, device=device)
    counts = torch.bincount(sample_reference(logits, heat, 5), minlength=4).float()
    expected = torch.softmax(logits[0] / 0.8, -1) * 1500
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.3  # chi-square, 3 dof, p = 0.001


@pytest.mark.parametrize("shape", [(3, 2, 5, 4), (2, 9000)], ids=str)
def test_blocks_move_and_the_others_stay(device, generator, shape):
    source = normal(generator, device, 9, *shape)
    target = normal(generator, device, 7, *shape)
    pairs = torch.tensor([[8, 0], [0, 6], [3, 2]], device=device)
    truth = copy_blocks_reference(source, target, pairs)
    copy_blocks(source, target, pairs)
    assert torch.equal(target, truth)


def test_gather_then_scatter_restores_the_cache(poisoned, device, generator):
    cache = normal(generator, device, 10, 33, 4)
    blocks = torch.tensor([7, 1, 4], device=device)
    staging = torch.empty(3, 33, 4, device=device, dtype=torch.float16)
    copy_blocks(cache, staging, gather_pairs(blocks))
    assert torch.equal(staging, cache[blocks])
    wiped = cache.clone()
    wiped[blocks] = math.nan
    copy_blocks(staging, wiped, gather_pairs(blocks).flip(1))
    assert torch.equal(wiped, cache)


def test_blocks_of_odd_bytes_are_refused(device):
    odd = torch.zeros(2, 3, device=device, dtype=torch.float16)
    with pytest.raises(ValueError, match="multiple of 8 bytes"):
        copy_blocks(odd, odd.clone(), torch.zeros(1, 2, device=device, dtype=torch.int64))
