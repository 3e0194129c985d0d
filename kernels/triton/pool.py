"""Averages of the cells of a token grid, and how alike the tokens of a cell are.

Cells cut by the border average the tokens that are there. The likeness of a cell is the mean cosine
of its pairs of tokens, |mean unit token|^2, which decides where a block may stand for its tokens
(SpargeAttn, arXiv:2502.18137) and here needs no gram matrix. CPU tensors run the torch path, unless
Triton interprets its kernels.
"""

from collections.abc import Sequence
from math import prod

import torch
import torch.nn.functional as F

from ..pooling import pool_cells as pool_on_cpu
from . import pool_forward
from .device import interprets, why_not_device

__all__ = ["pool_cells", "tile_statistics", "why_not"]


def pool_cells(x: torch.Tensor, grid: Sequence[int], cell: Sequence[int]) -> torch.Tensor:
    """Means [B, H, cells, D] of the cells of x [B, H, f*h*w, D], cells in raster order.

    `grid` is (f, h, w) and `cell` its cells' extent, in tokens. Raises NotImplementedError with the
    text of `why_not` on a GPU.
    """
    _require(x, grid, cell)
    return _pool(x, list(grid), list(cell))


def tile_statistics(
    x: torch.Tensor, grid: Sequence[int], cell: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """`pool_cells` and the likeness [B, H, cells] of the tokens of each cell, without gradients."""
    _require(x, grid, cell)
    return _statistics(x.detach(), list(grid), list(cell))


def why_not(x: torch.Tensor) -> str:
    """Why the kernels cannot take this call; empty when they can."""
    if x.dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"{x.dtype}, the kernels take float16, bfloat16 and float32"
    if x.shape[0] * x.shape[1] > 65535:
        return f"{x.shape[0] * x.shape[1]} pairs of batch entry and head, at most 65535"
    if x.stride(-1) != 1:
        return "the head dim is not contiguous"
    return why_not_device(x.device)


def _require(x: torch.Tensor, grid: Sequence[int], cell: Sequence[int]) -> None:
    if len(grid) != 3 or prod(grid) != x.shape[2]:
        raise ValueError(f"grid must be (f, h, w) of {x.shape[2]} tokens, got {tuple(grid)}")
    if len(cell) != 3 or min(cell) < 1:
        raise ValueError(f"cell must be three sizes >= 1, got {tuple(cell)}")
    if (x.device.type != "cpu" or interprets()) and (reason := why_not(x)):
        raise NotImplementedError(f"pooling: {reason}")


@torch.library.custom_op("foveate::pool_forward", mutates_args=(), device_types="cuda")
def _pool(x: torch.Tensor, grid: list[int], cell: list[int]) -> torch.Tensor:
    return pool_forward.forward(x, grid, cell)


@torch.library.custom_op("foveate::pool_backward", mutates_args=(), device_types="cuda")
def _pool_backward(
    grad: torch.Tensor, x: torch.Tensor, grid: list[int], cell: list[int]
) -> torch.Tensor:
    return pool_forward.backward(grad, x, grid, cell)


@torch.library.custom_op("foveate::pool_statistics", mutates_args=(), device_types="cuda")
def _statistics(
    x: torch.Tensor, grid: list[int], cell: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    return pool_forward.statistics(x, grid, cell)


@_pool.register_kernel("cpu")
def _(x, grid, cell):
    if interprets():
        return pool_forward.forward(x, grid, cell)
    return pool_on_cpu(x.unflatten(2, grid), cell).flatten(2, 4)


@_pool_backward.register_kernel("cpu")
def _(grad, x, grid, cell):
    if interprets():
        return pool_forward.backward(grad, x, grid, cell)
    index = _cell_index(grid, cell)
    return torch.empty_like(x).copy_((grad / index.bincount()[:, None])[:, :, index])


@_statistics.register_kernel("cpu")
def _(x, grid, cell):
    if interprets():
        return pool_forward.statistics(x, grid, cell)
    unit = F.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=-1)
    return _pool(x, grid, cell), _pool(unit, grid, cell).square().sum(-1)


def _cell_index(grid: Sequence[int], cell: Sequence[int]) -> torch.Tensor:
    """The cell that each token lies in [f*h*w]."""
    index = torch.zeros(1, 1, 1, dtype=torch.int64)
    for axis, (size, side) in enumerate(zip(grid, cell, strict=True)):
        along = (torch.arange(size) // side).view([-1 if i == axis else 1 for i in range(3)])
        index = index * -(-size // side) + along
    return index.flatten()


@_pool.register_fake
def _(x, grid, cell):
    return pool_forward.empty_cells(x, grid, cell)


@_pool_backward.register_fake
def _(grad, x, grid, cell):
    return torch.empty_like(x)


@_statistics.register_fake
def _(x, grid, cell):
    out = pool_forward.empty_cells(x, grid, cell)
    return out, out.new_empty(out.shape[:3], dtype=torch.promote_types(x.dtype, torch.float32))


def _save(ctx, inputs, output):
    x, ctx.grid, ctx.cell = inputs
    ctx.save_for_backward(x)


def _differentiate(ctx, grad):
    return _pool_backward(grad, *ctx.saved_tensors, ctx.grid, ctx.cell), None, None


_pool.register_autograd(_differentiate, setup_context=_save)
