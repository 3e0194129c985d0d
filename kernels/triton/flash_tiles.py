"""Tile shapes of the flash kernels: one table by kernel, architecture and head dim.

Chosen from offline compilations: no spill, and the fewest instructions per score element.
`tiles_for` takes those that `foveate tune` measured on this machine before those of the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .device import target, tile_class
from .launch import architectures, signature
from .rows import head_parts
from .slots import Slot, dtype_class, spread
from .variants import Variant

__all__ = ["Tiles", "candidates", "slot_of", "tiles_for", "variant_of", "variants_of"]

# the head dims that stand for their class in the offline check: up to 64, up to 128, beyond
_DIMS = (40, 64, 128, 160)


@dataclass(frozen=True)
class Tiles:
    """Queries and keys of one block, and how the compiler is to run it."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


_FLOAT32 = Tiles(32, 32, 4, 1)

# (kernel, architecture): head dims up to 64, up to 128, beyond
_TILES = {
    ("forward", "sm_80"): (Tiles(64, 64, 4, 2), Tiles(128, 64, 8, 2), Tiles(128, 32, 8, 2)),
    ("forward", "sm_86"): (Tiles(64, 64, 4, 2), Tiles(128, 32, 8, 2), Tiles(128, 32, 8, 2)),
    ("forward", "sm_90"): (Tiles(128, 128, 8, 2), Tiles(128, 64, 8, 2), Tiles(128, 64, 8, 2)),
    ("forward", "sm_100"): (Tiles(128, 64, 8, 2), Tiles(128, 64, 8, 2), Tiles(128, 64, 8, 2)),
    ("forward", "gfx942"): (Tiles(128, 32, 4, 1), Tiles(128, 32, 4, 1), Tiles(64, 32, 4, 1)),
    ("queries", "sm_80"): (Tiles(128, 32, 8, 2), Tiles(128, 32, 8, 2), Tiles(64, 32, 4, 2)),
    ("queries", "sm_90"): (Tiles(128, 32, 8, 2), Tiles(128, 32, 8, 2), Tiles(128, 32, 8, 2)),
    ("queries", "sm_100"): (Tiles(128, 32, 8, 2), Tiles(128, 32, 8, 2), Tiles(128, 32, 8, 2)),
    ("queries", "gfx942"): (Tiles(128, 32, 8, 1), Tiles(64, 32, 4, 1), Tiles(64, 32, 4, 1)),
    ("keys", "sm_80"): (Tiles(32, 128, 8, 2), Tiles(32, 64, 4, 1), Tiles(16, 64, 4, 2)),
    ("keys", "sm_90"): (Tiles(32, 128, 8, 2), Tiles(32, 128, 8, 2), Tiles(16, 64, 4, 2)),
    ("keys", "sm_100"): (Tiles(32, 128, 8, 2), Tiles(32, 128, 8, 2), Tiles(32, 128, 8, 2)),
    ("keys", "gfx942"): (Tiles(32, 64, 4, 1), Tiles(32, 64, 4, 1), Tiles(16, 64, 4, 1)),
}


def tiles_for(kernel: str, x: torch.Tensor) -> Tiles:
    """Tiles of the kernel "forward", "queries" or "keys" for tensors like x."""
    return slot_of(kernel, target(x.device), x.dtype, x.shape[-1]).tiles


def slot_of(kernel: str, architecture: str, dtype: torch.dtype, dim: int) -> Slot:
    """Everything that tiles are chosen by."""
    arch = tile_class(architecture)
    # others than sm_80 have fewer warps a multiprocessor
    if arch == "sm_80" and architecture not in ("sm_80", "interpreter"):
        arch = "sm_86" if (kernel, "sm_86") in _TILES else arch
    shipped = _FLOAT32 if dtype == torch.float32 else _TILES[kernel, arch][_class(dim)]
    return Slot(f"flash_{kernel}", architecture, dim, dtype_class(dtype), "plain", shipped)


def candidates(slot: Slot) -> list[Tiles]:
    """Tiles worth timing, the shipped ones first; some may ask for more memory than there is."""
    if slot.dtype == "float32":
        return spread(slot.shipped, (Tiles(64, 32, 4, 1), Tiles(32, 64, 4, 1)))
    kernel = slot.kernel.removeprefix("flash_")
    amd = tile_class(slot.architecture) == "gfx942"
    rows = [
        tiles
        for (name, arch), tiles in _TILES.items()
        if name == kernel and (arch == "gfx942") == amd
    ]
    return spread(slot.shipped, [x for row in rows for x in row])


def variants_of(name: str, kernel: str, function: Any) -> list[Variant]:
    """Every default of a kernel, without a bias; `name` begins the names of the variants."""
    tables = {arch: tiles for (other, arch), tiles in _TILES.items() if other == kernel}
    return [
        variant_of(
            f"{name}_{dim}_{arch}", function, _targets(arch, tables), dim, tiles[_class(dim)]
        )
        for arch, tiles in tables.items()
        for dim in _DIMS
    ]


def _targets(arch: str, tables: Mapping[str, Any]) -> tuple[str, ...]:
    """The architectures that take the tiles of one of the tables."""
    if "sm_86" not in tables:
        return architectures(arch)
    return {"sm_80": ("sm_80",), "sm_86": ("sm_86", "sm_89")}.get(arch, (arch,))


def variant_of(
    name: str, function: Any, targets: tuple[str, ...], dim: int, tiles: Tiles
) -> Variant:
    """A kernel with some tiles, as it is compiled for the check."""
    d0, d1 = head_parts(dim)
    constexprs = {
        "D": dim, "D0": d0, "D1": d1, "BM": tiles.queries, "BN": tiles.keys,
        "HAS_BIAS": False, "TAIL": True, "UNIT": 8, "BIAS": None,
    }  # fmt: skip
    return Variant(
        name,
        function,
        signature(function, constexprs, "bf16", ("LSE", "GRAD_LSE", "SHIFT")),
        constexprs,
        tiles.num_warps,
        tiles.num_stages,
        targets,
        default=True,
        tiles=((tiles.queries, tiles.keys),) * 2,
    )


def _class(dim: int) -> int:
    return (dim > 64) + (dim > 128)
