"""The attention benchmark cases: names, counted work, inputs, and the torch providers."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from kernels import decode_cases, prefill_cases  # noqa: E402
from kernels.decode_cases import decode_attention_case, mla_decode_case  # noqa: E402
from kernels.prefill_cases import (  # noqa: E402
    block_sparse_attention_case,
    prefill_attention_case,
    sparse_work,
)
from kernels.reference_attention import sparse_mask  # noqa: E402

HEADS = {"num_q_heads": 4, "num_kv_heads": 2, "head_dim": 64}
SMALL = [
    decode_attention_case(num_seqs=3, kv_tokens=70, **HEADS),
    decode_attention_case(num_seqs=3, kv_tokens=20, long_tokens=130, num_queries=2, **HEADS),
    decode_attention_case(num_seqs=2, kv_tokens=70, window=32, **HEADS),
    decode_attention_case(num_seqs=2, kv_tokens=70, kv_format="fp8", softcap=20.0, **HEADS),
    decode_attention_case(num_seqs=2, kv_tokens=70, kv_format="int8", block_tokens=64, **HEADS),
    mla_decode_case(num_seqs=2, kv_tokens=70, num_heads=16),
    prefill_attention_case(num_seqs=2, num_tokens=65, **HEADS),
    prefill_attention_case(num_seqs=2, num_tokens=33, context_tokens=40, **HEADS),
    prefill_attention_case(num_seqs=1, num_tokens=33, context_tokens=9, block_tokens=0, **HEADS),
    prefill_attention_case(num_seqs=1, num_tokens=65, window=32, kv_format="fp8", **HEADS),
    prefill_attention_case(
        num_seqs=1, num_tokens=33, num_decodes=3, decode_kv_tokens=50, softcap=20.0, **HEADS
    ),
    block_sparse_attention_case(num_tokens=200, local=1, stride=2, **HEADS),
]


def test_cases_are_named_by_shape_and_count_their_work():
    cases = decode_cases.benchmark_cases() + prefill_cases.benchmark_cases()
    assert len({case.name for case in cases}) == len(cases)
    assert all(case.bytes > 0 and case.flops > 0 for case in cases)


def test_work_of_decode_by_hand():
    case = decode_attention_case(num_seqs=3, kv_tokens=100, **HEADS)
    assert 3 * 100 * 4 * 64 * 4 == case.flops  # keys, heads, head size, 2 x (2 FLOPs)
    assert 2 * 3 * 100 * 2 * 64 * 2 + 2 * 3 * 4 * 64 * 2 == case.bytes  # K and V, then q and out


def test_work_of_a_window_and_of_drafted_tokens_by_hand():
    case = decode_attention_case(num_seqs=1, kv_tokens=100, window=10, num_queries=3, **HEADS)
    assert 3 * 10 * 4 * 64 * 4 == case.flops
    assert 2 * 12 * 2 * 64 * 2 + 2 * 3 * 4 * 64 * 2 == case.bytes
    case = decode_attention_case(num_seqs=1, kv_tokens=100, num_queries=3, **HEADS)
    assert (98 + 99 + 100) * 4 * 64 * 4 == case.flops


def test_work_of_a_chunk_over_cached_context_by_hand():
    case = prefill_attention_case(num_seqs=2, num_tokens=3, context_tokens=10, **HEADS)
    assert 2 * (11 + 12 + 13) * 4 * 64 * 4 == case.flops


@pytest.mark.parametrize("row", [[1, 2, 3, 0], [0, 1, 0, 0], [2, 1, 4, 3]], ids=str)
@pytest.mark.parametrize(("context", "chunk"), [(100, 100), (700, 130), (641, 1)])
def test_work_of_a_sparse_pattern_is_what_its_mask_shows(row, context, chunk):
    pairs, keys = sparse_work(row, context, chunk)
    mask = sparse_mask(row, context, chunk)
    blocks = mask.any(0).nonzero().flatten() // 64
    assert int(mask.sum()) == pairs
    assert min(len(blocks.unique()) * 64, context) == keys


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_inputs_suit_the_reference_and_sdpa_agrees_with_it(case, generator):
    """On the CPU the kernels' bf16 is not emulated; the reference and SDPA are torch's own."""
    inputs = case.make_inputs(generator.device, generator)
    out = case.reference(*inputs)
    assert out.isfinite().all()
    assert out.abs().max() > 0
    if "sdpa" in case.providers:
        assert case.problem(case.providers["sdpa"], inputs) == ""


@pytest.mark.gpu
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_every_provider_agrees_with_the_reference(case, generator):
    inputs = case.make_inputs(generator.device, generator)
    problems = {name: case.problem(run, inputs) for name, run in case.providers.items()}
    assert dict.fromkeys(problems, "") == problems
