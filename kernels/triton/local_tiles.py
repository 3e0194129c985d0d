"""Tile shapes of local and foveated attention: one table by architecture, head dim and window.

Chosen from offline compilations: no spill, and the fewest instructions per score element. A query
tile and a key tile are rows x columns of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from .rows import head_parts

__all__ = ["LocalTiles", "architecture", "canonical", "tiles_for"]


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
_SMALL_THIN = LocalTiles(8, 8, 4, 8, context=32, num_warps=4)
_SMALL_TMA = LocalTiles(8, 8, 8, 8, num_warps=4, tma=True)
_WIDE_TMA = LocalTiles(8, 16, 8, 16, tma=True)

# forward, by architecture and whether the radius is beyond 8;
# head dims up to 128 of one power of two, of two, and beyond 128
_FORWARD = {
    ("sm_80", False): (_WIDE, _WIDE, _THIN),
    ("sm_80", True): (_WIDE, _WIDE, _THIN),
    ("sm_90", False): (_SMALL_TMA, _SMALL, _SMALL),
    ("sm_90", True): (_WIDE_TMA, _WIDE, _SMALL),
    ("sm_100", False): (_WIDE_TMA, _WIDE, _WIDE),
    ("sm_100", True): (_WIDE_TMA, _WIDE, _WIDE),
    ("gfx942", False): (_THIN, _THIN, _THIN),
    ("gfx942", True): (_THIN, _THIN, _THIN),
}
_BACKWARD = {"queries": _THIN, "keys": _SMALL_THIN}


def architecture(device: torch.device) -> str:
    """The class of architectures that a device shares its tile shapes with."""
    if device.type == "cpu":
        return "sm_80"  # the interpreter
    if torch.version.hip is not None:
        return "gfx942"
    major, _ = torch.cuda.get_device_capability(device)
    return {9: "sm_90", 10: "sm_100"}.get(major, "sm_80")


def tiles_for(
    kernel: str, arch: str, q: torch.Tensor, radius: int, grid: tuple[int, int, int]
) -> LocalTiles:
    """Tiles of the kernel "forward", "queries" or "keys"; a grid that is a line has flat ones."""
    dim = q.shape[-1]
    if q.dtype == torch.float32:
        tiles = _SMALL_THIN
    elif kernel == "forward":
        kind = 2 if dim > 128 else int(head_parts(dim)[1] > 0)
        tiles = _FORWARD[arch, radius > 8][kind]
    else:
        tiles = _BACKWARD[kernel]
    return tiles if grid[1] > 1 else _flat(tiles)


def _flat(tiles: LocalTiles) -> LocalTiles:
    """As many tokens in one row; a line has no other."""
    return replace(
        tiles,
        height=1,
        width=tiles.height * tiles.width,
        key_height=1,
        key_width=tiles.key_height * tiles.key_width,
    )


def canonical(grid: tuple[int, int, int]) -> tuple[int, int, int]:
    """The same tokens with axes of one token first: distances do not change."""
    return tuple(sorted(grid, key=lambda size: size > 1))
