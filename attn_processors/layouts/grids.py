"""Grids and text lengths, read from the arguments of a denoiser's `forward`."""

from __future__ import annotations

import torch
from torch import nn

from ...kernels.layout import Segment, TokenLayout
from .family import Arguments

__all__ = [
    "Grid",
    "grid_of_ids",
    "halved_grids",
    "num_text",
    "patch_sizes",
    "patched",
    "prefix_lengths",
    "with_references",
]

Grid = tuple[int, int, int]


def halved_grids(height: int, width: int) -> tuple[tuple[int, int], ...]:
    """A grid and all its halvings, rounded up as stride-2 convolutions do, down to 1 x 1."""
    grids = [(height, width)]
    while grids[-1] != (1, 1):
        h, w = grids[-1]
        grids.append(((h + 1) // 2, (w + 1) // 2))
    return tuple(grids)


def patch_sizes(model: nn.Module) -> Grid:
    """Patch size over (frames, rows, columns), from the model's config."""
    size = getattr(model.config, "patch_size", None) or 1
    if isinstance(size, int):
        return getattr(model.config, "patch_size_t", None) or 1, size, size
    return (1, *size) if len(size) == 2 else tuple(size)


def patched(model: nn.Module, latent: torch.Tensor, axes: tuple[int, ...] = (-3, -2, -1)) -> Grid:
    """Grid of the patches of a latent [B, C, h, w], or of one with frames at `axes`[0]."""
    frames = 1 if latent.dim() == 4 else latent.shape[axes[0]]
    sizes = (frames, latent.shape[axes[1]], latent.shape[axes[2]])
    return tuple(n // p for n, p in zip(sizes, patch_sizes(model), strict=True))


def num_text(arguments: Arguments) -> int:
    """Text tokens of `encoder_hidden_states`."""
    return arguments["encoder_hidden_states"].shape[1]


def prefix_lengths(mask: torch.Tensor) -> tuple[int, ...] | None:
    """Length of each row's run of ones in mask [B, T]; None where a row is no such run."""
    mask = mask.detach().bool().cpu()
    lengths = mask.long().cumprod(-1).sum(-1)
    return tuple(lengths.tolist()) if torch.equal(lengths, mask.sum(-1)) else None


def with_references(text: int, grid: Grid, rest: int) -> tuple[TokenLayout, ...]:
    """Text, grid, and after them `rest` tokens of reference images."""
    extra = (Segment(rest),) if rest else ()
    return (TokenLayout(text=text, grid=grid, extra=extra),)


def grid_of_ids(ids: torch.Tensor) -> tuple[Grid, int] | None:
    """Grid of (image, row, column, ...) ids, and the tokens after it; None unless in raster order.

    Counts rows and columns rather than taking maxima: in bfloat16 ids above 256 are rounded. A
    picture too small for one patch has no ids, and no grid.
    """
    if ids.numel() == 0:
        return None
    ids = ids.detach().reshape(-1, ids.shape[-2], ids.shape[-1])[0].float().cpu()
    num_main = int((ids[:, 0] == ids[0, 0]).cumprod(0).sum())
    width = int((ids[:num_main, 1] == ids[0, 1]).cumprod(0).sum())
    rows, columns = ids[:num_main:width, 1], ids[:width, 2]
    is_sorted = bool((rows.diff() >= 0).all() and (columns.diff() >= 0).all())
    in_raster = torch.cartesian_prod(rows, columns)
    if not (is_sorted and torch.equal(ids[:num_main, 1:3], in_raster)):
        return None
    return (1, len(rows), width), len(ids) - num_main
