"""Foveated attention: keys near the query exactly, the rest of the grid as average cells.

Cells of `pool` x `pool` tokens closer to the query's own cell than `radius` are attended token by
token, so every key within the radius is exact. Each other cell is one key: the mean of its K and V,
with log(count) on its logit, so that it carries the softmax mass of the tokens it stands for. Near
tokens and far cells partition the keys. With more levels, cells of side pool^l begin at distance
radius * pool^(l-1): cell over distance stays the same, the cost grows as N log N.

Without `mass` and `partition` it is the pooled variant of CLEAR (arXiv:2412.16112): the plain disc
and every cell, weighted by `pool_weight`. Keys are pooled as given: after rotary embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from .branches import Band, Branch, answer, axis_order, from_axes, to_axes
from .counts import KeyCount
from .far import far_attention
from .field import Field
from .inputs import HAS_TRITON, check_impl, check_positive, check_tensors
from .layout import TokenLayout
from .local import disc, local_keys
from .partial import partial_attention
from .pooling import cell_logs, full_log, pool_cells
from .reference import reference_foveated
from .tiles import tiled_attention

__all__ = [
    "all_cells",
    "check_foveated",
    "foveated_attention",
    "foveated_keys",
    "partition_levels",
    "pool_level",
]


def foveated_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    layout: TokenLayout,
    radius: int = 8,
    pool: int = 4,
    levels: int = 1,
    mass: bool = True,
    partition: bool = True,
    pool_weight: torch.Tensor | None = None,
    scale: float | None = None,
    impl: str | None = None,
    return_lse: bool = False,
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Attend each grid token of q, k, v [B, H, N, D] to context, near tokens and far cells.

    `radius` in tokens, `pool` the side of a cell, `levels` how many sizes of cell. `mass` adds
    log(count). `partition` shows a key either exactly or in its cell; without it the near field is
    the disc of `local_attention` and every cell is seen too. `pool_weight` [pool, pool] or CLEAR's
    (1, 1, 1, pool, 1, pool, 1) replaces the mean. Context queries are dense over tokens, not cells.
    """
    check_tensors(q, k, v, layout)
    weight = check_foveated(layout, radius, pool, levels, partition, pool_weight)
    impl = check_impl(impl, q, lambda: _why_not_triton(q, k, v, levels, weight, scale))
    if impl == "triton":
        from .triton.foveated import foveated_attention as triton_foveated

        options = (radius, pool, levels, mass, partition, scale)
        out, lse = triton_foveated(q, k, v, layout, *options)
        return (out, lse) if return_lse else out
    if impl == "reference":
        options = (radius, pool, levels, mass, partition, weight, scale)
        out, lse = reference_foveated(q, k, v, layout, *options)
        return (out, lse) if return_lse else out
    field = Field(layout.grid, radius, pool, levels)
    grid = [layout.grid_of(x) for x in (q, k, v)]
    pooled = [
        [pool_level(to_axes(x, field.grid), field, level, weight) for x in grid[1:]]
        for level in range(1, 1 + (field.used_levels if partition else 1))
    ]
    if partition:
        branches = partition_levels(*grid, pooled, field, mass, scale)
    else:
        branches = [
            disc(*grid, layout.grid, radius, scale),
            all_cells(grid[0], pooled[0], field, mass, scale),
        ]
    return answer(q, k, v, layout, branches, scale, return_lse)


def _why_not_triton(q, k, v, levels, weight, scale) -> str:
    if not HAS_TRITON:
        return "triton is not installed"
    if levels > 2:
        return f"levels={levels}, the kernels take up to 2"
    if weight is not None:
        return "pool_weight, the kernels take averages"
    from .triton.device import why_not_tensors

    return why_not_tensors(q, k, v, scale=scale)


def foveated_keys(
    layout: TokenLayout, radius: int, pool: int = 4, levels: int = 1, partition: bool = True
) -> KeyCount:
    """Keys per grid query of `foveated_attention`, cells and context included."""
    check_foveated(layout, radius, pool, levels, partition, None)
    field = Field(layout.grid, radius, pool, levels)
    if partition:
        return KeyCount(*(layout.num_context + keys for keys in field.count_keys()))
    return KeyCount(*(field.num_cells(1) + keys for keys in local_keys(layout, radius)))


def check_foveated(
    layout: TokenLayout,
    radius: int,
    pool: int,
    levels: int,
    partition: bool,
    weight: torch.Tensor | None,
) -> torch.Tensor | None:
    """The pooling weight as [pool, pool], after checking every option."""
    check_positive("radius", radius)
    check_positive("pool", pool, least=2)
    check_positive("levels", levels)
    if levels > 1 and not partition:
        raise ValueError(f"partition=False takes levels=1, got levels={levels}")
    if weight is None:
        return None
    if levels > 1:
        raise ValueError(f"pool_weight takes levels=1, got levels={levels}")
    if not isinstance(weight, torch.Tensor):
        raise ValueError(f"pool_weight must be a tensor, got {weight!r}")
    shapes = ((pool, pool), (1, 1, 1, pool, 1, pool, 1))
    if tuple(weight.shape) not in shapes:
        raise ValueError(
            f"pool_weight must be {shapes[0]} or {shapes[1]} for pool={pool}, "
            f"got {tuple(weight.shape)}"
        )
    if layout.grid[1] % pool or layout.grid[2] % pool:
        raise ValueError(
            f"pool_weight needs rows and columns divisible by pool={pool}, got grid {layout.grid}; "
            "leave it out to average cells that the border cuts"
        )
    return weight.reshape(pool, pool)


def partition_levels(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    pooled: Sequence[Sequence[torch.Tensor]],
    field: Field,
    mass: bool,
    scale: float | None,
    band: Band | None = None,
) -> list[Branch]:
    """The branch of each level, every key in exactly one.

    q, k, v are [B, H, tokens, D]; `pooled` are the cells [B, H, r, a, b, D] of k and v at each
    level from 1. With a band, q are its tokens, and keys and cells those of `field.bands`.
    """
    if field.used_levels == 0:
        return [partial_attention(q, k, v, None, scale)]
    limits = (Band.whole(field.grid) if band is None else band).limits(field.grid)
    q = to_axes(q, field.grid, None if band is None else band.of(field.grid))
    tokens = field.bands(band)[0].of(field.grid)
    near = [to_axes(x, field.grid, tokens) for x in (k, v)]
    branches = []
    for level, (keys, values) in enumerate((near, *pooled)):
        bias = _bias(q, field, level, mass)
        if field.is_last(level):
            start = [start for start, _ in limits]
            out, lse = far_attention(q, keys, values, field.cell(level), bias, scale, start)
        else:
            axes, empty_rows = field.axes(level, band), level > 0
            out, lse = tiled_attention(q, keys, values, axes, bias, scale, empty_rows)
        lse = lse + full_log(field.sizes, field.cell(level)) if mass else lse
        branches.append((from_axes(out, field.grid), from_axes(lse, field.grid)))
    return branches


def _bias(q, field, level, mass) -> Callable[..., torch.Tensor]:
    dtype = torch.promote_types(q.dtype, torch.float32)

    def bias(queries: Sequence[torch.Tensor], keys: Sequence[torch.Tensor]) -> torch.Tensor:
        visible = field.visible(level, queries, keys)
        logs = torch.zeros((), dtype=dtype, device=q.device)
        if mass and level > 0:
            logs = cell_logs(field.sizes, field.cell(level), keys, dtype)
        return logs.expand_as(visible).masked_fill(~visible, -torch.inf)

    return bias


def pool_level(
    x: torch.Tensor, field: Field, level: int, weight: torch.Tensor | None
) -> torch.Tensor:
    """The cells [B, H, r, a, b, D] of a level from tokens x [B, H, rows, a, b, D]."""
    if weight is not None:
        weight = weight[None].permute(axis_order(field.grid))
    return pool_cells(x, field.cell(level), weight)


def all_cells(
    q: torch.Tensor,
    cells: Sequence[torch.Tensor],
    field: Field,
    mass: bool,
    scale: float | None,
) -> Branch:
    """The branch of q [B, H, tokens, D] over every cell of level 1, the same for every query.

    `cells` are those of k and of v, [B, H, r, a, b, D].
    """
    cell = field.cell(1)
    k, v = (x.flatten(2, 4) for x in cells)
    if not mass:
        return partial_attention(q, k, v, None, scale)
    keys = [torch.arange(0, *axis, device=q.device) for axis in zip(field.sizes, cell, strict=True)]
    dtype = torch.promote_types(q.dtype, torch.float32)
    logs = cell_logs(field.sizes, cell, keys, dtype)[None]
    out, lse = partial_attention(q, k, v, logs, scale)
    return out, lse + full_log(field.sizes, cell)
