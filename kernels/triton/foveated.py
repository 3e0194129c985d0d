"""Foveated attention by Triton as a PyTorch operator: `grid_op` over discs and rings of cells.

One pass: context, near tokens and every ring of cells go through one softmax in one program. The
loops take the same instructions per score element as they would in kernels of their own, and the
state they share costs a few registers and no spill (docs/kernels.md). As three branches merged by
log-sum-exp, q and a partial output would travel once for each: N D numbers twelve times over memory
instead of four.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..field import Field
from ..layout import TokenLayout
from .foveated_rings import Rings
from .grid_op import grid_op
from .near import Near, disc

__all__ = ["foveated_attention"]

Pair = tuple[torch.Tensor, torch.Tensor]


def _sight(
    grid: Sequence[int], radius: int, pool: int, levels: int, mass: bool, partition: bool
) -> tuple[Near, Rings]:
    return disc([radius]), Rings(levels, pool, mass, partition)


def _on_torch(
    layout: TokenLayout,
    radius: int,
    pool: int,
    levels: int,
    mass: bool,
    partition: bool,
    scale: float,
) -> Callable[..., Pair]:
    from ..foveated import foveated_attention

    return partial(
        foveated_attention, layout=layout, radius=radius, pool=pool, levels=max(levels, 1),
        mass=mass, partition=partition, scale=scale, impl="torch", return_lse=True,
    )  # fmt: skip


_attend = grid_op(
    "foveated", "int radius, int pool, int levels, bool mass, bool partition", _sight, _on_torch
)


def foveated_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: TokenLayout,
    radius: int,
    pool: int,
    levels: int,
    mass: bool,
    partition: bool,
    scale: float | None,
) -> Pair:
    """out [B, H, N, D] and lse [B, H, N] of the operator of this name; at most two levels."""
    if partition:
        levels = Field(layout.grid, radius, pool, levels).used_levels
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    where = (layout.grid_slice.start, list(layout.grid))
    return _attend(q, k, v, *where, radius, pool, levels, mass, partition, scale)
