"""Keys that a query is compared with when whole tiles or blocks of keys are: pure counts.

Means over the grid queries, in keys of the grid alone; the disc is CLEAR's, dy^2 + dx^2 < radius^2.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import isqrt, prod

__all__ = ["box_keys", "raster_block_keys", "square_block_keys"]

Pair = tuple[int, int]


def box_keys(
    grid: Sequence[int],
    halos: Sequence[int],
    *,
    query_tile: Pair,
    key_tile: Pair,
    cell: int = 1,
    unit: int = 1,
) -> float:
    """Tiles of queries that walk the box of their keys in tiles, as the Triton kernels do.

    The box reaches `halos` tokens beyond the tile's cells of side `cell`; one key every `unit`
    tokens. Rows of a tile outside the grid cost as much as those inside.
    """
    axes = zip(grid, halos, query_tile, key_tile, strict=True)
    work = (_box_axis(*axis, cell, unit) for axis in axes)
    return prod(work) / prod(grid)


def _box_axis(size: int, halo: int, tile: int, keys: int, cell: int, unit: int) -> int:
    total = 0
    for first in range(0, size, tile):
        start = max(first // cell * cell - halo, 0)
        stop = min((first + tile - 1) // cell * cell + cell + halo, size)
        seen = -(-stop // unit) - start // unit
        total += tile * -(-seen // keys) * keys
    return total


@cache
def raster_block_keys(grid: Pair, radius: int, block: int) -> float:
    """Blocks of `block` consecutive tokens in raster order: those where some pair is visible."""
    height, width = grid
    tokens, pairs = height * width, 0
    for first in range(0, tokens, block):
        last, seen = min(first + block, tokens) - 1, set()
        for y in range(first // width, last // width + 1):
            x0, x1 = max(first - y * width, 0), min(last - y * width, width - 1)
            for row in range(max(0, y - radius + 1), min(height, y + radius)):
                reach = isqrt(radius**2 - 1 - (row - y) ** 2)
                start = row * width + max(0, x0 - reach)
                stop = row * width + min(width - 1, x1 + reach)
                seen.update(range(start // block, stop // block + 1))
        pairs += len(seen)
    return pairs * block * block / tokens


@cache
def square_block_keys(grid: Pair, radius: int, sides: Pair) -> float:
    """Blocks that are patches of `sides` tokens, which divide the grid."""
    if any(size % side for size, side in zip(grid, sides, strict=True)):
        raise ValueError(f"a grid of {grid} is not made of blocks of {sides}")
    rows, columns = (size // side for size, side in zip(grid, sides, strict=True))
    pairs = 0
    for down in range(-rows + 1, rows):
        gap = max(0, (abs(down) - 1) * sides[0] + 1)
        if gap >= radius:
            continue
        reach = isqrt(radius**2 - 1 - gap**2)
        across = 0 if reach < 1 else (reach - 1) // sides[1] + 1
        for right in range(-min(across, columns - 1), min(across, columns - 1) + 1):
            pairs += (rows - abs(down)) * (columns - abs(right))
    return pairs * prod(sides) ** 2 / prod(grid)
