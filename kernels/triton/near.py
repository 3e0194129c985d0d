"""The near tokens of a query, as a call of the kernels describes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import torch

from .local_tiles import canonical
from .windows import BOX, CUT, DISC, ELLIPSOID

__all__ = ["Near", "boxes", "cut_windows", "disc", "ellipsoid"]

Grid = tuple[int, int, int]


@dataclass(frozen=True)
class Near:
    """`kind` of `windows.py`; radius of a disc, or axis by axis the numbers of a box or window.

    Of an ellipsoid, the radius in a frame, and along frames the extent.
    """

    kind: int
    radius: int = 1
    radii: tuple[int, ...] | None = None
    extents: Grid = (1, 1, 1)
    steps: Grid = (1, 1, 1)
    causal: tuple[bool, bool, bool] = (False, False, False)

    def canonical(self, grid: Sequence[int], frames_are_rows: bool) -> tuple[Near, Grid]:
        """Itself and the grid, axes of one token first; nothing is larger than its axis."""
        if not self.is_box:
            return self, canonical(grid, frames_are_rows and self.kind == DISC.value)
        order = sorted(range(3), key=lambda axis: grid[axis] > 1)
        grid = tuple(grid[axis] for axis in order)
        extents, steps = (
            tuple(min(x[axis], size) for axis, size in zip(order, grid, strict=True))
            for x in (self.extents, self.steps)
        )
        causal = tuple(self.causal[axis] for axis in order)
        return replace(self, extents=extents, steps=steps, causal=causal), grid

    def parts(self, grid: Grid) -> tuple[int, Grid]:
        """How many parts of a grid attend apart, and the sizes of the largest."""
        if not self.is_box:
            return 1, grid
        axes = zip(grid, self.extents, self.steps, strict=True)
        counts, sizes = zip(*(self._parts(*axis) for axis in axes), strict=True)
        return counts[0] * counts[1] * counts[2], sizes

    def _parts(self, size: int, extent: int, step: int) -> tuple[int, int]:
        if self.kind == CUT.value:
            return -(-(size - step) // extent) + (step > 0), min(extent, size)
        return min(step, size), -(-size // step)

    @property
    def reach(self) -> int:
        """Tokens from a query to the nearest ones that it surely does not see, in its part."""
        if not self.is_box:
            return self.radius
        most = max(self.extents)
        return most if self.kind == CUT.value else most // 2 + 1

    @property
    def name(self) -> str:
        """Its kind in a word, as far as tiles are chosen by it."""
        if self.kind == BOX.value:
            return "box" if self.fits_descriptors else "dilated"
        names = {DISC.value: "disc", ELLIPSOID.value: "ellipsoid", CUT.value: "window"}
        return names[self.kind] + "s" * (self.radii is not None)

    @property
    def is_box(self) -> bool:
        """Whether what a query sees is an interval of each axis."""
        return self.kind in (BOX.value, CUT.value)

    @property
    def is_one_disc(self) -> bool:
        """Whether all heads see discs of one radius."""
        return self.kind == DISC.value and self.radii is None

    @property
    def fits_descriptors(self) -> bool:
        """Whether a tile of keys is a box of the grid, and what lies outside it beyond its end."""
        return not self.is_box or (self.kind == BOX.value and self.steps == (1, 1, 1))

    def numbers(self, cell: int) -> tuple[int, ...]:
        """What the kernels take between the grid's sizes and the context's."""
        halo = -(-(self.radius - 1) // cell) * cell
        causal = sum(flag << axis for axis, flag in enumerate(self.causal))
        return halo, self.radius, *self.extents, *self.steps, causal

    def radii_on(self, device: torch.device) -> torch.Tensor | None:
        """A radius for each head, int32 [H], without a copy to the device; None if they are one."""
        if self.radii is None:
            return None
        runs = ((radius, len([*heads])) for radius, heads in groupby(self.radii))
        return torch.cat(
            [torch.full((n,), radius, dtype=torch.int32, device=device) for radius, n in runs]
        )


def disc(radii: Sequence[int]) -> Near:
    """Tokens nearer than a radius, one for all heads or one for each."""
    same = len(set(radii)) == 1
    return Near(DISC.value, max(radii), None if same else tuple(radii))


def ellipsoid(radii: Sequence[int], frames_radius: int) -> Near:
    """Discs that shrink from frame to frame, down to nothing `frames_radius` frames away."""
    return replace(disc(radii), kind=ELLIPSOID.value, extents=(frames_radius, 1, 1))


def boxes(kernel_size: Sequence[int], dilation: Sequence[int], is_causal: Sequence[bool]) -> Near:
    """Neighbourhoods, over (frames, rows, columns)."""
    return Near(
        BOX.value, extents=tuple(kernel_size), steps=tuple(dilation), causal=tuple(is_causal)
    )


def cut_windows(window_size: Sequence[int], shift: Sequence[int], grid: Sequence[int]) -> Near:
    """Windows of the grid, over (frames, rows, columns), cut at the borders."""
    axes = zip(grid, window_size, shift, strict=True)
    steps = tuple(0 if window >= size else move % window for size, window, move in axes)
    return Near(CUT.value, extents=tuple(window_size), steps=steps)
