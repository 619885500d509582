"""MLA decode against its reference, at odd context lengths, in poisoned memory."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from kernels.cases import disagreement  # noqa: E402
from kernels.mla_decode import mla_decode  # noqa: E402
from kernels.reference_attention import mla_decode_reference  # noqa: E402
from tests.kernels.attention_support import (  # noqa: E402
    TOLERANCE,
    block_table,
    fill,
    int32,
    name,
    poison,
    random_values,
)


def check(generator, *, h=16, bt=16, lens=(1, 17, 63), dtype=torch.float16, splits=1):
    device = generator.device
    table, num_blocks = block_table(lens, bt, generator)
    cache = poison((num_blocks, bt, 576), dtype, device)
    for s, context in enumerate(lens):
        fill(cache, table[s], 0, context, generator)
    q = random_values((len(lens), h, 576), dtype, generator)
    args = (q, cache, table, int32(list(lens), device))
    found = mla_decode(*args, softmax_scale=192**-0.5, num_splits=splits)
    truth = mla_decode_reference(*args, softmax_scale=192**-0.5)
    assert disagreement(found, truth, TOLERANCE[dtype]) == ""


@pytest.mark.parametrize(
    "shape",
    [
        {"h": 16, "bt": 16},
        {"h": 7, "bt": 32},
        {"h": 20, "bt": 64},
        {"h": 70, "bt": 128, "lens": (15, 130)},  # two head tiles
    ],
    ids=name,
)
@pytest.mark.parametrize("splits", [1, 3], ids=lambda s: f"splits{s}")
def test_matches_reference(shape, splits, generator, poisoned):
    check(generator, **shape, splits=splits)


def test_fp32_and_long_context(generator, poisoned):
    check(generator, lens=(1000, 16, 0), dtype=torch.float32, splits=7)


def test_empty_sequence_gives_zeros(generator, poisoned):
    check(generator, lens=(0, 15), splits=1)


def test_other_widths_are_refused(generator):
    cache = poison((1, 16, 512), torch.float16, generator.device)
    q = random_values((1, 16, 512), torch.float16, generator)
    lens = int32([16], generator.device)
    with pytest.raises(ValueError, match="576 columns"):
        mla_decode(q, cache, lens[:, None], lens, softmax_scale=1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("h", [8, 16, 32, 128], ids=lambda h: f"H{h}")
@pytest.mark.parametrize("bt", [16, 32, 64, 128], ids=lambda b: f"B{b}")
def test_wide_grid(h, bt, generator, poisoned):
    lens = (1, 16, 63, 1000, 4097, 0, 333)
    check(generator, h=h, bt=bt, lens=lens, dtype=torch.bfloat16, splits=None)
