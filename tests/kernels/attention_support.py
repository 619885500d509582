"""Paged caches for the attention tests: shuffled blocks, and poison wherever no key belongs."""

from dataclasses import dataclass

import torch

TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass
class Cache:
    """k, v [num_blocks, block_tokens, ...] and the table; scales where the format has them."""

    k: torch.Tensor
    v: torch.Tensor
    table: torch.Tensor
    k_scale: torch.Tensor | None = None
    v_scale: torch.Tensor | None = None

    @property
    def scales(self):
        return {"k_scale": self.k_scale, "v_scale": self.v_scale}


def poison(shape, dtype, device):
    """A tensor whose every element spoils a result it gets into."""
    if dtype == torch.float8_e4m3fn:
        return torch.full(shape, 0x7F, dtype=torch.uint8, device=device).view(dtype)
    value = 127 if dtype == torch.int8 else float("nan")
    return torch.full(shape, value, dtype=dtype, device=device)


def random_values(shape, dtype, generator):
    x = torch.randn(shape, generator=generator, device=generator.device)
    return (x * 40).round().clamp(-127, 127).to(dtype) if dtype == torch.int8 else x.to(dtype)


def block_table(lens, block_tokens, generator, firsts=None):
    """[num_seqs, max_blocks] int32 of shuffled blocks and their number, with one spare block that
    no sequence owns: entries past a context, or wholly before its first visible token, name it."""
    device = generator.device
    used = [-(-n // block_tokens) for n in lens]
    order = torch.randperm(sum(used) + 1, generator=generator, device=device)
    spare, owned = int(order[0]), iter(order[1:].tolist())
    table = torch.full((len(lens), max(*used, 1) + 1), spare, dtype=torch.int32, device=device)
    for s, count in enumerate(used):
        first = firsts[s] // block_tokens if firsts else 0
        for b in range(first, count):
            table[s, b] = next(owned)
    return table, sum(used) + 1


def fill(cache, table_row, first, context, generator):
    """Random values at the positions first .. context - 1 of one sequence; the rest stays."""
    position = torch.arange(first, context, device=cache.device)
    block = table_row[position // cache.shape[1]].long()
    values = random_values((len(position), *cache.shape[2:]), cache.dtype, generator)
    raw = torch.uint8 if cache.dtype == torch.float8_e4m3fn else cache.dtype
    cache.view(raw)[block, position % cache.shape[1]] = values.view(raw)


def paged_cache(
    lens, block_tokens, num_kv_heads, head_dim, dtype, generator, firsts=None, scales=""
):
    """A cache with the sequences' keys and poison elsewhere; `scales`: "", "head" or "token"."""
    table, num_blocks = block_table(lens, block_tokens, generator, firsts)
    shape = (num_blocks, block_tokens, num_kv_heads, head_dim)
    device = generator.device
    k, v = poison(shape, dtype, device), poison(shape, dtype, device)
    for s, context in enumerate(lens):
        for tensor in (k, v):
            fill(tensor, table[s], firsts[s] if firsts else 0, context, generator)
    if not scales:
        return Cache(k, v, table)
    size = (num_kv_heads,) if scales == "head" else shape[:-1]
    unit = 1 / 40 if dtype == torch.int8 else 1.0
    made = [unit * (0.5 + torch.rand(size, generator=generator, device=device)) for _ in "kv"]
    return Cache(k, v, table, *made)


def int32(values, device):
    return torch.tensor(values, dtype=torch.int32, device=device)


def name(value):
    """Test ids that spell the shape: 'S3-Q2-H8-KV2-D64'."""
    return "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else None
