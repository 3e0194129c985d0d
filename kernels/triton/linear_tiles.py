"""What the linear-attention kernels share: tile shapes by head dim, blocks in and out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl

from .launch import signature
from .variants import Variant

__all__ = [
    "Tiles",
    "empty_rows",
    "load_block",
    "padded",
    "store_block",
    "tiles_for",
    "variants_of",
]


@dataclass(frozen=True)
class Tiles:
    """Tokens and value columns of one block, and how the compiler is to run it."""

    tokens: int
    values: int
    num_warps: int
    num_stages: int


# head dims that pad to 64, to 128, to 256; the same on every architecture: memory sets the time
_TILES = {
    "state": (Tiles(32, 64, 4, 2), Tiles(64, 128, 8, 2), Tiles(32, 64, 8, 2)),
    "output": (Tiles(64, 64, 4, 2), Tiles(64, 128, 8, 2), Tiles(32, 32, 4, 2)),
    "backward": (Tiles(64, 64, 4, 2), Tiles(32, 32, 4, 1), Tiles(16, 32, 4, 1)),
}


def tiles_for(kernel: str, dtype: torch.dtype, keys: int, values: int) -> Tiles:
    """Tiles of the kernel "state", "output" or "backward" for head dims of keys and of values."""
    widest = padded(max(keys, values))
    tiles = _TILES[kernel][(widest > 64) + (widest > 128)]
    if dtype == torch.float32:
        tiles = replace(tiles, tokens=min(tiles.tokens, 32), values=32, num_stages=1)
    return replace(tiles, values=min(tiles.values, padded(values)))


def variants_of(
    name: str, kernel: str, function: Any, constexprs: Mapping[str, Any]
) -> list[Variant]:
    """Every default of a kernel for the map of LinFusion; `name` begins the variants' names."""
    found = []
    for dim in (40, 64, 128, 160):
        tiles = tiles_for(kernel, torch.bfloat16, dim, dim)
        values = {
            "DK": dim, "DKP": padded(dim), "DV": dim, "BV": tiles.values, "BN": tiles.tokens,
            "MAP": "elu", "UNIT": 8, **constexprs,
        }  # fmt: skip
        types = signature(function, values, "bf16", ("Z", "WEIGHT_S", "WEIGHT_Z"))
        if kernel == "state":
            types["S"] = "*fp32"
        found.append(
            Variant(
                f"{name}_{dim}",
                function,
                types,
                values,
                tiles.num_warps,
                tiles.num_stages,
                default=True,
            )
        )
    return found


def padded(dim: int) -> int:
    """The power of two, at least 16, that holds a head dim."""
    return max(16, triton.next_power_of_2(dim))


def empty_rows(x: torch.Tensor, dim: int) -> torch.Tensor:
    """Room for [B, H, N, dim], laid out like x [B, H, N, D] where dim is its own."""
    return torch.empty_like(x) if x.shape[-1] == dim else x.new_empty(*x.shape[:-1], dim)


@triton.jit
def load_block(X, rows, stride, ok, columns, inside):
    """X [rows, columns], 0 where not ok [rows] or not inside [columns]."""
    pointers = X + rows[:, None] * stride + columns[None, :]
    return tl.load(pointers, mask=ok[:, None] & inside[None, :], other=0.0)


@triton.jit
def store_block(X, values, rows, stride, ok, columns, inside):
    """Writes what `load_block` would read."""
    pointers = X + rows[:, None] * stride + columns[None, :]
    tl.store(pointers, values.to(X.dtype.element_ty), mask=ok[:, None] & inside[None, :])
