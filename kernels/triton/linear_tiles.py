"""What the linear-attention kernels share: tile shapes by head dim, blocks in and out.

`tiles_for` takes the tiles that `foveate tune` measured on this machine before those of the table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import triton
import triton.language as tl

from .device import target
from .launch import signature
from .slots import Slot, dtype_class, spread
from .variants import Variant

__all__ = [
    "Tiles",
    "candidates",
    "empty_rows",
    "load_block",
    "padded",
    "slot_of",
    "store_block",
    "tiles_for",
    "variant_of",
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


def tiles_for(kernel: str, x: torch.Tensor, values: int, variant: str = "plain") -> Tiles:
    """Tiles of the kernel "state", "output" or "backward" for keys like x and heads of `values`.

    `variant`: "weighted" for the state of weighted tokens, "output" for its backward.
    """
    return slot_of(kernel, target(x.device), x.dtype, x.shape[-1], values, variant).tiles


def slot_of(
    kernel: str, architecture: str, dtype: torch.dtype, keys: int, values: int, variant: str
) -> Slot:
    """Everything that tiles are chosen by: head dims of keys and of values, and which call."""
    widest = padded(max(keys, values))
    shipped = _fitted(_TILES[kernel][(widest > 64) + (widest > 128)], dtype_class(dtype), values)
    if values != keys:
        variant = f"{variant}-values{values}"
    return Slot(f"linear_{kernel}", architecture, keys, dtype_class(dtype), variant, shipped)


def candidates(slot: Slot) -> list[Tiles]:
    """Tiles worth timing of heads alike, the shipped ones first; some may not fit into memory."""
    row = _TILES[slot.kernel.removeprefix("linear_")]
    return spread(slot.shipped, [_fitted(x, slot.dtype, slot.head_dim) for x in row])


def _fitted(tiles: Tiles, kind: str, values: int) -> Tiles:
    if kind == "float32":
        tiles = replace(tiles, tokens=min(tiles.tokens, 32), values=32, num_stages=1)
    return replace(tiles, values=min(tiles.values, padded(values)))


def variants_of(
    name: str, kernel: str, function: Any, constexprs: Mapping[str, Any]
) -> list[Variant]:
    """Every default of a kernel for the map of LinFusion; `name` begins the variants' names."""
    slots = [
        slot_of(kernel, "sm_80", torch.bfloat16, dim, dim, "plain") for dim in (40, 64, 128, 160)
    ]
    return [variant_of(name, kernel, function, constexprs, x.head_dim, x.shipped) for x in slots]


def variant_of(
    name: str,
    kernel: str,
    function: Any,
    constexprs: Mapping[str, Any],
    dim: int,
    tiles: Tiles,
) -> Variant:
    """A kernel with some tiles, as it is compiled for the check."""
    values = {
        "DK": dim, "DKP": padded(dim), "DV": dim, "BV": tiles.values, "BN": tiles.tokens,
        "MAP": "elu", "UNIT": 8, **constexprs,
    }  # fmt: skip
    types = signature(function, values, "bf16", ("Z", "WEIGHT_S", "WEIGHT_Z"))
    if kernel == "state":
        types["S"] = "*fp32"
    options = (tiles.num_warps, tiles.num_stages)
    return Variant(f"{name}_{dim}", function, types, values, *options, default=True)


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
