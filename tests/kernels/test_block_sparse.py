"""Block-sparse attention against its reference; blocks outside the pattern hold poison."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from kernels.attention_configs import AttentionConfig  # noqa: E402
from kernels.block_sparse_attention import block_sparse_attention  # noqa: E402
from kernels.cases import disagreement  # noqa: E402
from kernels.prefill_attention import prefill_attention  # noqa: E402
from kernels.reference_attention import block_sparse_attention_reference, sparse_mask  # noqa: E402
from tests.kernels.attention_support import TOLERANCE, int32, name, paged_cache  # noqa: E402
from tests.kernels.test_prefill_attention import packed  # noqa: E402

STREAMING = [1, 2, 0, 0]
STRIDED = [0, 1, 3, 1]
BOTH = [1, 2, 4, 3]
HALF_TILE = AttentionConfig(block_m=32, block_n=64, num_warps=4, num_stages=1)


def check(generator, *, batch, rows, h=2, d=64, bt=16, softcap=0.0, dtype=torch.float16,
          stored=None, scales="", config=None):  # fmt: skip
    device, kv = generator.device, len(rows)
    lens = [context for _, context in batch]
    cache = paged_cache(lens, bt, kv, d, stored or dtype, generator, None, scales)
    if stored is None:
        for s, (chunk, context) in enumerate(batch):
            poison_unseen(cache, cache.table[s], rows, chunk, context)
    q, cu_seqlens, context = packed(batch, h, d, dtype, generator)
    args = (q, cache.k, cache.v, cache.table, cu_seqlens, context, int32(rows, device))
    options = {"softcap": softcap, "max_chunk_tokens": max(m for m, _ in batch), **cache.scales}
    found = block_sparse_attention(*args, config=config, **options)
    truth = block_sparse_attention_reference(*args, **options)
    assert disagreement(found, truth, TOLERANCE[dtype]) == ""


def poison_unseen(cache, table_row, rows, chunk, context):
    """NaN in every sparse block of a head that no query of the chunk sees."""
    block_tokens = cache.k.shape[1]
    position = torch.arange(context, device=cache.k.device)
    block = table_row[position // block_tokens].long()
    for head, row in enumerate(rows):
        mask = sparse_mask(row, context, chunk).any(0)
        seen = torch.nn.functional.pad(mask, (0, -context % 64)).view(-1, 64).any(1)
        unseen = ~seen.repeat_interleave(64)[:context]
        for tensor in (cache.k, cache.v):
            tensor[block[unseen], position[unseen] % block_tokens, head] = float("nan")


@pytest.mark.parametrize("bt", [16, 64, 128], ids=lambda b: f"B{b}")
@pytest.mark.parametrize("config", [None, HALF_TILE], ids=["tuned", "half"])
def test_first_and_later_chunks(bt, config, generator, poisoned):
    batch = [(1, 1), (63, 63), (0, 70), (65, 400), (130, 513), (1, 300)]
    check(generator, batch=batch, rows=[BOTH], bt=bt, config=config)


@pytest.mark.parametrize(
    "shape",
    [
        {"h": 3, "rows": [STREAMING, STRIDED, BOTH]},
        {"h": 4, "rows": [STREAMING, STRIDED]},
        {"h": 2, "d": 128, "rows": [[5, 1, 0, 0]]},
        {"h": 2, "rows": [[2, 1, 2, 0]]},  # a vertical block that is a sink too
        {"h": 2, "rows": [[0, 1, 0, 0]]},  # the diagonal alone
    ],
    ids=name,
)
def test_patterns_per_head(shape, generator, poisoned):
    check(generator, batch=[(100, 530), (17, 200)], **shape)


def test_fp32(generator, poisoned):
    check(generator, batch=[(70, 333)], rows=[BOTH, STRIDED], dtype=torch.float32)


@pytest.mark.parametrize("stored", [torch.float8_e4m3fn, torch.int8], ids=["fp8", "int8"])
def test_quantised_cache_and_softcap(stored, generator, poisoned):
    check(generator, batch=[(70, 333)], rows=[BOTH], stored=stored, scales="head", softcap=5.0)


def test_a_pattern_that_covers_everything_is_dense_attention(generator, poisoned):
    batch = [(100, 300), (64, 64)]
    cache = paged_cache([300, 64], 16, 1, 64, torch.float16, generator)
    q, cu_seqlens, context = packed(batch, 2, 64, torch.float16, generator)
    dense = prefill_attention(
        q, cache.k, cache.v, cu_seqlens, context, block_table=cache.table, max_chunk_tokens=100
    )
    for row in ([99, 1, 0, 0], [0, 99, 0, 0], [0, 1, 1, 0]):
        sparse = block_sparse_attention(
            q, cache.k, cache.v, cache.table, cu_seqlens, context,
            int32([row], generator.device), max_chunk_tokens=100,
        )  # fmt: skip
        assert disagreement(sparse, dense, TOLERANCE[torch.float16]) == ""


def test_one_pattern_per_kv_head(generator):
    cache = paged_cache([16], 16, 2, 64, torch.float16, generator)
    q, cu_seqlens, context = packed([(4, 16)], 2, 64, torch.float16, generator)
    with pytest.raises(ValueError, match=r"pattern must be \[2, 4\]"):
        block_sparse_attention(
            q, cache.k, cache.v, cache.table, cu_seqlens, context,
            int32([BOTH], generator.device), max_chunk_tokens=4,
        )  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("d", [64, 128, 256], ids=lambda d: f"D{d}")
@pytest.mark.parametrize("bt", [16, 32, 64, 128], ids=lambda b: f"B{b}")
def test_wide_grid(d, bt, generator, poisoned):
    batch = [(1, 1), (63, 63), (0, 70), (65, 400), (1000, 1000), (333, 4097)]
    check(generator, batch=batch, rows=[STREAMING, STRIDED, BOTH, BOTH], h=8, d=d, bt=bt,
          dtype=torch.bfloat16)  # fmt: skip
