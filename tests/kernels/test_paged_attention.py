"""Decode attention against its reference, at odd context lengths, in poisoned memory."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from kernels.attention_tiles import choose_num_splits  # noqa: E402
from kernels.cases import disagreement  # noqa: E402
from kernels.paged_attention import paged_attention  # noqa: E402
from kernels.reference_attention import paged_attention_reference  # noqa: E402
from tests.kernels.attention_support import (  # noqa: E402
    TOLERANCE,
    int32,
    name,
    paged_cache,
    random_values,
)

LENS = [1, 15, 16, 17, 63, 0, 130]


def check(generator, *, q=1, h=4, kv=1, d=64, bt=16, lens=LENS, window=0, softcap=0.0, sinks=False,
          dtype=torch.float16, stored=None, scales="", splits=1):  # fmt: skip
    device = generator.device
    firsts = [max(n - q + 1 - window, 0) for n in lens] if window else None
    cache = paged_cache(lens, bt, kv, d, stored or dtype, generator, firsts, scales)
    query = random_values((len(lens), q, h, d), dtype, generator)
    options = {"window": window, "softcap": softcap, **cache.scales}
    if sinks:
        options["sinks"] = torch.randn(h, generator=generator, device=device)
    args = (query, cache.k, cache.v, cache.table, int32(lens, device))
    found = paged_attention(*args, num_splits=splits, **options)
    truth = paged_attention_reference(*args, **options)
    assert disagreement(found, truth, TOLERANCE[dtype]) == ""


@pytest.mark.parametrize(
    "shape",
    [
        {"h": 4, "kv": 4, "d": 64, "bt": 16},
        {"h": 8, "kv": 2, "d": 64, "bt": 32},
        {"h": 7, "kv": 1, "d": 64, "bt": 64},
        {"h": 6, "kv": 2, "d": 128, "bt": 128},
        {"h": 2, "kv": 2, "d": 256, "bt": 16},
        {"h": 20, "kv": 1, "d": 64, "bt": 16},  # more rows than a tile of 16
        {"h": 70, "kv": 1, "d": 64, "bt": 16, "lens": [17, 63]},  # two row tiles
    ],
    ids=name,
)
@pytest.mark.parametrize("splits", [1, 3], ids=lambda s: f"splits{s}")
def test_decode_matches_reference(shape, splits, generator, poisoned):
    check(generator, **shape, splits=splits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_long_context_split_many_ways(dtype, generator, poisoned):
    check(generator, h=4, kv=2, lens=[1000, 999, 5], splits=11, dtype=dtype, bt=64)


@pytest.mark.parametrize("q", [2, 5, 8], ids=lambda q: f"Q{q}")
@pytest.mark.parametrize("splits", [1, 2], ids=lambda s: f"splits{s}")
def test_drafted_tokens_are_causal_among_themselves(q, splits, generator, poisoned):
    check(generator, q=q, h=4, kv=2, splits=splits, lens=[8, 15, 16, 17, 66])


def test_queries_before_the_first_token_give_zeros(generator, poisoned):
    check(generator, q=4, h=2, kv=1, lens=[1, 3, 0, 4, 5], splits=2)


@pytest.mark.parametrize("window", [1, 16, 33], ids=lambda w: f"window{w}")
@pytest.mark.parametrize("q", [1, 3], ids=lambda q: f"Q{q}")
def test_window_never_reads_freed_blocks(window, q, generator, poisoned):
    check(generator, q=q, h=4, kv=2, window=window, lens=[3, 16, 17, 100, 131], splits=2)


def test_softcap(generator, poisoned):
    check(generator, h=4, kv=2, softcap=3.0, splits=2)


@pytest.mark.parametrize("splits", [1, 4], ids=lambda s: f"splits{s}")
def test_sinks_join_the_denominator_once(splits, generator, poisoned):
    check(generator, q=2, h=6, kv=2, sinks=True, splits=splits, lens=[2, 17, 200])


def test_window_softcap_and_sinks_together(generator, poisoned):
    check(generator, q=2, h=4, kv=1, window=20, softcap=5.0, sinks=True, splits=2, lens=[2, 70])


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.int8], ids=["fp8", "int8"])
@pytest.mark.parametrize("scales", ["head", "token"])
@pytest.mark.parametrize("splits", [1, 2], ids=lambda s: f"splits{s}")
def test_quantised_cache(stored, scales, splits, generator, poisoned):
    check(generator, q=2, h=4, kv=2, stored=stored, scales=scales, splits=splits,
          lens=[2, 17, 63, 130])  # fmt: skip


def test_fp8_without_scales_and_with_softcap_and_scales(generator, poisoned):
    check(generator, stored=torch.float8_e4m3fn, lens=[16, 40])
    check(generator, stored=torch.float8_e4m3fn, scales="head", softcap=4.0, lens=[16, 40])


def test_every_fp8_code_is_decoded_exactly(generator):
    """One key per sequence, so the output is the stored value itself; a NaN code reads 480."""
    device = generator.device
    codes = torch.arange(256, dtype=torch.uint8).view(4, 1, 1, 64)
    cache = codes.repeat(1, 16, 1, 1).to(device).view(torch.float8_e4m3fn)
    table = torch.arange(4, dtype=torch.int32, device=device)[:, None]
    query = torch.zeros(4, 1, 1, 64, dtype=torch.float16, device=device)
    zeros = torch.zeros_like(cache.view(torch.uint8)).view(torch.float8_e4m3fn)
    out = paged_attention(query, zeros, cache, table, int32([1] * 4, device), num_splits=1)
    expected = codes.flatten().view(torch.float8_e4m3fn).to(torch.float16)
    if device.type == "cpu":
        expected[[0x7F, 0xFF]] = torch.tensor([480.0, -480.0], dtype=torch.float16)
    assert expected.nan_to_num(nan=1e4).tolist() == out.flatten().cpu().nan_to_num(nan=1e4).tolist()


def test_scales_come_in_pairs(generator):
    cache = paged_cache([16], 16, 1, 64, torch.float16, generator)
    query = random_values((1, 1, 1, 64), torch.float16, generator)
    with pytest.raises(ValueError, match="k_scale and v_scale"):
        paged_attention(query, cache.k, cache.v, cache.table, int32([16], generator.device),
                        k_scale=torch.ones(1))  # fmt: skip


def test_strided_cache_is_refused(generator):
    cache = paged_cache([16], 16, 2, 64, torch.float16, generator)
    query = random_values((1, 1, 1, 64), torch.float16, generator)
    with pytest.raises(ValueError, match="k_cache must be contiguous"):
        paged_attention(query, cache.k[:, :, :1], cache.v, cache.table,
                        int32([16], generator.device))  # fmt: skip


@pytest.mark.parametrize(
    ("tiles", "context", "sms", "expected"),
    [
        (1, 100, 132, 1),  # too short to split
        (132, 100_000, 132, 1),  # one program per SM already
        (106, 100_000, 132, 1),  # 80 % of the SMs
        (8, 100_000, 132, 15),  # 120 of 132 SMs; 16 fill more, but by less than 15 %
        (1, 1_000_000, 132, 109),
        (8, 2_048, 132, 7),  # 8 at most, as no split is shorter than 256 tokens; 7 are near enough
    ],
)
def test_number_of_splits(tiles, context, sms, expected):
    assert expected == choose_num_splits(tiles, context, sms)


def test_number_of_splits_wants_positive_sizes():
    with pytest.raises(ValueError, match="must be >= 1"):
        choose_num_splits(0, 1, 1)


@pytest.mark.gpu
@pytest.mark.parametrize("d", [64, 128, 256], ids=lambda d: f"D{d}")
@pytest.mark.parametrize("bt", [16, 32, 64, 128], ids=lambda b: f"B{b}")
@pytest.mark.parametrize("kv", [1, 2, 8], ids=lambda k: f"KV{k}")
@pytest.mark.parametrize("q", [1, 4], ids=lambda q: f"Q{q}")
def test_wide_grid(d, bt, kv, q, generator, poisoned):
    lens = [1, 16, 63, 1000, 4097, 0, 333]
    for stored, scales in (
        (None, ""), (torch.float8_e4m3fn, "head"), (torch.int8, "token"),
    ):  # fmt: skip
        for options in ({}, {"window": 100}, {"softcap": 20.0, "sinks": True}):
            check(generator, q=q, h=16, kv=kv, d=d, bt=bt, lens=lens, dtype=torch.bfloat16,
                  stored=stored, scales=scales, splits=None, **options)  # fmt: skip
