"""Launches of local attention's kernels over the grid, and of flash attention for the context.

Context queries see every token; grid queries see the context and their near tokens. All tensors are
[B, H, N, D] in sequence order, the grid's tokens from `start` on; what comes out lies as
[B, N, H, D].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from triton.tools.tensor_descriptor import TensorDescriptor

from . import flash_backward, flash_forward, pool_forward
from .foveated_backward import foveated_backward_cells_kernel
from .foveated_rings import NO_RINGS, Rings
from .launch import in_units
from .local_backward import local_backward_keys_kernel, local_backward_queries_kernel
from .local_forward import local_forward_kernel
from .local_tiles import LocalTiles, tiles_for
from .near import Near
from .rows import head_parts
from .softmax import LOG2E

__all__ = ["backward", "empty_like", "forward"]

Grid = tuple[int, int, int]


def forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    start: int,
    grid: Sequence[int],
    near: Near,
    scale: float,
    rings: Rings = NO_RINGS,
    tiles: LocalTiles | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """out [B, H, N, D] and lse [B, H, N] float32."""
    stop = start + grid[0] * grid[1] * grid[2]
    out, lse = empty_like(q), q.new_empty(q.shape[:3], dtype=torch.float32)
    context = [_context(x, start, stop) for x in (q, k, v)]
    inner = [x[:, :, start:stop] for x in (q, k, v, out, lse)]
    near, grid = near.canonical(grid, rings.levels == 0)
    _forward(*inner, *context[1:], grid, near, scale, rings, tiles)
    if context[0].shape[2]:
        some, some_lse = flash_forward.forward(context[0], k, v, None, scale)
        _put_context(out, some, start, stop)
        _put_context(lse, some_lse, start, stop)
    return out, lse


def _forward(q, k, v, out, lse, context_k, context_v, grid, near, scale, rings, tiles):
    context = context_k.shape[2]
    if tiles is None:
        tiles = tiles_for("forward", q, near, rings.levels, near.parts(grid)[1])
    keys = (k, v, context_k, context_v)
    unit, strides = in_units(q, *keys, out)
    tma = tiles.tma and near.fits_descriptors and _fits_descriptors(*keys)
    if tma:
        keys = (*(_boxes(x, grid, tiles) for x in (k, v)), *(_blocks(x, tiles) for x in keys[2:]))
    count, numbers, shapes = _geometry(q, grid, near, context, rings.near_cell, tiles)
    local_forward_kernel[(count,)](
        q, *keys, *rings.pooled(k, v, grid), near.radii_on(q.device), out, lse,
        *strides, lse.stride(1),
        *numbers, scale * LOG2E, rings.mass, **shapes, LEVELS=rings.levels, POOL=rings.pool,
        CUT=rings.cuts(grid), TAIL=context % tiles.context != 0,
        TMA=tma, UNIT=unit, I64=_passes_int32(q, k, v, out),
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip


def backward(
    grad_out: torch.Tensor,
    grad_lse: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    lse: torch.Tensor,
    start: int,
    grid: Sequence[int],
    near: Near,
    scale: float,
    rings: Rings = NO_RINGS,
    query_tiles: LocalTiles | None = None,
    key_tiles: LocalTiles | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dq, dk, dv [B, H, N, D] from what `forward` took and gave."""
    stop = start + grid[0] * grid[1] * grid[2]
    near, grid = near.canonical(grid, rings.levels == 0)
    grad_out = grad_out if grad_out.stride(-1) == 1 else grad_out.contiguous()
    dq, dk, dv, shift = empty_like(q), empty_like(k), empty_like(v), torch.empty_like(lse)
    tensors = (grad_out, grad_lse.contiguous(), q, k, v, out, lse)
    g, g_lse, cq, ck, cv, c_out, c_lse = (_context(x, start, stop) for x in tensors)
    c_lse, c_shift = c_lse.contiguous(), c_lse
    if cq.shape[2]:
        some, c_shift = flash_backward.queries(
            g, g_lse.contiguous(), cq, k, v, None, c_out, c_lse, scale
        )
        _put_context(dq, some, start, stop)
        _put_context(shift, c_shift, start, stop)
    inner = [x[:, :, start:stop] for x in (*tensors, shift, dq, dk, dv)]
    pooled = rings.pooled(inner[3], inner[4], grid)
    _queries(*inner[:9], ck, cv, pooled, grid, near, scale, rings, query_tiles)
    _keys(*inner, cq, g, c_lse, c_shift, grid, near, scale, rings, key_tiles)
    for level in range(rings.levels):
        cells = pooled[2 * level : 2 * level + 2]
        _cells(*inner, cells, level + 1, grid, near, scale, rings, key_tiles)
    if cq.shape[2]:
        some = flash_backward.keys(grad_out, q, ck, cv, None, lse, shift, scale)
        for whole, rows in zip((dk, dv), some, strict=True):
            _put_context(whole, rows, start, stop)
    return dq, dk, dv


def _queries(
    grad_out, grad_lse, q, k, v, out, lse, shift, dq, ck, cv, pooled,
    grid, near, scale, rings, tiles,
):  # fmt: skip
    if tiles is None:
        tiles = tiles_for("queries", q, near, rings.levels, near.parts(grid)[1])
    unit, strides = in_units(q, k, v, ck, cv, out, grad_out, dq)
    count, numbers, shapes = _geometry(q, grid, near, ck.shape[2], rings.near_cell, tiles)
    local_backward_queries_kernel[(count,)](
        q, k, v, ck, cv, *pooled, near.radii_on(q.device), out, grad_out, lse, grad_lse, shift, dq,
        *strides, lse.stride(1), *numbers, scale, scale * LOG2E, rings.mass, **shapes,
        LEVELS=rings.levels, POOL=rings.pool, CUT=rings.cuts(grid),
        UNIT=unit, I64=_passes_int32(q, k, v, out, grad_out, dq),
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip


def _keys(
    grad_out, grad_lse, q, k, v, out, lse, shift, dq, dk, dv, cq, cg, c_lse, c_shift,
    grid, near, scale, rings, tiles,
):  # fmt: skip
    if tiles is None:
        tiles = tiles_for("keys", q, near, rings.levels, near.parts(grid)[1])
    unit, strides = in_units(q, k, v, grad_out, cq, cg, dk, dv)
    count, numbers, shapes = _geometry(q, grid, near, cq.shape[2], rings.near_cell, tiles)
    local_backward_keys_kernel[(count,)](
        q, k, v, grad_out, cq, cg, near.radii_on(q.device), lse, shift, c_lse, c_shift, dk, dv,
        *strides, lse.stride(1), *numbers, scale, scale * LOG2E, **shapes,
        UNIT=unit, I64=_passes_int32(q, k, v, grad_out, dk, dv),
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip


def _cells(
    grad_out, grad_lse, q, k, v, out, lse, shift, dq, dk, dv, cells, level,
    grid, near, scale, rings, tiles,
):  # fmt: skip
    """Adds to dk and dv of the tokens what their cells of a level get."""
    if tiles is None:
        tiles = tiles_for("keys", q, near, rings.levels, near.parts(grid)[1])
    side = rings.pool**level
    batch, heads, _, dim = q.shape
    rows, columns = triton.cdiv(grid[1], side), triton.cdiv(grid[2], side)
    count = grid[0] * triton.cdiv(rows, tiles.height) * triton.cdiv(columns, tiles.width)
    unit, strides = in_units(q, grad_out)
    d0, d1 = head_parts(dim)
    grads = [torch.empty_like(x) for x in cells]
    foveated_backward_cells_kernel[(batch * heads * count,)](
        q, *cells, grad_out, lse, shift, *grads, *strides, lse.stride(1),
        heads, count, *grid, near.radius, scale, scale * LOG2E, level * rings.mass,
        D=dim, D0=d0, D1=d1, TH=tiles.height, TW=tiles.width,
        KH=tiles.key_height, KW=tiles.key_width, U=side, POOL=rings.pool,
        LAST=level == rings.levels, PARTITION=rings.partition, CUT=rings.cuts(grid),
        FRAMES=grid[0] > 1, UNIT=unit, I64=_passes_int32(q, grad_out),
        num_warps=tiles.num_warps, num_stages=tiles.num_stages,
    )  # fmt: skip
    for whole, x, grad in zip((dk, dv), (k, v), grads, strict=True):
        whole += pool_forward.backward(grad, x, grid, [1, side, side])


def _geometry(q, grid, near, context, cell, tiles):
    """Programs, the numbers every kernel takes, and its compile-time shapes."""
    batch, heads, _, dim = q.shape
    count, (frames, height, width) = near.parts(grid)
    count *= frames * triton.cdiv(height, tiles.height) * triton.cdiv(width, tiles.width)
    d0, d1 = head_parts(dim)
    shapes = {
        "D": dim, "D0": d0, "D1": d1, "TH": tiles.height, "TW": tiles.width,
        "KH": tiles.key_height, "KW": tiles.key_width, "BC": tiles.context,
        "CELL": cell, "FRAMES": grid[0] > 1, "WINDOW": near.kind, "CONTEXT": context > 0,
    }  # fmt: skip
    numbers = (heads, count, *grid, *near.numbers(cell), context)
    return batch * heads * count, numbers, shapes


def empty_like(x: torch.Tensor) -> torch.Tensor:
    """[B, H, N, D] that lies as [B, N, H, D]."""
    return x.new_empty(x.shape[0], x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2)


def _context(x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """The rows of x [B, H, N, ...] outside start to stop, a view where they lie on one side."""
    if start == 0:
        return x[:, :, stop:]
    if stop == x.shape[2]:
        return x[:, :, :start]
    return torch.cat((x[:, :, :start], x[:, :, stop:]), 2)


def _put_context(x: torch.Tensor, rows: torch.Tensor, start: int, stop: int) -> None:
    """Writes what `_context` reads."""
    x[:, :, :start] = rows[:, :, :start]
    x[:, :, stop:] = rows[:, :, start:]


def _passes_int32(*tensors: torch.Tensor) -> bool:
    """Whether an offset within one batch entry and head passes 2^31."""
    return any((x.shape[2] - 1) * x.stride(2) + x.shape[3] >= 1 << 31 for x in tensors)


def _fits_descriptors(*tensors: torch.Tensor) -> bool:
    """Whether the hardware can copy boxes of them: 16-byte steps, the head dim in one part."""
    dim, size = tensors[0].shape[-1], tensors[0].element_size()
    return head_parts(dim) == (dim, 0) and all(
        x.data_ptr() % 16 == 0 and all(step * size % 16 == 0 for step in x.stride()[:3])
        for x in tensors
    )


def _boxes(x: torch.Tensor, grid: Grid, tiles: LocalTiles) -> TensorDescriptor:
    """Tiles of a grid, its frames one below the other."""
    batch, heads, row = x.stride()[:3]
    shape = [*x.shape[:2], grid[0] * grid[1], grid[2], x.shape[3]]
    block = [1, 1, tiles.key_height, tiles.key_width, x.shape[3]]
    return TensorDescriptor(x, shape, [batch, heads, grid[2] * row, row, 1], block)


def _blocks(x: torch.Tensor, tiles: LocalTiles) -> TensorDescriptor | torch.Tensor:
    if x.shape[2] == 0:
        return x  # never read
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, tiles.context, x.shape[3]])
