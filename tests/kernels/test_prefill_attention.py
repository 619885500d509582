"""Prefill attention against its reference: ragged chunks, cached context, poisoned memory."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from kernels.attention_configs import AttentionConfig  # noqa: E402
from kernels.cases import disagreement  # noqa: E402
from kernels.paged_attention import paged_attention  # noqa: E402
from kernels.prefill_attention import prefill_attention  # noqa: E402
from kernels.reference_attention import prefill_attention_reference  # noqa: E402
from tests.kernels.attention_support import (  # noqa: E402
    TOLERANCE,
    fill,
    int32,
    name,
    paged_cache,
    poison,
    random_values,
)

# (chunk, context with the chunk): first chunks, later chunks, a decode, an empty one
BATCH = [(1, 1), (15, 15), (17, 40), (63, 63), (0, 5), (1, 33), (20, 100)]
SMALL = AttentionConfig(block_m=16, block_n=16, num_warps=4, num_stages=1)


def packed(batch, h, d, dtype, generator):
    device = generator.device
    chunks = [chunk for chunk, _ in batch]
    q = random_values((sum(chunks), h, d), dtype, generator)
    starts = [sum(chunks[:i]) for i in range(len(chunks) + 1)]
    return q, int32(starts, device), int32([context for _, context in batch], device)


def check(generator, *, batch=BATCH, h=4, kv=2, d=64, bt=16, window=0, softcap=0.0,
          dtype=torch.float16, stored=None, scales="", config=None):  # fmt: skip
    lens = [context for _, context in batch]
    firsts = [max(n - m + 1 - window, 0) for m, n in batch] if window else None
    cache = paged_cache(lens, bt, kv, d, stored or dtype, generator, firsts, scales)
    q, cu_seqlens, context = packed(batch, h, d, dtype, generator)
    options = {"block_table": cache.table, "window": window, "softcap": softcap, **cache.scales}
    options["max_chunk_tokens"] = max(chunk for chunk, _ in batch)
    args = (q, cache.k, cache.v, cu_seqlens, context)
    found = prefill_attention(*args, config=config, **options)
    truth = prefill_attention_reference(*args, **options)
    assert disagreement(found, truth, TOLERANCE[dtype]) == ""


@pytest.mark.parametrize(
    "shape",
    [
        {"h": 4, "kv": 4, "d": 64, "bt": 16},
        {"h": 4, "kv": 2, "d": 64, "bt": 32},
        {"h": 7, "kv": 1, "d": 64, "bt": 64},
        {"h": 6, "kv": 2, "d": 128, "bt": 128},
        {"h": 2, "kv": 1, "d": 256, "bt": 16, "batch": [(17, 40), (1, 15)]},
    ],
    ids=name,
)
@pytest.mark.parametrize("config", [None, SMALL], ids=["tuned", "small"])
def test_matches_reference(shape, config, generator, poisoned):
    check(generator, **shape, config=config)


def test_long_chunk_over_cached_context(generator, poisoned):
    check(generator, batch=[(130, 1000), (257, 257)], h=2, kv=1, dtype=torch.float32)


@pytest.mark.parametrize("window", [1, 16, 33], ids=lambda w: f"window{w}")
@pytest.mark.parametrize("config", [None, SMALL], ids=["tuned", "small"])
def test_window_never_reads_freed_blocks(window, config, generator, poisoned):
    batch = [(1, 1), (17, 40), (63, 63), (20, 100)]
    check(generator, batch=batch, h=2, kv=1, window=window, config=config)


@pytest.mark.parametrize("window", [0, 20], ids=lambda w: f"window{w}")
def test_softcap(window, generator, poisoned):
    check(generator, softcap=3.0, window=window, batch=[(17, 40), (63, 63)])


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.int8], ids=["fp8", "int8"])
@pytest.mark.parametrize("scales", ["head", "token"])
def test_quantised_cache(stored, scales, generator, poisoned):
    check(generator, stored=stored, scales=scales, batch=[(17, 40), (40, 40), (1, 16)])


@pytest.mark.parametrize("window", [0, 20], ids=lambda w: f"window{w}")
def test_contiguous_cache(window, generator, poisoned):
    """Slots in any order; poison in the free slot and past each sequence's last token."""
    lens, device = [context for _, context in BATCH], generator.device
    slots = int32([3, 0, 7, 1, 5, 2, 4], device)
    k, v = (poison((8, 113, 2, 64), torch.float16, device) for _ in "kv")
    for s, context in enumerate(lens):
        first = max(context - BATCH[s][0] + 1 - window, 0) if window else 0
        for cache in (k, v):
            fill(cache, slots[s : s + 1], first, context, generator)
    q, cu_seqlens, context = packed(BATCH, 4, 64, torch.float16, generator)
    args = (q, k, v, cu_seqlens, context)
    options = {"slots": slots, "window": window, "max_chunk_tokens": 63}
    found = prefill_attention(*args, **options)
    truth = prefill_attention_reference(*args, **options)
    assert disagreement(found, truth, TOLERANCE[torch.float16]) == ""


def test_chunk_of_a_few_tokens_equals_multi_query_decode(generator, poisoned):
    lens, q_tokens = [17, 63, 100], 3
    cache = paged_cache(lens, 16, 2, 64, torch.float16, generator)
    q, cu_seqlens, context = packed([(q_tokens, n) for n in lens], 4, 64, torch.float16, generator)
    prefill = prefill_attention(
        q, cache.k, cache.v, cu_seqlens, context, block_table=cache.table, max_chunk_tokens=3
    )
    decode = paged_attention(
        q.unflatten(0, (len(lens), q_tokens)), cache.k, cache.v, cache.table, context, num_splits=2
    )
    assert disagreement(prefill, decode.flatten(0, 1), TOLERANCE[torch.float16]) == ""


def test_one_kind_of_cache_at_a_time(generator):
    cache = paged_cache([16], 16, 1, 64, torch.float16, generator)
    q, cu_seqlens, context = packed([(4, 16)], 1, 64, torch.float16, generator)
    with pytest.raises(ValueError, match="either block_table"):
        prefill_attention(q, cache.k, cache.v, cu_seqlens, context, max_chunk_tokens=4)


@pytest.mark.gpu
@pytest.mark.parametrize("d", [64, 128, 256], ids=lambda d: f"D{d}")
@pytest.mark.parametrize("bt", [16, 32, 64, 128], ids=lambda b: f"B{b}")
@pytest.mark.parametrize("kv", [1, 2, 8], ids=lambda k: f"KV{k}")
def test_wide_grid(d, bt, kv, generator, poisoned):
    batch = [*BATCH, (1000, 1000), (333, 4097)]
    for stored, scales in (
        (None, ""), (torch.float8_e4m3fn, "head"), (torch.int8, "token"),
    ):  # fmt: skip
        for options in ({}, {"window": 100}, {"softcap": 20.0}):
            check(generator, batch=batch, h=16, kv=kv, d=d, bt=bt, dtype=torch.bfloat16,
                  stored=stored, scales=scales, **options)  # fmt: skip
