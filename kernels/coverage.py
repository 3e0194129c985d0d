"""How much of each cell of a grid a region of the picture covers: exact area averages."""

from __future__ import annotations

import torch

__all__ = ["Region", "coverage"]

# a box (x0, y0, x1, y1) in fractions of width and height, or a mask [h, w] of any size in 0..1
Region = tuple[float, float, float, float] | torch.Tensor


def coverage(region: Region, height: int, width: int) -> torch.Tensor:
    """Share of every grid cell that the region covers, [height, width] in 0..1, float32."""
    if isinstance(region, torch.Tensor):
        rows, columns = region.shape
        by_row = _overlaps(torch.linspace(0, 1, rows + 1, dtype=torch.float64), height)
        by_column = _overlaps(torch.linspace(0, 1, columns + 1, dtype=torch.float64), width)
        share = by_row @ region.double() @ by_column.T
    else:
        x0, y0, x1, y1 = region
        by_row = _overlaps(torch.tensor([y0, y1], dtype=torch.float64), height)
        by_column = _overlaps(torch.tensor([x0, x1], dtype=torch.float64), width)
        share = by_row @ by_column.T
    return share.clamp(0, 1).float()


def _overlaps(edges: torch.Tensor, cells: int) -> torch.Tensor:
    """Share of each of `cells` equal cells of [0, 1] in each interval between the edges."""
    grid = torch.linspace(0, 1, cells + 1, dtype=torch.float64)
    low = torch.maximum(grid[:-1, None], edges[None, :-1])
    high = torch.minimum(grid[1:, None], edges[None, 1:])
    return (high - low).clamp_min(0) * cells
