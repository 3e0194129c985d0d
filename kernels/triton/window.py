"""Window attention by Triton as a PyTorch operator: `grid_op`, each window a grid of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..layout import TokenLayout
from .foveated_rings import NO_RINGS, Rings
from .grid_op import grid_op
from .near import Near, cut_windows

__all__ = ["window_attention"]

Pair = tuple[torch.Tensor, torch.Tensor]


def _sight(
    grid: Sequence[int], window_size: Sequence[int], shift: Sequence[int]
) -> tuple[Near, Rings]:
    return cut_windows(window_size, shift, grid), NO_RINGS


def _on_torch(
    layout: TokenLayout, window_size: Sequence[int], shift: Sequence[int], scale: float
) -> Callable[..., Pair]:
    from ..window import window_attention

    return partial(
        window_attention, layout=layout, window_size=tuple(window_size), shift=tuple(shift),
        scale=scale, impl="torch", return_lse=True,
    )  # fmt: skip


_attend = grid_op("window", "int[] window_size, int[] shift", _sight, _on_torch)


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: TokenLayout,
    window_size: Sequence[int],
    shift: Sequence[int],
    wrap: bool,
    scale: float | None,
) -> Pair:
    """out [B, H, N, D] and lse [B, H, N] of the operator of this name."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    where = (layout.grid_slice.start, list(layout.grid), list(window_size))
    shift = cut_windows(window_size, shift, layout.grid).steps
    if not wrap or not any(shift):
        return _attend(q, k, v, *where, list(shift), scale)
    back = [-move for move in shift]
    q, k, v = (_rolled(x, layout, back) for x in (q, k, v))
    out, lse = _attend(q, k, v, *where, [0, 0, 0], scale)
    return _rolled(out, layout, shift), _rolled(lse.unsqueeze(-1), layout, shift).squeeze(-1)


def _rolled(x: torch.Tensor, layout: TokenLayout, shift: Sequence[int]) -> torch.Tensor:
    """x [B, H, N, D] with the grid's tokens moved, those that leave it at the other end."""
    grid = layout.grid_of(x).unflatten(2, layout.grid).roll(tuple(shift), (2, 3, 4))
    return layout.join(grid.flatten(2, 4), layout.context_of(x))
