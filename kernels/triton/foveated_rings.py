"""The pooled keys of one call of foveated attention, as the kernels take them."""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

import torch

from . import pool_forward

__all__ = ["NO_RINGS", "Rings"]


@dataclass(frozen=True)
class Rings:
    """`levels` sizes of cells of side pool^level; options as in `kernels.foveated_attention`."""

    levels: int
    pool: int
    has_mass: bool
    partition: bool

    @property
    def near_cell(self) -> int:
        """Side of the cells by which distances in the near field are measured."""
        return self.pool if self.levels and self.partition else 1

    @property
    def mass(self) -> float:
        """log2 of the tokens of a cell of level 1; that of level l is l times as much."""
        return 2 * log2(self.pool) if self.has_mass else 0.0

    def cuts(self, grid: tuple[int, int, int]) -> bool:
        """Whether the border cuts cells whose mass counts."""
        side = self.pool**self.levels
        return self.has_mass and (grid[1] % side > 0 or grid[2] % side > 0)

    def pooled(
        self, k: torch.Tensor, v: torch.Tensor, grid: tuple[int, int, int]
    ) -> list[torch.Tensor | None]:
        """Keys and values of level 1 and of level 2, contiguous, None for a level that is not."""
        cells = []
        for level in range(1, self.levels + 1):
            cell = [1, self.pool**level, self.pool**level]
            cells += [pool_forward.forward(x, grid, cell).contiguous() for x in (k, v)]
        return cells + [None] * (4 - len(cells))


NO_RINGS = Rings(levels=0, pool=1, has_mass=False, partition=True)
