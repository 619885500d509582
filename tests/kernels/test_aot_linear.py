"""Every configuration of the linear kernels compiles for each chip, inside its limits, unspilled.

All jobs are compiled once, by fresh processes that do not interpret; a test reads its own reports.
"""

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from kernels.catalogue import LINEAR, aot_jobs
from kernels.compile import LIMITS, TARGETS, AotJob, AotReport, compile_all


@pytest.fixture(scope="module")
def reports():
    """Reports of every job of every chip."""
    return compile_all([job for target in TARGETS for job in aot_jobs(target, LINEAR)])


@pytest.mark.parametrize("module", LINEAR)
@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"sm_{t}")
def test_every_configuration_fits_its_chip(reports, target, module):
    kernels = {job.kernel for job in aot_jobs(target, (module,))}
    mine = [r for r in reports if r.target == target and r.kernel in kernels]
    assert [r.problem for r in mine if r.problem] == []
    assert all(r.registers for r in mine)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: f"sm_{t}")
def test_jobs_are_named_apart(target):
    names = [(job.kernel, job.config) for job in aot_jobs(target, LINEAR)]
    assert len(names) == len(set(names))


def test_fp8_jobs_start_at_sm_90():
    types = [t for job in aot_jobs(80, LINEAR) for t in job.signature.values()]
    assert not any("fp8" in t for t in types)
    assert any("fp8" in t for job in aot_jobs(90, LINEAR) for t in job.signature.values())


def test_a_report_says_what_is_wrong_in_one_line():
    named = {"kernel": "k:f", "target": 80, "config": "c"}
    assert AotReport(**named, shared_bytes=1024, registers=64, spills=0).problem == ""
    too_much = AotReport(**named, shared_bytes=LIMITS[80].shared_bytes + 1)
    assert "bytes of shared memory > 166912" in too_much.problem
    assert "spills 8 bytes" in AotReport(**named, spills=8).problem
    assert "does not compile: E: x" in AotReport(**named, error="E: x").problem


def test_a_kernel_that_cannot_compile_is_a_report_not_a_crash():
    job = aot_jobs(90, ("gemm",))[0]
    broken = AotJob(
        kernel=job.kernel, config="broken", target=90, signature=job.signature,
        constants={**job.constants, "BLOCK_N": 48}, num_warps=4,
    )  # fmt: skip
    (report,) = compile_all([broken], workers=1)
    assert "does not compile" in report.problem
