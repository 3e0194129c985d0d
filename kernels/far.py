"""Attention of a token grid to all of a few keys, such as pooled cells, in blocks of queries.

A block is one row of cells of queries; the bias is the same for all tokens of a cell, so it is made
per cell, and never larger than a row of queries by the keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend q [B, H, rows, a, b, D] to all of k, v [B, H, r, s, t, D], one key for each `cell`.

    `bias(queries, keys)` is [queries, keys] for the token positions where their cells begin; it may
    leave a query without keys. Returns out and lse in the shape of q.
    """
    height, depth, width = q.shape[2:5]
    keys = [torch.arange(n, device=q.device) * c for n, c in zip(k.shape[2:5], cell, strict=True)]
    k, v = (x.flatten(2, 4).flatten(0, 1).unsqueeze(1) for x in (k, v))
    step = max(1, _MAX_BIAS // (cell[2] * k.shape[2])) * cell[2]

    def block(row: int, a: int, b: int) -> tuple[torch.Tensor, torch.Tensor]:
        part = q[:, :, row : row + cell[0], a : a + cell[1], b : b + step]
        tiles = part.reshape(k.shape[0], -1, *part.shape[4:])
        begins = [torch.tensor([x], device=q.device) for x in (row, a)]
        begins.append(torch.arange(b, b + tiles.shape[2], cell[2], device=q.device))
        rows = bias(begins, keys).repeat_interleave(cell[2], 0)[: tiles.shape[2]]
        few = (x.expand(-1, tiles.shape[1], -1, -1) for x in (k, v))
        out, lse = partial_attention(tiles, *few, rows, scale, empty_rows=True)
        return out.reshape(part.shape), lse.reshape(part.shape[:-1])

    def line(row: int) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = (
            concat([block(row, a, b) for b in range(0, width, step)], 4)
            for a in range(0, depth, cell[1])
        )
        return concat(list(blocks), 3)

    return concat([line(row) for row in range(0, height, cell[0])], 2)
