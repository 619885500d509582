"""Configuration tables, benchmark cases and the package marker."""

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

import kernels  # noqa: E402
from kernels.cases import disagreement  # noqa: E402
from kernels.catalogue import LINEAR, benchmark_cases  # noqa: E402
from kernels.configs import Config, chips, configurations, pick  # noqa: E402
from kernels.elementwise import gated_case, rmsnorm_case  # noqa: E402
from kernels.gemm import gemm_case  # noqa: E402
from kernels.gemm_fp8 import gemm_fp8_case  # noqa: E402
from kernels.gemm_int4 import gemm_int4_case  # noqa: E402
from kernels.gemm_int8 import gemm_int8_case  # noqa: E402
from kernels.grouped_gemm_cases import grouped_gemm_case, moe_case  # noqa: E402
from kernels.kv_copy import kv_copy_case  # noqa: E402
from kernels.quantize import quantize_case  # noqa: E402
from kernels.rope_kv import rope_kv_case  # noqa: E402
from kernels.sampling import sample_case  # noqa: E402

OPS = ("gemm", "gemm_fp8", "gemm_fp8_block", "gemm_int8", "gemm_int4", "grouped_gemm")


def test_the_package_is_ours():
    assert kernels.HEADWAY
    assert Path(kernels.__file__).parent == Path(__file__).parents[2] / "kernels"


@pytest.mark.parametrize("op", OPS)
def test_every_shape_has_a_configuration(op):
    for chip in (c for c in (80, 90, 100, 103) if c >= min(chips(op))):
        assert configurations(op, chip)
        for m in (1, 17, 100, 600, 100_000):
            for n in (64, 100_000):
                assert not pick(op, chip, tma=False, m=m, n=n, k=4096).TMA
                pick(op, chip, tma=True, m=m, n=n, k=4096)


def test_a_chip_without_the_type_is_refused_by_name():
    assert configurations("gemm_fp8", 80) == []
    with pytest.raises(ValueError, match="gemm_fp8 needs sm_90 or later, this is sm_80"):
        pick("gemm_fp8", 80, m=1)


def test_a_persistent_configuration_does_not_split():
    with pytest.raises(ValueError, match="does not split K"):
        Config(TMA=True, SPLIT_K=2)


def test_small_m_splits_and_large_m_is_persistent_on_sm_90():
    assert pick("gemm", 90, m=1, n=4096, k=4096).SPLIT_K > 1
    assert pick("gemm", 90, m=8192, n=4096, k=4096).TMA


def test_case_names_are_unique_and_work_is_positive():
    cases = benchmark_cases(LINEAR)
    assert len({case.name for case in cases}) == len(cases)
    assert all(case.bytes > 0 and case.flops >= 0 and case.providers for case in cases)


TINY = [
    gemm_case(m=3, n=40, k=24, dtype="fp16"),
    gemm_fp8_case(m=3, n=48, k=128, scales="tensor"),
    gemm_fp8_case(m=3, n=48, k=128, scales="row"),
    gemm_fp8_case(m=3, n=48, k=128, scales="block"),
    gemm_int8_case(m=3, n=48, k=64),
    gemm_int4_case(m=3, n=40, k=128, dtype="fp16"),
    grouped_gemm_case(num_tokens=5, num_experts=3, top_k=2, n=24, k=40, skew=1.0, dtype="fp16"),
    moe_case(num_tokens=3, num_experts=4, top_k=2, hidden_size=32, ffn_size=24, dtype="fp16"),
    quantize_case(num_tokens=3, k=256, group=128, dtype="int8"),
    rmsnorm_case(num_tokens=3, hidden_size=100, dtype="fp16"),
    gated_case(num_tokens=3, ffn_size=50, dtype="fp16"),
    rope_kv_case(num_tokens=4, num_q_heads=4, num_kv_heads=2, head_dim=32, dtype="fp16"),
    sample_case(num_seqs=3, vocab_size=500, greedy=True, dtype="fp16"),
    sample_case(num_seqs=3, vocab_size=500, greedy=False, dtype="fp16"),
    kv_copy_case(num_blocks=4, block_bytes=128, to_host=False),
    kv_copy_case(num_blocks=4, block_bytes=128, to_host=True),
]


@pytest.mark.parametrize("case", TINY, ids=lambda case: case.name)
def test_our_provider_passes_its_own_check(device, generator, case):
    inputs = case.make_inputs(device, generator)
    assert case.problem(case.providers["headway"], inputs) == ""


def test_a_wrong_or_unfinished_output_is_caught():
    truth = torch.ones(4)
    assert disagreement(truth.clone(), truth, 1e-6) == ""
    assert "shape" in disagreement(torch.ones(5), truth, 1e-6)
    assert "flat index 2" in disagreement(torch.tensor([1, 1, 1.5, 1]), truth, 1e-2)
    assert "nan" in disagreement(torch.tensor([1, float("nan"), 1, 1]), truth, 1e-2)


def test_enough_copies_to_defeat_the_cache():
    case = gemm_case(m=1, n=1024, k=1024)
    assert case.copies(50_000_000) * case.bytes >= 2 * 50_000_000
    assert gemm_case(m=8192, n=8192, k=8192).copies(50_000_000) == 2
