"""Attention of a token grid to all of a few keys, such as pooled cells, in blocks of queries.

A block is one row of cells of queries; the bias is the same for all tokens of a cell, so it is made
per cell, and never larger than a row of queries by the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch

from .partial import partial_attention
from .tiles import concat

__all__ = ["far_attention"]

# elements of the bias of one block of queries
_MAX_BIAS = 1 << 22


def far_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cell: Sequence[int],
    bias: Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], torch.Tensor],
    scale: float | None = None,
    start: Sequence[int] = (0, 0, 0),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend q [B, H, rows, a, b, D] to all of k, v [B, H, r, s, t, D], one key for each `cell`.

    `bias(queries, keys)` is [queries, keys] for the position of a token in each cell of queries and
    of the first one in each cell of keys; it may leave a query without keys. `start` is where in
    the grid q begins. Returns out and lse in the shape of q.
    """
    keys = [torch.arange(n, device=q.device) * c for n, c in zip(k.shape[2:5], cell, strict=True)]
    k, v = (x.flatten(2, 4).flatten(0, 1).unsqueeze(1) for x in (k, v))
    step = max(1, _MAX_BIAS // (cell[2] * k.shape[2])) * cell[2]
    cuts = [
        _cuts(begin, begin + size, side)
        for begin, size, side in zip(start, q.shape[2:5], (cell[0], cell[1], step), strict=True)
    ]

    def block(row: slice, a: slice, b: slice) -> tuple[torch.Tensor, torch.Tensor]:
        at = (slice(x.start - s, x.stop - s) for x, s in zip((row, a, b), start, strict=True))
        part = q[(slice(None), slice(None), *at)]
        tiles = part.reshape(k.shape[0], -1, *part.shape[4:])
        begins = [torch.tensor([x.start], device=q.device) for x in (row, a)]
        first = b.start // cell[2] * cell[2]
        begins.append(torch.arange(first, b.stop, cell[2], device=q.device))
        rows = bias(begins, keys).repeat_interleave(cell[2], 0)
        rows = rows[b.start - first : b.stop - first]
        few = (x.expand(-1, tiles.shape[1], -1, -1) for x in (k, v))
        out, lse = partial_attention(tiles, *few, rows, scale, empty_rows=True)
        return out.reshape(part.shape), lse.reshape(part.shape[:-1])

    def line(row: slice) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = [concat([block(row, a, b) for b in cuts[2]], 4) for a in cuts[1]]
        return concat(blocks, 3)

    return concat([line(row) for row in cuts[0]], 2)


def _cuts(start: int, stop: int, side: int) -> list[slice]:
    """start to stop, cut at every multiple of `side`."""
    edges = [start, *range((start // side + 1) * side, stop, side), stop]
    return [slice(*edge) for edge in pairwise(edges)]
