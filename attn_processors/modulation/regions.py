"""Regions of the picture, and how much of each cell of a layer's grid they cover.

A region is a box (x0, y0, x1, y1) in fractions of width and height, or a mask of any size. Coverage
is an exact area average, so any size goes to any grid.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

__all__ = ["Region", "coverage", "read_region", "threshold"]

Region = tuple[float, float, float, float] | torch.Tensor


def read_region(name: str, region: object) -> Region:
    """A box as four floats, or a mask [h, w] in 0..1 from a tensor, an array or a PIL picture."""
    if isinstance(region, Sequence) and not isinstance(region, str):
        return _read_box(name, region)
    if isinstance(region, torch.Tensor):
        mask = region.detach().cpu()
    elif isinstance(region, np.ndarray) or hasattr(region, "convert"):
        # a PIL picture becomes gray
        mask = torch.from_numpy(np.array(getattr(region, "convert", lambda _: region)("L")))
    else:
        raise ValueError(
            f"region {name!r} must be a box (x0, y0, x1, y1) in fractions, or a mask [h, w] as "
            f"tensor, array or PIL picture; got {type(region).__name__}"
        )
    if mask.dim() != 2 or mask.numel() == 0:
        raise ValueError(f"the mask of {name!r} must be [h, w], got {list(mask.shape)}")
    mask = mask.to(torch.float32) / 255 if mask.dtype == torch.uint8 else mask.to(torch.float32)
    if not (mask.isfinite().all() and mask.min() >= 0 and mask.max() <= 1):
        raise ValueError(f"the mask of {name!r} must lie in 0..1, or be uint8 in 0..255")
    if not mask.any():
        raise ValueError(f"the mask of {name!r} is empty; leave the region out instead")
    return mask


def _read_box(name: str, box: Sequence[float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = box if len(box) == 4 else (1, 1, 0, 0)
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise ValueError(
            f"the box of {name!r} must be (x0, y0, x1, y1) with 0 <= x0 < x1 <= 1 and "
            f"0 <= y0 < y1 <= 1, in fractions of width and height; got {tuple(box)}"
        )
    return float(x0), float(y0), float(x1), float(y1)


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


def threshold(share: torch.Tensor) -> torch.Tensor:
    """Cells more than half covered; a region too small for any keeps the cell it covers most."""
    inside = share > 0.5
    if not inside.any():
        inside.view(-1)[share.argmax()] = True
    return inside
