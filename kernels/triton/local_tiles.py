"""Tile shapes of local and foveated attention: one table by architecture, head dim and window.

Chosen from offline compilations: no spill, and the fewest instructions per score element. A query
tile and a key tile are rows x columns of the grid. `tiles_for` takes those that `foveate tune`
measured on this machine before those of the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from .device import target, tile_class
from .rows import head_parts
from .slots import Slot, dtype_class, spread

if TYPE_CHECKING:
    from .near import Near

__all__ = [
    "LocalTiles",
    "candidates",
    "canonical",
    "defaults",
    "shaped",
    "shipped_tiles",
    "slot_of",
    "tiles_for",
]


@dataclass(frozen=True)
class LocalTiles:
    """Rows and columns of the stationary and of the walked tile, rows of a context block."""

    height: int
    width: int
    key_height: int
    key_width: int
    context: int = 64
    num_warps: int = 8
    num_stages: int = 2
    tma: bool = False


_SMALL = LocalTiles(8, 8, 8, 8, num_warps=4)
_WIDE = LocalTiles(8, 16, 8, 8)
_THIN = LocalTiles(8, 16, 4, 8, context=32)
_NARROW = LocalTiles(8, 16, 2, 8, context=16)
_SMALL_NARROW = LocalTiles(8, 8, 2, 8, context=16, num_warps=4)
_SMALL_THIN = LocalTiles(8, 8, 4, 8, context=32, num_warps=4)
_SMALL_SHORT = LocalTiles(8, 8, 4, 8, context=16, num_warps=4)
_SPREAD_THIN = LocalTiles(8, 8, 4, 8, context=32)
# 64 threads a warp, and no copies that run ahead
_AMD = LocalTiles(8, 16, 4, 8, context=32, num_warps=4, num_stages=1)
_AMD_SPREAD = LocalTiles(8, 16, 4, 8, context=32, num_stages=1)
_AMD_SMALL = LocalTiles(8, 8, 4, 8, context=32, num_warps=4, num_stages=1)
_SMALL_TMA = LocalTiles(8, 8, 8, 8, num_warps=4, tma=True)
_WIDE_TMA = LocalTiles(8, 16, 8, 16, tma=True)

# forward, by architecture and whether the radius is beyond 8;
# head dims up to 128 of one power of two, of two, and beyond 128
_FORWARD = {
    ("sm_80", False): (_WIDE, _WIDE, _NARROW),
    ("sm_80", True): (_WIDE, _WIDE, _NARROW),
    ("sm_90", False): (_SMALL_TMA, _SMALL, _SMALL),
    ("sm_90", True): (_WIDE_TMA, _WIDE, _SMALL),
    ("sm_100", False): (_WIDE_TMA, _WIDE, _WIDE),
    ("sm_100", True): (_WIDE_TMA, _WIDE, _WIDE),
    ("gfx942", False): (_AMD, _AMD, _AMD_SPREAD),
    ("gfx942", True): (_AMD, _AMD, _AMD_SPREAD),
}
# backward, by kernel and architecture; head dims as above
_BACKWARD = {
    ("queries", "sm_80"): (_THIN, _THIN, _NARROW),
    ("queries", "sm_90"): (_THIN, _THIN, _THIN),
    ("queries", "sm_100"): (_THIN, _THIN, _THIN),
    ("queries", "gfx942"): (_AMD_SPREAD, _AMD_SPREAD, _AMD_SMALL),
    ("keys", "sm_80"): (_SMALL_THIN, _SMALL_NARROW, _SMALL_NARROW),
    ("keys", "sm_90"): (_SMALL_THIN, _SMALL_THIN, _SPREAD_THIN),
    ("keys", "sm_100"): (_SMALL_THIN, _SMALL_THIN, _SMALL_THIN),
    ("keys", "gfx942"): (_AMD_SMALL, _AMD_SMALL, _AMD_SMALL),
}
# the same for all but discs of one radius, which take the fewest registers
_LARGER = _BACKWARD | {
    ("keys", "sm_90"): (_SMALL_SHORT, _SMALL_THIN, _SPREAD_THIN),
    ("keys", "sm_100"): (_SMALL_THIN, _SMALL_THIN, _SMALL_SHORT),
}
_FLOAT32 = LocalTiles(4, 8, 4, 8, context=32, num_warps=4)


def tiles_for(
    kernel: str, q: torch.Tensor, near: Near, levels: int, grid: tuple[int, int, int]
) -> LocalTiles:
    """Tiles of the kernel "forward", "queries" or "keys" in a part of a grid."""
    return shaped(slot_of(kernel, target(q.device), q.dtype, q.shape[-1], near, levels).tiles, grid)


def slot_of(
    kernel: str, architecture: str, dtype: torch.dtype, dim: int, near: Near, levels: int
) -> Slot:
    """Everything that tiles are chosen by; `levels` of pooled cells beyond the near tokens."""
    reach = "far" if _is_far(near.reach) else "near"
    rings = f"-rings{levels}" if levels else ""
    shipped = shipped_tiles(
        kernel,
        tile_class(architecture),
        dtype,
        dim,
        near.reach,
        near.is_one_disc,
        near.fits_descriptors,
    )
    variant = f"{near.name}-{reach}{rings}"
    return Slot(f"local_{kernel}", architecture, dim, dtype_class(dtype), variant, shipped)


def shipped_tiles(
    kernel: str,
    arch: str,
    dtype: torch.dtype,
    dim: int,
    radius: int,
    one_disc: bool = True,
    descriptors: bool = True,
) -> LocalTiles:
    """Those of the table for a class of architectures.

    `one_disc`: whether all queries see discs of one radius. `descriptors`: whether these may read
    keys.
    """
    if dtype == torch.float32:
        return _FLOAT32
    return _half(kernel, arch, dim, _is_far(radius), one_disc, descriptors)


def shaped(tiles: LocalTiles, grid: tuple[int, int, int]) -> LocalTiles:
    """Tiles for a grid: flat ones if it is a line."""
    return tiles if grid[1] > 1 else _flat(tiles)


def candidates(slot: Slot) -> list[LocalTiles]:
    """Tiles worth timing, the shipped ones first; some may ask for more memory than there is."""
    if slot.dtype == "float32":
        return spread(slot.shipped, (_SMALL_THIN, _SMALL_NARROW))
    kernel = slot.kernel.removeprefix("local_")
    arch = tile_class(slot.architecture)
    if kernel == "forward":
        rows = [(other, tiles) for (other, _), tiles in _FORWARD.items()]
    else:
        tables = (*_BACKWARD.items(), *_LARGER.items())
        rows = [(other, tiles) for (name, other), tiles in tables if name == kernel]
    found = [x for other, tiles in rows if (other == "gfx942") == (arch == "gfx942") for x in tiles]
    # the table has descriptors where they can be used
    return spread(slot.shipped, [x for x in found if slot.shipped.tma or not x.tma])


def defaults(
    kernel: str, dim: int, one_disc: bool, descriptors: bool
) -> list[tuple[str, int, LocalTiles]]:
    """(architecture, a radius, its tiles) of a half-precision kernel, row by row of the table."""
    return [
        (arch, 16 if far else 8, _half(kernel, arch, dim, far, one_disc, descriptors))
        for arch, far in _FORWARD
    ]


def _half(
    kernel: str, arch: str, dim: int, far: bool, one_disc: bool, descriptors: bool
) -> LocalTiles:
    kind = 2 if dim > 128 else int(head_parts(dim)[1] > 0)
    if kernel != "forward":
        return (_BACKWARD if one_disc else _LARGER)[kernel, arch][kind]
    # head dims of two parts are never read by descriptors, either
    return _FORWARD[arch, far][kind if descriptors else max(kind, 1)]


def _is_far(radius: int) -> bool:
    return radius > 8


def _flat(tiles: LocalTiles) -> LocalTiles:
    """As many tokens in one row; a line has no other."""
    return replace(
        tiles,
        height=1,
        width=tiles.height * tiles.width,
        key_height=1,
        key_width=tiles.key_height * tiles.key_width,
    )


def canonical(grid: Sequence[int], frames_are_rows: bool) -> tuple[int, int, int]:
    """The same tokens, where distances allow it with axes of one token first.

    A single column is a row. A frame among one-row frames is a row too, unless only rows and
    columns have cells.
    """
    frames, height, width = grid
    if frames_are_rows:
        return tuple(sorted(grid, key=lambda size: size > 1))
    return (frames, width, height) if width == 1 else (frames, height, width)
