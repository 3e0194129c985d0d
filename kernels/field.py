"""Which tokens and cells a foveated query sees: the geometry, without tensors of q, k or v.

Level 0 is the tokens; level l is cells of side pool^l (1 along frames). A query's near field of
level l is the cells of level l closer to its own cell than radius * pool^(l-1). It sees the tokens
in its near field of level 1, the cells of level l in its near field of level l+1 but not of level
l, and at the last level every cell outside. Near fields are nested: a token is seen exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch

from .branches import Band, axis_order
from .counts import KeyCount, mean_within
from .tiles import Axis, tile_shape, visited, within

__all__ = ["Field"]


@dataclass(frozen=True, slots=True)
class Field:
    """The fields of every query of a grid; its axes are (rows, a, b) of `axis_order`."""

    grid: tuple[int, int, int]
    radius: int
    pool: int
    levels: int

    @property
    def sizes(self) -> list[int]:
        """Tokens along (rows, a, b)."""
        return [self.grid[axis] for axis in axis_order(self.grid)]

    @property
    def used_levels(self) -> int:
        """Levels that some query sees: none beyond the near field that covers the grid."""
        for level in range(1, self.levels + 1):
            if self._covers(level):
                return level - 1
        return self.levels

    def cell(self, level: int) -> list[int]:
        """Sides of the cells of a level along (rows, a, b)."""
        return [1 if axis == 0 else self.pool**level for axis in axis_order(self.grid)]

    def reach(self, level: int) -> int:
        """Tokens from a query's cell at which its near field of a level ends."""
        return self.radius * self.pool ** (level - 1)

    def num_cells(self, level: int) -> int:
        """Keys of a level."""
        return prod(
            -(-size // side) for size, side in zip(self.sizes, self.cell(level), strict=True)
        )

    def is_last(self, level: int) -> bool:
        """Whether the level's keys go on to the end of the grid."""
        return level == self.used_levels

    def axes(self, level: int, band: Band | None = None) -> list[Axis]:
        """Tiles of queries with the window of a level's keys, for a level that is not the last.

        The queries of a band see keys outside of it.
        """
        units, cells, reach = self.cell(level), self.cell(level + 1), self.reach(level + 1)
        halos = [
            ((reach - 2) // cell + 1) * cell // unit
            for cell, unit in zip(cells, units, strict=True)
        ]
        tile = tile_shape(self.sizes, cells)
        limits = (Band.whole(self.grid) if band is None else band).limits(self.grid)
        return [
            Axis(*axis, *limit)
            for *axis, limit in zip(self.sizes, tile, halos, units, cells, limits, strict=True)
        ]

    def bands(self, band: Band | None = None) -> list[Band]:
        """The keys of each level that the queries of a band see, in keys of that level."""
        band = Band.whole(self.grid) if band is None else band
        place = axis_order(self.grid).index(band.axis)
        bands = []
        for level in range(self.used_levels + 1):
            last = -(-self.sizes[place] // self.cell(level)[place])
            keys = (0, last) if self.is_last(level) else self.axes(level, band)[place].whole[2:4]
            bands.append(Band(band.axis, *keys))
        return bands

    def visible(
        self, level: int, queries: Sequence[torch.Tensor], keys: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """Whether tokens at `queries` see the keys that begin at `keys`, [queries, keys]."""
        outer = level + 1
        seen = self.is_last(level) or within(queries, keys, self.cell(outer), self.reach(outer))
        if level == 0:
            return seen
        return ~within(queries, keys, self.cell(level), self.reach(level)) & seen

    def count_keys(self) -> KeyCount:
        """Grid keys per query."""
        needed, compared = 0.0, 0.0
        for level in range(self.used_levels + 1):
            cells, last = self.num_cells(level), self.is_last(level)
            compared += cells if last else visited(self.axes(level))
            needed += cells if last else self._mean_within(level + 1, level)
            needed -= self._mean_within(level, level) if level > 0 else 0
        return KeyCount(needed, compared)

    def _mean_within(self, level: int, keys_level: int) -> float:
        units = self.cell(keys_level)
        return mean_within(self.sizes, self.cell(level), units, self.reach(level))

    def _covers(self, level: int) -> bool:
        gaps = (
            max(0, ((size - 1) // side - 1) * side + 1)
            for size, side in zip(self.sizes, self.cell(level), strict=True)
        )
        return sum(gap * gap for gap in gaps) < self.reach(level) ** 2
