"""Keys visited, FLOPs, bytes and floors of the plan, against masks and loops."""

import math

import pytest
import torch

from foveate.kernels import TokenLayout, foveated_keys
from foveate.kernels.field import Field
from foveate.pipelines.bench.blocks import box_keys, raster_block_keys, square_block_keys
from foveate.pipelines.bench.case import Case
from foveate.pipelines.bench.gpus import GPUS, gpu_of
from foveate.pipelines.bench.plan import plan
from foveate.pipelines.bench.work import least_bytes, num_flops

GRIDS = [(1, 37), (13, 17), (16, 16), (24, 32)]


def brute_mask(grid, radius):
    where = TokenLayout(grid=(1, *grid)).coords()
    return (where[:, None] - where).square().sum(-1) < radius**2


@pytest.mark.parametrize("radius", [1, 3, 8])
@pytest.mark.parametrize("grid", GRIDS)
def test_raster_blocks(grid, radius):
    block = 16
    mask = brute_mask(grid, radius)
    blocks = -(-len(mask) // block)
    padded = torch.zeros(blocks * block, blocks * block, dtype=torch.bool)
    padded[: len(mask), : len(mask)] = mask
    touched = padded.view(blocks, block, blocks, block).any(3).any(1).sum().item()
    assert raster_block_keys(grid, radius, block) == touched * block**2 / len(mask)


@pytest.mark.parametrize("radius", [1, 3, 8, 40])
@pytest.mark.parametrize("sides", [(8, 8), (8, 16), (4, 8)])
@pytest.mark.parametrize("grid", [(16, 16), (24, 32)])
def test_square_blocks(grid, sides, radius):
    mask = brute_mask(grid, radius)
    split = (grid[0] // sides[0], sides[0], grid[1] // sides[1], sides[1])
    touched = mask.view(*split, *split).any(7).any(5).any(3).any(1).sum().item()
    assert square_block_keys(grid, radius, sides) == touched * math.prod(sides) ** 2 / len(mask)


def test_square_blocks_must_fit():
    with pytest.raises(ValueError, match="not made of blocks of"):
        square_block_keys((12, 16), 3, (8, 8))


@pytest.mark.parametrize(("cell", "unit", "halo"), [(1, 1, 2), (4, 1, 4), (16, 4, 16)])
@pytest.mark.parametrize("grid", GRIDS)
def test_boxes_walked_in_tiles(grid, cell, unit, halo):
    tile, keys = 8, 4
    total = 1
    for size in grid:
        work = 0
        for first in range(0, size, tile):
            cells = {token // cell for token in range(first, first + tile)}
            seen = {
                key
                for key in range(0, size, unit)
                if any(-halo <= key - c * cell < cell + halo for c in cells)
            }
            work += tile * math.ceil(len(seen) / keys) * keys
        total *= work
    counted = box_keys(
        grid,
        (halo, halo),
        query_tile=(tile, tile),
        key_tile=(keys, keys),
        cell=cell,
        unit=unit,
    )
    assert counted == total / math.prod(grid)


@pytest.mark.parametrize("text", [0, 7])
@pytest.mark.parametrize("grid", [(16, 32), (13, 17)])
def test_plan_counts(grid, text):
    radius = 3
    case = Case(grid=grid, text=text, heads=3, head_dim=16, batch=2, dtype=torch.bfloat16)
    rows = {row.method: row for row in plan(case, [radius], gpu_of("NVIDIA H200"))}
    needed = brute_mask(grid, radius).float().sum(1).mean().item()
    dense_row, local = rows["dense"], rows[f"local, radius {radius}"]
    tokens = text + math.prod(grid)
    assert dense_row.needed == dense_row.visited == tokens
    assert dense_row.flops == 4 * 2 * 3 * 16 * tokens**2
    assert local.needed == pytest.approx(text + needed)
    tiles = {"query_tile": (8, 8), "key_tile": (8, 8)}  # head dim 16, radius up to 8, sm_90
    assert local.visited == text + box_keys(grid, (radius - 1, radius - 1), **tiles)
    pairs = math.prod(grid) * local.visited + text * tokens
    assert local.flops == pytest.approx(4 * 2 * 3 * 16 * pairs)
    assert local.num_bytes == 4 * 2 * 3 * tokens * 16 * 2
    assert ("flex 8x8 tiles, radius 3" in rows) == (grid == (16, 32))
    for row in rows.values():
        assert row.needed <= row.visited
        floor = max(row.flops / 989.4e12, row.num_bytes / 4.8e12)
        assert row.floor_ms == pytest.approx(1e3 * floor)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize(("grid", "radius"), [((64, 64), 4), ((37, 50), 6), ((8, 8), 16)])
def test_plan_of_foveated_visits_what_the_field_shows(grid, radius, levels):
    """Every key that a query of an 8 x 8 tile sees lies in the boxes that are counted."""
    case = Case(grid=grid)
    rows = {row.method: row for row in plan(case, [radius], GPUS[0])}
    row = rows[f"foveated, radius {radius}, {levels} level{'s' * (levels > 1)}"]
    assert row.needed == foveated_keys(case.layout, radius, levels=levels).needed
    field = Field(case.layout.grid, radius, 4, levels)
    seen = 0
    for level in range(field.used_levels + 1):
        axes = [torch.arange(n) for n in field.sizes]
        keys = [a[::side] for a, side in zip(axes, field.cell(level), strict=True)]
        visible = torch.as_tensor(field.visible(level, axes, keys))
        seen += visible.expand(math.prod(grid), field.num_cells(level)).sum().item()
    assert row.needed == pytest.approx(seen / math.prod(grid))
    assert row.needed <= row.visited


def test_flops_and_bytes_by_hand():
    case = Case(grid=(2, 3), text=1, heads=2, head_dim=8)
    assert num_flops(case, 4.0) == 4 * 2 * 8 * (6 * 4 + 1 * 7)
    assert least_bytes(case) == 4 * 2 * 7 * 8 * 4
    assert num_flops(case, 4.0, backward=True) == 7 * 2 * 2 * 8 * (6 * 4 + 1 * 7)
    assert least_bytes(case, backward=True) == (4 + 8) * 2 * 7 * 8 * 4


def test_gpus_by_name():
    assert [gpu.name for gpu in GPUS] == ["A100", "H100", "H200", "B200", "4090", "5090", "MI300X"]
    assert gpu_of("NVIDIA A100-SXM4-80GB").name == "A100"
    assert gpu_of("NVIDIA GeForce RTX 4090").name == "4090"
    assert gpu_of("AMD Instinct MI300X").name == "MI300X"
    assert gpu_of("NVIDIA T4") is None
    h100 = gpu_of("NVIDIA H100 80GB HBM3")
    assert h100.floor(989.4e12, 1.0, torch.bfloat16) == 1.0
    assert h100.floor(1.0, 3.35e12, torch.bfloat16) == 1.0
    assert h100.flops(torch.float32) < h100.flops(torch.float16) / 10
