"""Tiles of a token grid in raster order, as Triton helpers: where they lie, which keys they see.

A program owns one tile of TH x TW tokens and walks the box of the keys it may see in tiles of
KH x KW, row by row, in one flat loop that the compiler can pipeline. A tile that sticks out of the
grid reads border tokens again: they are masked as keys and never stored as queries.
"""

import triton
import triton.language as tl

__all__ = ["box", "gaps", "near_of", "next_tile", "tile_of", "tokens_of"]


@triton.jit
def tile_of(tile, height, width, TH: tl.constexpr, TW: tl.constexpr, FRAMES: tl.constexpr):
    """Frame, first row and first column of a tile."""
    across = tl.cdiv(width, TW)
    if FRAMES:
        area = tl.cdiv(height, TH) * across
        return tile // area, tile % area // across * TH, tile % across * TW
    else:
        return 0, tile // across * TH, tile % across * TW


@triton.jit
def tokens_of(t, y, x, height, width, I64: tl.constexpr, place=None):
    """Raster index of tokens of frame t, rows y and columns x, those outside moved inside.

    `place` says where a part of a grid lies: its first token and the steps along each axis.
    """
    y = tl.minimum(y, height - 1)
    x = tl.minimum(x, width - 1)
    if place is None:
        token = (t * height + y) * width + x
    else:
        token = place[0] + t * place[1] + y * place[2] + x * place[3]
    if I64:
        token = token.to(tl.int64)
    return token


@triton.jit
def box(first, size, halo, SIDE: tl.constexpr, CELL: tl.constexpr):
    """First and last + 1 of the tokens along one axis that a tile sees; begins with a cell."""
    last = (first + SIDE - 1) // CELL * CELL + CELL
    return tl.maximum(first // CELL * CELL - halo, 0), tl.minimum(last + halo, size)


@triton.jit
def next_tile(t, y, x, y0, y1, x0, x1, KH: tl.constexpr, KW: tl.constexpr, FRAMES: tl.constexpr):
    """The key tile after the one at (t, y, x) in the box of rows y0 to y1 and columns x0 to x1."""
    x += KW
    end = x >= x1
    x = tl.where(end, x0, x)
    y = tl.where(end, y + KH, y)
    if FRAMES:
        end = y >= y1
        y = tl.where(end, y0, y)
        t = tl.where(end, t + 1, t)
    return t, y, x


@triton.jit
def gaps(cell, first, offset, size, CELL: tl.constexpr, UNITS: tl.constexpr, SIDE: tl.constexpr):
    """Squared distance along one axis from cells of stationary tokens to those of walked ones.

    `cell` [M] against the keys `first + offset` [N], offset < SIDE, with UNITS keys to a cell of
    CELL tokens: cells i and j are (|i - j| - 1) CELL + 1 tokens apart. Keys from `size` on are far
    from everything. float32 [M, N], exact where it decides.
    """
    inside = offset < size - first
    if SIDE % UNITS == 0:
        # `first` begins a cell: what follows it is the same for every tile
        start = (cell - first // UNITS).to(tl.float32)
        key = tl.where(inside, (offset // UNITS).to(tl.float32), 1.0e6)
    else:
        start = cell.to(tl.float32)
        key = tl.where(inside, ((first + offset) // UNITS).to(tl.float32), 1.0e6)
    gap = start[:, None] - key[None, :]
    if CELL > 1:
        gap = tl.maximum(tl.abs(gap) * CELL - (CELL - 1), 0.0)
    return gap * gap


@triton.jit
def near_of(
    y, x, first_y, first_x, rows, columns, within,
    M: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, CELL: tl.constexpr, UNITS: tl.constexpr,
):  # fmt: skip
    """Whether the cells of tokens (y, x) and of the keys of a tile are close, [M, KH KW].

    A cell is CELL tokens or UNITS keys wide. The squared distance is compared as
    dx^2 < within - dy^2, which costs one instruction a pair.
    """
    dy2 = gaps(y // CELL, first_y, tl.arange(0, KH), rows, CELL, UNITS, KH)
    dx2 = gaps(x // CELL, first_x, tl.arange(0, KW), columns, CELL, UNITS, KW)
    return tl.reshape(dx2[:, None, :] < (within - dy2)[:, :, None], [M, KH * KW])
