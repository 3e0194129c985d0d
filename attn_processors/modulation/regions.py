"""Regions of the picture as users give them.

A region is a box (x0, y0, x1, y1) in fractions of width and height, or a mask of any size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import torch

from ...kernels.coverage import Region, coverage

__all__ = ["partition", "read_region", "refuse_overlap", "threshold"]


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


def threshold(share: torch.Tensor) -> torch.Tensor:
    """Cells more than half covered; a region too small for any keeps the cell it covers most."""
    inside = share > 0.5
    if not inside.any():
        inside.view(-1)[share.argmax()] = True
    return inside


def partition(cover: torch.Tensor) -> torch.Tensor:
    """The cells of each region [R, cells] by their coverage; no cell is in two.

    Disjoint regions may still share a cell of a coarse grid. The smaller one has the first choice,
    since the larger one has other cells.
    """
    inside = torch.zeros_like(cover, dtype=torch.bool)
    for region in cover.sum(1).argsort().tolist():
        free = cover[region] * ~inside.any(0)
        inside[region] = threshold(free) & (free > 0)
    return inside


def refuse_overlap(regions: Mapping[str, Region], otherwise: str) -> None:
    """Raise ValueError for two regions that share pixels; `otherwise` says what else to do."""
    # the finest comparison that a box or a mask may need; more does not matter to any layer
    inside = {name: threshold(coverage(region, 256, 256)) for name, region in regions.items()}
    for one, two in combinations(inside, 2):
        if (inside[one] & inside[two]).any():
            raise ValueError(
                f"the regions of {one!r} and {two!r} overlap; make them disjoint, or {otherwise}"
            )
