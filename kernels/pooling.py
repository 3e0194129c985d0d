"""Average cells of the grid's keys and values, and how many tokens each cell stands for."""

from __future__ import annotations

from collections.abc import Sequence
from math import log, prod

import torch
import torch.nn.functional as F

__all__ = ["cell_logs", "full_log", "pool_cells"]


def pool_cells(
    x: torch.Tensor, cell: Sequence[int], weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean of each cell of x [B, H, rows, a, b, D], cells cut at the border: [B, H, r, a, b, D].

    `weight`, shaped like a cell, gives the weighted sum instead; then no cell may be cut.
    """
    sizes = x.shape[2:5]
    cuts = [-size % side for size, side in zip(sizes, cell, strict=True)]
    if any(cuts):
        x = F.pad(x, (0, 0, 0, cuts[2], 0, cuts[1], 0, cuts[0]))
    for dim in (2, 1, 0):
        x = x.unflatten(2 + dim, (-1, cell[dim]))
    if weight is not None:
        return torch.einsum("bhxiyjzkd,ijk->bhxyzd", x, weight.to(x.dtype))
    pooled = x.mean((3, 5, 7))
    if not any(cuts):
        return pooled
    # the padding took part in the mean
    counts = [
        (size - torch.arange(0, size, side, device=x.device)).clamp_max(side)
        for size, side in zip(sizes, cell, strict=True)
    ]
    tokens = counts[0][:, None, None] * counts[1][:, None] * counts[2]
    kept = tokens.to(torch.promote_types(x.dtype, torch.float32)) / prod(cell)
    return pooled / kept.to(x.dtype).unsqueeze(-1)


def cell_logs(
    sizes: Sequence[int], cell: Sequence[int], keys: Sequence[torch.Tensor], dtype: torch.dtype
) -> torch.Tensor:
    """log(tokens of a cell / tokens of a full one) of the cells that begin at `keys`, flat."""
    logs = 0
    for axis, (size, side, key) in enumerate(zip(sizes, cell, keys, strict=True)):
        counts = (size - key).clamp_max(side).to(dtype)
        share = (counts / min(side, size)).log()
        logs = logs + share.view([-1 if i == axis else 1 for i in range(3)])
    return logs.flatten()


def full_log(sizes: Sequence[int], cell: Sequence[int]) -> float:
    """log(tokens of a full cell)."""
    return sum(log(min(side, size)) for side, size in zip(cell, sizes, strict=True))
