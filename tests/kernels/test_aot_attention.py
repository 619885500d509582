"""Every attention configuration compiles for every chip, inside its limits and without spilling."""

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from kernels import decode_cases, prefill_cases
from kernels.attention_configs import OPS, pick, table_rows
from kernels.compile import TARGETS, compile_all

JOBS = [job for chip in TARGETS for part in (decode_cases, prefill_cases)
        for job in part.aot_jobs(chip)]  # fmt: skip


def test_every_configuration_fits_its_chip_without_spilling():
    reports = compile_all(JOBS)
    assert [] == [report.problem for report in reports if report.problem]
    assert all(report.registers and report.spills == 0 for report in reports)
    attention = [r for r in reports if not r.kernel.endswith("reduce_splits")]
    assert all(report.shared_bytes > 0 for report in attention)


def test_every_row_of_the_tables_is_compiled():
    compiled = {(job.kernel.split(":")[1], job.target, job.config) for job in JOBS}
    assert len(compiled) == len(JOBS)
    for op in OPS:
        for chip in TARGETS:
            labels = {row.label for _, row in table_rows(op, chip)}
            done = {
                c for kernel, target, c in compiled if (kernel, target) == (f"{op}_kernel", chip)
            }
            assert all(any(label in config for config in done) for label in labels)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("rows", [1, 16, 17, 64, 4096])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_every_shape_has_a_configuration(op, rows, head_dim, device):
    assert pick(op, device, head_dim=head_dim, rows=rows).block_m >= 16


def test_chips_older_than_the_tables_are_refused():
    with pytest.raises(ValueError, match="needs sm_80 or later, not sm_75"):
        table_rows("mla_decode", 75)
