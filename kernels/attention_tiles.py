"""What every attention kernel shares: the loop over KV tiles, number formats, the split reduction.

`attend` is the inner loop of decode, prefill and block-sparse attention: those kernels are three
schedules (who visits which keys) over this one loop. `reduce_splits` joins the partial results of
split-KV decoding. Softmax runs in base 2, in fp32. The checks of tensor arguments live here too.

KV formats: "plain" (the query's own type), "fp8" (e4m3, converted by the hardware, sm_89 and
newer), "fp8_bits" (e4m3 held as uint8, converted with integer operations, any chip; NaN codes
become 480) and "int8". Scales are fp32: none, one per KV head, or one per token and KV head.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
NO_SCALES, HEAD_SCALES, TOKEN_SCALES = 0, 1, 2


@triton.jit
def to_compute_type(x, DTYPE: tl.constexpr, KV_FORMAT: tl.constexpr):
    """Stored KV values in the type the dot product runs in, scales not yet applied."""
    if KV_FORMAT == "fp8_bits":
        # e4m3 fields placed in an fp16 read 2^-8 of the value (bias 15 against 7), subnormals too.
        bits = x.to(tl.uint16)
        half = ((bits & 0x80) << 8) | ((bits & 0x7F) << 7)
        x = half.to(tl.float16, bitcast=True) * 256.0
    return x.to(DTYPE)


@triton.jit
def attend(
    q,  # [M, D] query rows
    acc,  # [M, D] fp32, un-normalised output so far
    row_sum,  # [M] fp32, sum of exp2 so far
    row_max,  # [M] fp32, running maximum of the base-2 logits, -inf when nothing was seen
    position,  # [M] position of each row in its sequence, -1 for a padding row
    lo,  # first tile's start, a multiple of BLOCK_N
    hi,  # tiles start below this
    step,  # tokens from one tile's start to the next
    first,  # keys below this are never read
    last,  # keys from here on are never read
    key_ptr,  # [num_blocks, BLOCK_TOKENS, num_kv_heads, D]
    value_ptr,  # as key_ptr
    key_scale_ptr,  # [num_kv_heads] or [num_blocks, BLOCK_TOKENS, num_kv_heads] fp32
    value_scale_ptr,  # as key_scale_ptr
    table_ptr,  # this sequence's row of the block table; not read when PAGED is false
    base_token,  # int64 flat index of the sequence's first token when PAGED is false
    kv_head,
    num_kv_heads,
    logit_scale,  # softmax scale times the key scale of this head
    D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr,
    PAGED: tl.constexpr,
    KV_FORMAT: tl.constexpr,
    SCALES: tl.constexpr,
    SOFTCAP: tl.constexpr,
    WINDOW: tl.constexpr,
    MASKED: tl.constexpr,  # false: every key of every tile is visible to every row
):
    """Fold the KV tiles lo, lo + step, ... into (acc, row_sum, row_max)."""
    d = tl.arange(0, D)
    # With the soft-cap the logits are final before the base change; without it, the base change
    # and the subtraction of the maximum are one fused multiply-add.
    to_base_2 = LOG2E if SOFTCAP > 0 else logit_scale * LOG2E
    for start in range(lo, hi, step):
        token = start + tl.arange(0, BLOCK_N)
        present = (token >= first) & (token < last)
        if not PAGED:
            flat = base_token + token
        elif BLOCK_TOKENS % BLOCK_N == 0:
            # The tile lies inside one block, which is mapped because one of its keys is present.
            block = tl.load(table_ptr + start // BLOCK_TOKENS).to(tl.int64)
            flat = block * BLOCK_TOKENS + start % BLOCK_TOKENS + tl.arange(0, BLOCK_N)
        elif MASKED:
            block = tl.load(table_ptr + token // BLOCK_TOKENS, mask=present, other=0).to(tl.int64)
            flat = block * BLOCK_TOKENS + token % BLOCK_TOKENS
        else:
            block = tl.load(table_ptr + token // BLOCK_TOKENS).to(tl.int64)
            flat = block * BLOCK_TOKENS + token % BLOCK_TOKENS
        row = flat * num_kv_heads + kv_head  # [BLOCK_N] int64

        key_ptrs = key_ptr + row[None, :] * D + d[:, None]  # [D, BLOCK_N]
        k = tl.load(key_ptrs, mask=present[None, :], other=0.0) if MASKED else tl.load(key_ptrs)
        logits = tl.dot(q, to_compute_type(k, q.dtype, KV_FORMAT))  # [M, BLOCK_N]
        if SCALES == 2:
            logits *= tl.load(key_scale_ptr + row, mask=present, other=0.0)[None, :]
        if SOFTCAP > 0:
            # tanh(x) = 2 sigmoid(2x) - 1
            logits = SOFTCAP * (2.0 * tl.sigmoid(logits * (logit_scale * (2.0 / SOFTCAP))) - 1.0)
        if MASKED:
            visible = present[None, :] & (token[None, :] <= position[:, None])
            if WINDOW > 0:
                visible &= token[None, :] > position[:, None] - WINDOW
            logits = tl.where(visible, logits, float("-inf"))

        new_max = tl.maximum(row_max, tl.max(logits, 1) * to_base_2)
        # A row that has seen no key yet must not compute -inf - -inf.
        shift = tl.where(new_max == float("-inf"), 0.0, new_max) if MASKED else new_max
        p = tl.exp2(logits * to_base_2 - shift[:, None])
        alpha = tl.exp2(row_max - shift)
        row_sum = row_sum * alpha + tl.sum(p, 1)
        row_max = new_max
        if SCALES == 2:
            p *= tl.load(value_scale_ptr + row, mask=present, other=0.0)[None, :]

        value_ptrs = value_ptr + row[:, None] * D + d[None, :]  # [BLOCK_N, D]
        v = tl.load(value_ptrs, mask=present[:, None], other=0.0) if MASKED else tl.load(value_ptrs)
        v = to_compute_type(v, q.dtype, KV_FORMAT)
        acc = tl.dot(p.to(q.dtype), v, acc * alpha[:, None])
    return acc, row_sum, row_max


@triton.jit
def reduce_splits(
    partial_ptr,  # [num_rows, NUM_SPLITS, D] fp32, each split normalised by its own sum
    lse_ptr,  # [num_rows, NUM_SPLITS] fp32, base 2, -inf where the split saw no key
    out_ptr,  # [num_rows, D]
    D: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """Join the splits of one output row; a row that saw no key at all is zero.

    One program per row. The partial result of a split with lse = -inf was never written and is
    not read.
    """
    row = tl.program_id(0).to(tl.int64)
    d = tl.arange(0, D)
    row_max = -float("inf")
    row_sum = 0.0
    acc = tl.zeros([D], tl.float32)
    for start in range(0, NUM_SPLITS, BLOCK_S):
        split = start + tl.arange(0, BLOCK_S)
        lse = tl.load(
            lse_ptr + row * NUM_SPLITS + split, mask=split < NUM_SPLITS, other=float("-inf")
        )
        new_max = tl.maximum(row_max, tl.max(lse, 0))
        shift = tl.where(new_max == float("-inf"), 0.0, new_max)
        alpha = tl.exp2(row_max - shift)
        weight = tl.exp2(lse - shift)  # [BLOCK_S]
        partial = tl.load(
            partial_ptr + (row * NUM_SPLITS + split)[:, None] * D + d[None, :],
            mask=(lse != float("-inf"))[:, None],
            other=0.0,
        )
        acc = acc * alpha + tl.sum(partial * weight[:, None], 0)
        row_sum = row_sum * alpha + tl.sum(weight, 0)
        row_max = new_max
    out = acc / tl.where(row_sum > 0, row_sum, 1.0)
    tl.store(out_ptr + row * D + d, out.to(out_ptr.dtype.element_ty))


def choose_num_splits(
    num_tiles: int, context_tokens: int, num_sms: int, *, min_split_tokens: int = 256
) -> int:
    """How many ways to split the context of each (sequence, KV head, row tile).

    The smallest count whose last wave of programs is nearly as full as the best count's (the
    heuristic of FlashAttention-2, `num_splits_heuristic`): fewer splits mean less to reduce.
    Tiles that fill 80 % of the SMs are not split; no split is shorter than `min_split_tokens`.
    """
    if min(num_tiles, context_tokens, num_sms, min_split_tokens) < 1:
        raise ValueError(
            "num_tiles, context_tokens, num_sms and min_split_tokens must be >= 1 "
            f"(got {num_tiles}, {context_tokens}, {num_sms}, {min_split_tokens})"
        )
    limit = min(128, num_sms, -(-context_tokens // min_split_tokens))
    if num_tiles >= 0.8 * num_sms or limit == 1:
        return 1
    fill = [num_tiles * s / num_sms for s in range(1, limit + 1)]
    efficiency = [waves / -(-waves // 1) for waves in fill]
    return next(s for s, e in enumerate(efficiency, 1) if e >= 0.85 * max(efficiency))


def kv_format(cache: torch.Tensor, query: torch.Tensor) -> tuple[torch.Tensor, str]:
    """The cache as the kernels take it, and the name of its format on this device."""
    if cache.dtype == query.dtype:
        return cache, "plain"
    if cache.dtype == torch.int8:
        return cache, "int8"
    if cache.dtype == torch.float8_e4m3fn:
        if cache.is_cuda and torch.cuda.get_device_capability(cache.device) >= (8, 9):
            return cache, "fp8"
        return cache.view(torch.uint8), "fp8_bits"
    raise TypeError(f"KV cache must be {query.dtype}, float8_e4m3fn or int8 (got {cache.dtype})")


def scale_kind(k_scale: torch.Tensor | None, v_scale: torch.Tensor | None) -> int:
    """NO_SCALES, HEAD_SCALES ([num_kv_heads]) or TOKEN_SCALES ([blocks, tokens, num_kv_heads])."""
    if k_scale is None and v_scale is None:
        return NO_SCALES
    if k_scale is None or v_scale is None or k_scale.ndim != v_scale.ndim:
        raise ValueError("k_scale and v_scale must be given together, with the same shape")
    return HEAD_SCALES if k_scale.ndim == 1 else TOKEN_SCALES


def check_contiguous(**tensors: torch.Tensor | None) -> None:
    """Refuse strided tensors: the kernels compute offsets from shapes alone."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise ValueError(f"{name} must be contiguous (strides {tuple(tensor.stride())})")


def num_sms(device: torch.device) -> int:
    """Streaming multiprocessors of the device; 1 on the CPU interpreter."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
