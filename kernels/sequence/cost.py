"""Bytes that a rank receives in one call, from shapes alone, and what other schemes receive.

Counted in the forward pass; the backward pass receives what others received in the forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..field import Field
from .exchange import overlap
from .plan import Rows, foveated_rows, local_rows
from .shard import Shard

__all__ = ["foveated_bytes", "gathered_bytes", "local_bytes", "ulysses_bytes"]


def local_bytes(
    shard: Shard,
    *,
    heads: int,
    dim: int,
    dtype: torch.dtype,
    radius: int | Sequence[int],
    batch: int = 1,
) -> int:
    """What `sequence_local_attention` receives: rows of K and V, and the text's part."""
    rows = _received(local_rows(shard, radius), shard.rank)
    return batch * heads * (2 * rows * dim * dtype.itemsize + _text_bytes(shard, dim, dtype))


def foveated_bytes(
    shard: Shard,
    *,
    heads: int,
    dim: int,
    dtype: torch.dtype,
    radius: int,
    pool: int = 4,
    levels: int = 1,
    partition: bool = True,
    batch: int = 1,
) -> int:
    """What `sequence_foveated_attention` receives: rows and cells of K and V, the text's part."""
    field = Field(shard.layout.grid, radius, pool, levels)
    rows = sum(_received(each, shard.rank) for each in foveated_rows(shard, field, partition))
    return batch * heads * (2 * rows * dim * dtype.itemsize + _text_bytes(shard, dim, dtype))


def gathered_bytes(
    shard: Shard, *, heads: int, dim: int, dtype: torch.dtype, batch: int = 1
) -> int:
    """What gathering all K and V receives, as ring attention does."""
    others = shard.layout.num_tokens - shard.local.num_tokens
    return batch * heads * 2 * others * dim * dtype.itemsize


def ulysses_bytes(shard: Shard, *, heads: int, dim: int, dtype: torch.dtype, batch: int = 1) -> int:
    """What all-to-all of Q, K, V and the output receives, heads divided by the ranks."""
    whole, own = shard.layout.num_tokens, shard.local.num_tokens
    qkv = 3 * (whole - own) * heads // shard.ranks
    out = own * heads * (shard.ranks - 1) // shard.ranks
    return batch * (qkv + out) * dim * dtype.itemsize


def _received(rows: Rows, rank: int) -> int:
    ranges = [overlap(h, rows.needed[rank]) for r, h in enumerate(rows.held) if r != rank]
    return sum(stop - start for start, stop in ranges)


def _text_bytes(shard: Shard, dim: int, dtype: torch.dtype) -> int:
    """One head's: partial answers to this rank's queries, and the text it does not hold."""
    whole = shard.layout.num_context
    start, stop = shard.context_shares[shard.rank]
    own = stop - start
    wide = torch.promote_types(dtype, torch.float32).itemsize
    partial = (shard.ranks - 1) * own * (dim * dtype.itemsize + wide)
    others = (3 if shard.splits_text else 1) * (whole - own) * dim * dtype.itemsize
    return partial + others
