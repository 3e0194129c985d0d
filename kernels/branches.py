"""From branches over the grid to the answer of a whole call: axes, context keys and queries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from .layout import TokenLayout
from .merge import merge
from .partial import partial_attention

__all__ = ["Band", "answer", "axis_order", "from_axes", "to_axes"]

Branch = tuple[torch.Tensor, torch.Tensor]


class Band(NamedTuple):
    """What lies at start <= i < stop along one axis (0 frames, 1 rows) of a grid.

    It is contiguous in raster order: the axis is the first that has more than one place.
    """

    axis: int
    start: int
    stop: int

    @classmethod
    def whole(cls, grid: tuple[int, int, int]) -> Band:
        """The band that is the grid."""
        axis = 0 if grid[0] > 1 else 1
        return cls(axis, 0, grid[axis])

    def of(self, grid: tuple[int, int, int]) -> tuple[int, int, int]:
        """Sizes of the band: it is whole along the other axes."""
        return (*grid[: self.axis], self.stop - self.start, *grid[self.axis + 1 :])

    def limits(self, grid: tuple[int, int, int]) -> list[tuple[int, int]]:
        """(start, stop) along each axis, in `axis_order(grid)`."""
        return [
            (self.start, self.stop) if axis == self.axis else (0, grid[axis])
            for axis in axis_order(grid)
        ]


def axis_order(grid: tuple[int, int, int]) -> tuple[int, int, int]:
    """The grid's axes with the longest first: tiles run down it."""
    longest = max(range(3), key=lambda axis: (grid[axis], -axis))
    return (longest, *(axis for axis in range(3) if axis != longest))


def to_axes(
    x: torch.Tensor, grid: tuple[int, int, int], sizes: tuple[int, int, int] | None = None
) -> torch.Tensor:
    """x [B, H, f*h*w, ...] as a view [B, H, rows, a, b, ...], its axes in `axis_order(grid)`.

    `sizes` are those of x where it is only a band of the grid.
    """
    x = x.unflatten(2, grid if sizes is None else sizes)
    return x.permute(0, 1, *(2 + axis for axis in axis_order(grid)), *range(5, x.dim()))


def from_axes(x: torch.Tensor, grid: tuple[int, int, int]) -> torch.Tensor:
    """Undoes `to_axes`."""
    order = axis_order(grid)
    back = (2 + order.index(axis) for axis in range(3))
    return x.permute(0, 1, *back, *range(5, x.dim())).flatten(2, 4)


def answer(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: TokenLayout,
    branches: Sequence[Branch],
    scale: float | None,
    return_lse: bool,
) -> torch.Tensor | Branch:
    """Join the grid's branches, each out [B, H, f*h*w, D] and lse, with what the context adds.

    Grid queries also see the context keys; context queries are dense over every key.
    """
    if layout.num_context == 0:
        out, lse = merge(*zip(*branches, strict=True))
    else:
        context_kv = layout.context_of(k), layout.context_of(v)
        context = partial_attention(layout.grid_of(q), *context_kv, None, scale)
        grid = merge(*zip(*branches, context, strict=True))
        rest = partial_attention(layout.context_of(q), k, v, None, scale)
        out, lse = (layout.join(x, y) for x, y in zip(grid, rest, strict=True))
    return (out, lse) if return_lse else out
