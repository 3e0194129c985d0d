"""Which tokens of the grid attend to which, as Triton helpers: discs, ellipsoids, boxes, windows.

A kernel has two questions: which box of tokens does a tile walk, and which pairs in it count. For a
box (NATTEN's neighbourhood, arXiv:2204.07143) both follow from the token where the box of a query
starts along each axis: it sees the keys start <= key < start + extent. Starts grow with the query,
so that a tile walks from what its first token sees, or is seen by, to that of its last.

Tokens a dilation apart, and the tokens of a window, are a part of the grid that attends on its own:
a smaller grid, `place` says where. Programs run over the tiles of all parts.
"""

import triton
import triton.language as tl

from .walk import box, near_of, tile_of

__all__ = ["BOX", "CUT", "DISC", "ELLIPSOID", "part_of", "sight_of", "visible", "walk_of"]

# the near tokens of a query are those of a disc, of an ellipsoid, of a box, or the window that it
# lies in; an ellipsoid is a disc in each frame, and extents[0] its radius along frames
DISC = tl.constexpr(0)
ELLIPSOID = tl.constexpr(1)
BOX = tl.constexpr(2)
CUT = tl.constexpr(3)


@triton.jit
def _parts(size, extent, step, WINDOW: tl.constexpr):
    """How many parts an axis has, and the tokens of the largest."""
    if WINDOW == CUT:
        return tl.cdiv(size - step, extent) + tl.where(step > 0, 1, 0), tl.minimum(extent, size)
    else:
        return tl.minimum(step, size), tl.cdiv(size, step)


@triton.jit
def _part(part, size, extent, step, WINDOW: tl.constexpr):
    """First token and number of tokens of a part of an axis."""
    if WINDOW == CUT:
        # windows begin at `step`; what lies before is one, too
        begin = part * extent + tl.where(step > 0, step - extent, 0)
        first = tl.maximum(begin, 0)
        return first, tl.minimum(begin + extent, size) - first
    else:
        return part, tl.cdiv(size - part, step)


@triton.jit
def part_of(
    tile, frames, height, width, extents, steps,
    TH: tl.constexpr, TW: tl.constexpr, FRAMES: tl.constexpr, WINDOW: tl.constexpr,
):  # fmt: skip
    """Frame, row and column of a tile in its part, sizes of the part, and its place in the grid.

    Tiles are counted as if all parts were as large as the largest: the tile may lie outside.
    """
    parts_t, deep = 1, 1
    if FRAMES:
        parts_t, deep = _parts(frames, extents[0], steps[0], WINDOW)
    parts_y, high = _parts(height, extents[1], steps[1], WINDOW)
    parts_x, wide = _parts(width, extents[2], steps[2], WINDOW)
    tiles = deep * tl.cdiv(high, TH) * tl.cdiv(wide, TW)
    part = tile // tiles
    t, y, x = tile_of(tile % tiles, high, wide, TH, TW, FRAMES)
    first_t = 0
    if FRAMES:
        first_t, frames = _part(part // (parts_x * parts_y), frames, extents[0], steps[0], WINDOW)
    first_y, rows = _part(part // parts_x % parts_y, height, extents[1], steps[1], WINDOW)
    first_x, columns = _part(part % parts_x, width, extents[2], steps[2], WINDOW)
    if FRAMES:
        # a tile of a frame too many lies below the last
        y = tl.where(t < frames, y, rows)
        t = tl.minimum(t, frames - 1)
    first = (first_t * height + first_y) * width + first_x
    if WINDOW == CUT:
        place = (first, height * width, width, 1)
    else:
        place = (first, steps[0] * height * width, steps[1] * width, steps[2])
    return t, y, x, frames, rows, columns, place


@triton.jit
def _start(query, size, extent, causal):
    """Where the boxes of queries start along an axis; a causal one may start before it."""
    inside = tl.minimum(tl.maximum(query - extent // 2, 0), size - extent)
    return tl.where(causal, query - extent + 1, inside)


@triton.jit
def _stretch(first, size, extent, causal, SIDE: tl.constexpr, WALKS_KEYS: tl.constexpr):
    """The keys that the tokens from `first` on see along an axis, or the queries that see these.

    Begin and end; nothing for a tile outside.
    """
    extent = tl.minimum(extent, size)
    last = tl.minimum(first + SIDE, size) - 1
    if WALKS_KEYS:
        begin = tl.maximum(_start(first, size, extent, causal), 0)
        end = _start(last, size, extent, causal) + extent
    else:
        # at the borders boxes were moved inward: keys there are seen from further away
        before = tl.where(causal, extent - 1, extent // 2)
        begin = first - (extent - 1 - before)
        begin = tl.where(causal | (first >= extent), begin, 0)
        end = tl.where(causal | (last < size - extent), tl.minimum(last + before + 1, size), size)
    return begin, tl.where(first < size, end, begin)


@triton.jit
def walk_of(
    t, y, x, frames, height, width, halo, reach, extents, causal,
    TH: tl.constexpr, TW: tl.constexpr, CELL: tl.constexpr, FRAMES: tl.constexpr,
    WINDOW: tl.constexpr, WALKS_KEYS: tl.constexpr,
):  # fmt: skip
    """Rows, columns and frames that a tile walks, each begin and end."""
    t1 = t + 1
    if WINDOW <= ELLIPSOID:
        y, y1 = box(y, height, halo, TH, CELL)
        x, x1 = box(x, width, halo, TW, CELL)
        if FRAMES:
            t, t1 = box(t, frames, (reach if WINDOW == DISC else extents[0]) - 1, 1, 1)
    else:
        y, y1 = _stretch(y, height, extents[1], (causal & 2) > 0, TH, WALKS_KEYS)
        x, x1 = _stretch(x, width, extents[2], (causal & 4) > 0, TW, WALKS_KEYS)
        if FRAMES:
            t, t1 = _stretch(t, frames, extents[0], (causal & 1) > 0, 1, WALKS_KEYS)
    return y, y1, x, x1, t, t1


@triton.jit
def sight_of(
    y, x, height, width, extents, causal, WINDOW: tl.constexpr, WALKS_KEYS: tl.constexpr
):  # fmt: skip
    """What `visible` compares of the stationary tokens along y and x: theirs or their boxes'."""
    if WINDOW > ELLIPSOID and WALKS_KEYS:
        y = _start(y, height, tl.minimum(extents[1], height), (causal & 2) > 0)
        x = _start(x, width, tl.minimum(extents[2], width), (causal & 4) > 0)
    return y, x


@triton.jit
def _steps_in(
    stationary, first, size, extent, causal, SIDE: tl.constexpr, WALKS_KEYS: tl.constexpr
):  # fmt: skip
    """From the starts of boxes to keys along an axis, [M, SIDE]; inside when 0 <= it < extent."""
    offset = tl.arange(0, SIDE)
    if WALKS_KEYS:
        return offset[None, :] - (stationary - first)[:, None]
    else:
        query = first + offset
        # beyond the border repeat queries: far from everything
        start = tl.where(query < size, _start(query, size, extent, causal), 1 << 29)
        return stationary[:, None] - start[None, :]


@triton.jit
def visible(
    sight, dt, y, x, height, width, reach, extents, causal,
    M: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, CELL: tl.constexpr,
    FRAMES: tl.constexpr, WINDOW: tl.constexpr, WALKS_KEYS: tl.constexpr,
):  # fmt: skip
    """Whether the stationary tokens and those of a tile that is dt frames away count, [M, KH KW].

    Either way it is one comparison a pair: along x, with a limit that depends on y.
    """
    if WINDOW <= ELLIPSOID:
        within = reach * reach
        if WINDOW == ELLIPSOID:
            # dy^2 + dx^2 < within - (dt reach / extent)^2 in integers; what is walked fits int32
            within -= (dt * reach) * (dt * reach) // (extents[0] * extents[0])
        elif FRAMES:
            within -= dt * dt
        within = within.to(tl.float32)
        return near_of(*sight, y, x, height, width, within, M, KH, KW, CELL, CELL)
    else:
        # frames that are not seen are not walked; a step back is a large unsigned number
        high = tl.minimum(extents[1], height)
        wide = tl.minimum(extents[2], width)
        down = _steps_in(sight[0], y, height, high, (causal & 2) > 0, KH, WALKS_KEYS)
        across = _steps_in(sight[1], x, width, wide, (causal & 4) > 0, KW, WALKS_KEYS)
        limit = tl.where(down.to(tl.uint32, bitcast=True) < high.to(tl.uint32), wide, 0)
        near = across.to(tl.uint32, bitcast=True)[:, None, :] < limit.to(tl.uint32)[:, :, None]
        return tl.reshape(near, [M, KH * KW])
