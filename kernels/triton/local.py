"""Local attention by Triton as a PyTorch operator: `grid_op` over discs and ellipsoids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..layout import TokenLayout
from .foveated_rings import NO_RINGS, Rings
from .grid_op import grid_op
from .near import Near, disc, ellipsoid

__all__ = ["local_attention"]

Pair = tuple[torch.Tensor, torch.Tensor]


def _sight(
    grid: Sequence[int], radii: Sequence[int], frames_radius: int | None
) -> tuple[Near, Rings]:
    near = disc(radii) if frames_radius is None else ellipsoid(radii, frames_radius)
    return near, NO_RINGS


def _on_torch(
    layout: TokenLayout, radii: Sequence[int], frames_radius: int | None, scale: float
) -> Callable[..., Pair]:
    from ..local import local_attention

    radius = radii[0] if len(radii) == 1 else tuple(radii)
    return partial(
        local_attention, layout=layout, radius=radius, frames_radius=frames_radius, scale=scale,
        impl="torch", return_lse=True,
    )  # fmt: skip


_attend = grid_op("local", "int[] radii, int? frames_radius", _sight, _on_torch)


def local_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: TokenLayout,
    radius: int | Sequence[int],
    frames_radius: int | None,
    scale: float | None,
) -> Pair:
    """out [B, H, N, D] and lse [B, H, N] of the operator of this name."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    radii = [radius] if isinstance(radius, int) else list(radius)
    start, grid = layout.grid_slice.start, list(layout.grid)
    # without a second frame the ellipsoid is the disc
    frames_radius = frames_radius if grid[0] > 1 else None
    return _attend(q, k, v, start, grid, radii, frames_radius, scale)
