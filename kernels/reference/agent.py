"""The oracle of agent attention: both softmaxes with every score in memory, one dense bias each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from ..layout import TokenLayout
from .dense import masked_softmax

__all__ = ["reference_agent"]


def reference_agent(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: TokenLayout,
    cells: Sequence[int],
    scale2_exponent: float,
    shortcut: float,
    key_bias: torch.Tensor | None,
    query_bias: torch.Tensor | None,
    conv: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """q, k, v [B, H, N, D]; agents are the means of `cells` of the grid. Returns out."""
    dtype = q.dtype
    q, k, v = (x.to(torch.promote_types(dtype, torch.float32)) for x in (q, k, v))
    grid_q, grid_v = (x[:, :, layout.grid_slice] for x in (q, v))
    agents = _means(grid_q.unflatten(2, layout.grid), cells).flatten(2, 4)
    first = second = 0
    if key_bias is not None:
        first = q.new_zeros(q.shape[1], agents.shape[2], q.shape[2])
        first[:, :, layout.grid_slice] = _bias(key_bias.to(q.dtype), cells, layout.grid)
    if query_bias is not None:
        second = _bias(query_bias.to(q.dtype), cells, layout.grid).mT
    seen = (agents @ k.mT * scale + first).softmax(-1) @ v
    scale2 = scale ** (2 * scale2_exponent)
    out = (grid_q @ agents.mT * scale2 + second).softmax(-1) @ seen + shortcut * grid_v
    if conv is not None:
        out = out + _convolve(grid_v, layout.grid, conv.to(q.dtype))
    whole, _ = masked_softmax(q, k, v, None, scale)
    whole[:, :, layout.grid_slice] = out
    return whole.to(dtype)


def _means(x: torch.Tensor, cells: Sequence[int]) -> torch.Tensor:
    """Cell i of n holds the tokens from floor(i size / n) to ceil((i + 1) size / n)."""
    for dim, count in enumerate(cells, start=2):
        size = x.shape[dim]
        parts = [
            x.narrow(dim, i * size // count, -(-(i + 1) * size // count) - i * size // count)
            for i in range(count)
        ]
        x = torch.cat([part.mean(dim, keepdim=True) for part in parts], dim)
    return x


def _bias(table: torch.Tensor, cells: Sequence[int], grid: Sequence[int]) -> torch.Tensor:
    """The table [H, s, s, s, s] bilinearly at (cell, token): [H, cells, tokens]."""
    axes = [_hats(table.shape[-1], size).to(table) for size in (*cells[1:], *grid[1:])]
    at = torch.einsum("hijkl,ai,bj,ck,dl->habcd", table, *axes).flatten(3).flatten(1, 2)
    return at.repeat(1, cells[0], grid[0])


def _hats(side: int, size: int) -> torch.Tensor:
    """Weights [size, side] of `side` nodes for tokens at `size` places of an axis of one length."""
    place = ((torch.arange(size, dtype=torch.float64) + 0.5) * side / size - 0.5).clamp(0, side - 1)
    return (1 - (place[:, None] - torch.arange(side)).abs()).clamp_min(0)


def _convolve(v: torch.Tensor, grid: Sequence[int], weight: torch.Tensor) -> torch.Tensor:
    """Each channel of v [B, H, f*h*w, D] with its kernel of weight [H, D, c, c], frame by frame."""
    frames, height, width = grid
    reach = weight.shape[-1] // 2
    x = F.pad(v.unflatten(2, grid), (0, 0, reach, reach, reach, reach))  # [B, H, f, h, w, D]
    total = 0
    for y in range(weight.shape[-1]):
        for z in range(weight.shape[-1]):
            moved = x[:, :, :, y : y + height, z : z + width]
            total = total + moved * weight[:, :, y, z][:, None, None, None]
    return total.flatten(2, 4)
