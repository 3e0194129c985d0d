"""Which keys and cells of a call each rank holds, and which it needs from the others."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from ..branches import Band, axis_order
from ..field import Field
from ..local import near_band
from .shard import Range, Shard

__all__ = ["Rows", "cell_grid", "cell_line", "cell_side", "foveated_rows", "local_rows"]


class Rows(NamedTuple):
    """Ranges of one sequence of keys or cells, for each rank."""

    held: list[Range]
    needed: list[Range]


def local_rows(shard: Shard, radius: int | Sequence[int]) -> Rows:
    """Keys: a rank needs those within the largest radius of its rows."""
    most = radius if isinstance(radius, int) else max(radius)
    near = [near_band(shard.layout.grid, most, band) for band in shard.bands]
    return Rows(shard.tokens, [_scaled(band, shard.line) for band in near])


def foveated_rows(shard: Shard, field: Field, partition: bool) -> list[Rows]:
    """Keys, then the cells of each level; a rank holds the cells that its tokens touch, in part."""
    if not partition:
        cells = [(0, field.num_cells(1))] * shard.ranks
        return [local_rows(shard, field.radius), Rows(_held(shard, field, 1), cells)]
    needed = [field.bands(band) for band in shard.bands]
    rows = [Rows(shard.tokens, [_scaled(bands[0], shard.line) for bands in needed])]
    for level in range(1, field.used_levels + 1):
        line = cell_line(shard, field, level)
        ranges = [_scaled(bands[level], line) for bands in needed]
        rows.append(Rows(_held(shard, field, level), ranges))
    return rows


def cell_grid(field: Field, level: int) -> tuple[int, int, int]:
    """Cells of a level along (frames, rows, columns)."""
    order, sides = axis_order(field.grid), field.cell(level)
    return tuple(-(-size // sides[order.index(axis)]) for axis, size in enumerate(field.grid))


def cell_side(shard: Shard, field: Field, level: int) -> int:
    """Rows of a cell, or frames."""
    axis = Band.whole(shard.layout.grid).axis
    return field.cell(level)[axis_order(field.grid).index(axis)]


def cell_line(shard: Shard, field: Field, level: int) -> int:
    """Cells in one row of cells, or one frame."""
    cells = cell_grid(field, level)
    return prod(cells) // cells[Band.whole(shard.layout.grid).axis]


def _held(shard: Shard, field: Field, level: int) -> list[Range]:
    side, line = cell_side(shard, field, level), cell_line(shard, field, level)
    return [(b.start // side * line, -(-b.stop // side) * line) for b in shard.bands]


def _scaled(band: Band, line: int) -> Range:
    return band.start * line, band.stop * line
