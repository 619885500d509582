"""On a GPU: every default benchmark case agrees with its reference in its own dtype, and every
configuration of the tables gives the same answer; launches can be captured and repeated."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from kernels.cases import disagreement  # noqa: E402
from kernels.catalogue import LINEAR, benchmark_cases  # noqa: E402
from kernels.configs import capability, chips, configurations  # noqa: E402
from kernels.gemm import gemm  # noqa: E402
from kernels.gemm_fp8 import gemm_fp8, gemm_fp8_block, gemm_fp8_case  # noqa: E402
from kernels.gemm_int4 import gemm_int4, gemm_int4_case  # noqa: E402
from kernels.gemm_int8 import gemm_int8, gemm_int8_case  # noqa: E402
from kernels.grouped_gemm_cases import moe_case  # noqa: E402
from kernels.reference_linear import gemm_reference  # noqa: E402

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("case", benchmark_cases(LINEAR), ids=lambda case: case.name)
def test_case_agrees_with_its_reference(device, generator, case):
    if capability(device) < case.capability:
        pytest.skip(f"needs sm_{case.capability}")
    inputs = case.make_inputs(device, generator)
    assert case.problem(case.providers["headway"], inputs) == ""


@pytest.mark.parametrize("m", [1, 33, 300], ids=lambda m: f"M{m}")
def test_every_dense_configuration_agrees(poisoned, device, generator, m):
    a = torch.randn(m, 4112, generator=generator, device=device).bfloat16()
    b = torch.randn(520, 4112, generator=generator, device=device).bfloat16() / 64
    residual = torch.randn(m, 520, generator=generator, device=device).bfloat16()
    for config in configurations("gemm", capability(device)):
        for extra in ({}, {"bias": residual[0]}, {"residual": residual}):
            found = gemm(a, b, **extra, config=config)
            assert disagreement(found, gemm_reference(a, b, **extra), 2e-2) == "", config.label


QUANTISED = {
    "gemm_fp8": (gemm_fp8, lambda m: gemm_fp8_case(m=m, n=520, k=4112)),
    "gemm_fp8_block": (gemm_fp8_block, lambda m: gemm_fp8_case(m=m, n=520, k=4112, scales="block")),
    "gemm_int8": (gemm_int8, lambda m: gemm_int8_case(m=m, n=520, k=4112)),
    "gemm_int4": (gemm_int4, lambda m: gemm_int4_case(m=m, n=520, k=4096)),
}


@pytest.mark.parametrize("m", [1, 33, 300], ids=lambda m: f"M{m}")
@pytest.mark.parametrize("op", QUANTISED)
def test_every_quantised_configuration_agrees(poisoned, device, generator, op, m):
    if capability(device) < min(chips(op)):
        pytest.skip(f"{op} needs sm_{min(chips(op))}")
    run, make = QUANTISED[op]
    case = make(m)
    *inputs, arrivals = case.make_inputs(device, generator)
    truth = case.reference(*inputs, arrivals)
    for config in configurations(op, capability(device)):
        assert disagreement(run(*inputs, config=config), truth, 2e-2) == "", config.label


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_gemm_at_odd_shapes_with_the_tables_own_choice(poisoned, device, generator, dtype):
    for m, n, k in ((1, 1, 1), (7, 129, 33), (129, 255, 1023), (700, 1000, 520)):
        a = torch.randn(m, k, generator=generator, device=device).to(dtype)
        b = torch.randn(n, k, generator=generator, device=device).to(dtype)
        assert disagreement(gemm(a, b), gemm_reference(a, b), 2e-2) == "", (m, n, k)


def test_a_whole_expert_layer_replays_from_a_cuda_graph(device, generator):
    case = moe_case(num_tokens=64, num_experts=16, top_k=4, hidden_size=512, ffn_size=256, skew=1.0)
    inputs = case.make_inputs(device, generator)
    run = case.providers["headway"]
    expected = run(*inputs)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run(*inputs)
    captured.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, expected)


def test_split_k_repeats_bit_for_bit(device, generator):
    a = torch.randn(4, 8192, generator=generator, device=device).bfloat16()
    b = torch.randn(4096, 8192, generator=generator, device=device).bfloat16()
    arrivals = torch.zeros(4096, device=device, dtype=torch.int32)
    first = gemm(a, b, arrivals=arrivals)
    assert all(torch.equal(first, gemm(a, b, arrivals=arrivals)) for _ in range(50))
    assert int(arrivals.abs().sum()) == 0
