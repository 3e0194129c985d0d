"""The work of each method on a named GPU, counted, and the time below which none can go: a model.

Nothing here is measured. Keys visited are counted for whole tiles and blocks: those the Triton
kernels use on that GPU, and FlexAttention's blocks of 128. The floor is the longer of arithmetic on
the keys visited at the GPU's peak rate and of reading and writing every tensor once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...kernels import foveated_keys, local_keys
from ...kernels.field import Field
from .blocks import box_keys, raster_block_keys, square_block_keys
from .case import Case
from .gpus import GPU
from .work import least_bytes, num_flops

__all__ = ["Plan", "plan"]

Pair = tuple[int, int]

FLEX_BLOCK = 128
FLEX_PATCH = (8, 16)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """One method at one grid: keys a grid query needs and visits, and what follows from them.

    flops: on the keys visited. floor_ms: milliseconds; bound: "arithmetic" or "memory".
    """

    grid: str
    method: str
    needed: float
    visited: float
    flops: float
    num_bytes: float
    floor_ms: float
    bound: str


def plan(case: Case, radii: Sequence[int], gpu: GPU) -> list[Plan]:
    """Every method at the grid of a case."""
    tokens = case.layout.num_tokens
    rows = [_plan(case, gpu, "dense", tokens, tokens)]
    for radius in radii:
        needed = local_keys(case.layout, radius).needed
        tiles = _tiles(case, radius, gpu)
        for name, visited in _discs(case, radius, tiles).items():
            rows.append(_plan(case, gpu, f"{name}, radius {radius}", needed, visited))
        for levels in (1, 2):
            needed = foveated_keys(case.layout, radius, levels=levels).needed
            visited = _foveated(case, Field(case.layout.grid, radius, 4, levels), tiles)
            name = f"foveated, radius {radius}, {levels} level{'s' * (levels > 1)}"
            rows.append(_plan(case, gpu, name, needed, visited))
    return rows


def _plan(case: Case, gpu: GPU, method: str, needed: float, visited: float) -> Plan:
    flops, num_bytes = num_flops(case, visited), least_bytes(case)
    arithmetic = flops / gpu.flops(case.dtype) > num_bytes / gpu.bandwidth
    return Plan(
        grid=case.name,
        method=method,
        needed=needed,
        visited=visited,
        flops=flops,
        num_bytes=num_bytes,
        floor_ms=1e3 * gpu.floor(flops, num_bytes, case.dtype),
        bound="arithmetic" if arithmetic else "memory",
    )


def _tiles(case: Case, radius: int, gpu: GPU) -> dict[str, Pair]:
    """Tiles of queries and of keys that the Triton kernels take on a GPU."""
    try:
        from ...kernels.triton.local_tiles import shaped, shipped_tiles
    except ImportError as error:
        raise NotImplementedError(
            f"the plan counts the tiles of the Triton kernels: {error}"
        ) from None
    shipped = shipped_tiles("forward", gpu.architecture, case.dtype, case.head_dim, radius)
    tiles = shaped(shipped, case.layout.grid)
    return {
        "query_tile": (tiles.height, tiles.width),
        "key_tile": (tiles.key_height, tiles.key_width),
    }


def _discs(case: Case, radius: int, tiles: Mapping[str, Pair]) -> dict[str, float]:
    """Keys visited by each way to attend to a disc, text included."""
    keys = {
        "local": box_keys(case.grid, (radius - 1, radius - 1), **tiles),
        "flex raster": raster_block_keys(case.grid, radius, FLEX_BLOCK),
    }
    if all(size % side == 0 for size, side in zip(case.grid, FLEX_PATCH, strict=True)):
        keys["flex 8x8 tiles"] = square_block_keys(case.grid, radius, FLEX_PATCH)
    return {name: case.text + visited for name, visited in keys.items()}


def _foveated(case: Case, field: Field, tiles: Mapping[str, Pair]) -> float:
    """The box of each level's keys, and all of the last level's."""
    keys = float(case.text)
    for level in range(field.used_levels + 1):
        if field.is_last(level):
            keys += field.num_cells(level)
            continue
        # grids have one frame: the rows' and columns' cells have one side
        unit, cell = max(field.cell(level)), max(field.cell(level + 1))
        halo = ((field.reach(level + 1) - 2) // cell + 1) * cell
        keys += box_keys(case.grid, (halo, halo), cell=cell, unit=unit, **tiles)
    return keys
