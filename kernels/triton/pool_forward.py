"""Averages of the cells of a token grid, their gradient, and how alike the tokens of a cell are.

Cells cut by the border average the tokens that are there. The likeness of a cell is the mean cosine
of its pairs of tokens, |mean unit token|^2 (SpargeAttn, arXiv:2502.18137), without a gram matrix.
"""

from collections.abc import Sequence
from math import prod

import torch
import triton
import triton.language as tl

from .launch import in_units, signature, slab
from .linear_tiles import load_block, padded, store_block
from .variants import Variant

__all__ = ["backward", "empty_cells", "forward", "statistics", "variants"]

_CELLS = 16  # of one program


@triton.jit(do_not_specialize=["heads", "frames", "height", "width", "cells"])
def _pool_kernel(
    X, OUT, LIKENESS, x_batch, x_head, x_row, o_batch, o_head, o_row,
    heads, frames, height, width, cells,
    CF: tl.constexpr, CH: tl.constexpr, CW: tl.constexpr, D: tl.constexpr, DP: tl.constexpr,
    BC: tl.constexpr, STATISTICS: tl.constexpr, BACKWARD: tl.constexpr, UNIT: tl.constexpr,
):  # fmt: skip
    """Grid (blocks of cells, B H); if BACKWARD, OUT is read and X is written."""
    cell = tl.program_id(0) * BC + tl.arange(0, BC)
    columns = tl.arange(0, DP)
    inside = columns < D
    ok = cell < cells
    x_row, o_row = x_row * UNIT, o_row * UNIT
    X = slab(X, x_batch, x_head, heads, UNIT)
    OUT = slab(OUT, o_batch, o_head, heads, UNIT)
    cell64 = cell.to(tl.int64)
    across = tl.cdiv(width, CW)
    down = tl.cdiv(height, CH)
    f = cell // (across * down) * CF
    y = cell // across % down * CH
    x = cell % across * CW
    first = (f.to(tl.int64) * height + y) * width + x
    count = tl.minimum(frames - f, CF) * tl.minimum(height - y, CH) * tl.minimum(width - x, CW)
    count = tl.where(ok, count, 1).to(tl.float32)
    if BACKWARD:
        mean = load_block(OUT, cell64, o_row, ok, columns, inside).to(tl.float32) / count[:, None]
    else:
        mean = tl.zeros([BC, DP], tl.float32)
    unit = tl.zeros([BC, DP], tl.float32)
    for t in range(CF * CH * CW):
        df = t // (CH * CW)
        dy = t // CW % CH
        dx = t % CW
        token = first + (df * height + dy) * width + dx
        there = ok & (f + df < frames) & (y + dy < height) & (x + dx < width)
        if BACKWARD:
            store_block(X, mean, token, x_row, there, columns, inside)
        else:
            row = load_block(X, token, x_row, there, columns, inside).to(tl.float32)
            mean += row
            if STATISTICS:
                norm = tl.sqrt(tl.sum(row * row, 1))
                unit += row / tl.where(norm > 0, norm, 1.0)[:, None]
    if not BACKWARD:
        store_block(OUT, mean / count[:, None], cell64, o_row, ok, columns, inside)
    if STATISTICS:
        unit /= count[:, None]
        likeness = LIKENESS + tl.program_id(1).to(tl.int64) * cells + cell
        tl.store(likeness, tl.sum(unit * unit, 1), mask=ok)


def _launch(x, out, likeness, grid, cell, backward=False):
    batch, heads, cells, dim = out.shape
    # a cell ends with the grid
    cell = [min(sides) for sides in zip(grid, cell, strict=True)]
    unit, strides = in_units(x, out)
    _pool_kernel[(triton.cdiv(cells, _CELLS), batch * heads)](
        x, out, likeness, *strides, heads, *grid, cells,
        CF=cell[0], CH=cell[1], CW=cell[2], D=dim, DP=padded(dim), BC=_CELLS,
        STATISTICS=likeness is not None, BACKWARD=backward, UNIT=unit, num_warps=4,
    )  # fmt: skip


def forward(x: torch.Tensor, grid: Sequence[int], cell: Sequence[int]) -> torch.Tensor:
    """Means [B, H, cells, D]."""
    out = empty_cells(x, grid, cell)
    _launch(x, out, None, grid, cell)
    return out


def backward(
    grad: torch.Tensor, x: torch.Tensor, grid: Sequence[int], cell: Sequence[int]
) -> torch.Tensor:
    """The gradient of x from that of its means."""
    dx = torch.empty_like(x)
    _launch(dx, grad.contiguous(), None, grid, cell, backward=True)
    return dx


def statistics(
    x: torch.Tensor, grid: Sequence[int], cell: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Means [B, H, cells, D] and likeness [B, H, cells] in float32."""
    out = empty_cells(x, grid, cell)
    likeness = x.new_empty(out.shape[:3], dtype=torch.float32)
    _launch(x, out, likeness, grid, cell)
    return out, likeness


def empty_cells(x: torch.Tensor, grid: Sequence[int], cell: Sequence[int]) -> torch.Tensor:
    """Room for one row per cell, [B, H, cells, D]."""
    cells = prod(-(-size // side) for size, side in zip(grid, cell, strict=True))
    return x.new_empty(*x.shape[:2], cells, x.shape[3])


def variants() -> list[Variant]:
    """Cells of 4 x 4: means, means with likeness, and the gradient."""
    return [
        _variant(f"pool_{name}_{dim}", dim, statistics=name == "statistics", backward=back)
        for name, back in (("forward", False), ("statistics", False), ("backward", True))
        for dim in (64, 128, 160)
    ]


def _variant(name: str, dim: int, statistics: bool, backward: bool) -> Variant:
    constexprs = {
        "CF": 1, "CH": 4, "CW": 4, "D": dim, "DP": padded(dim), "BC": _CELLS,
        "STATISTICS": statistics, "BACKWARD": backward, "UNIT": 8,
    }  # fmt: skip
    if not statistics:
        constexprs["LIKENESS"] = None
    types = signature(_pool_kernel, constexprs, "bf16", ["LIKENESS"])
    return Variant(name, _pool_kernel, types, constexprs, 4, 3, default=True, tensor_cores=False)
