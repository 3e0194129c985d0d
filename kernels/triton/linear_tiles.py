"""What the linear-attention kernels share: tile shapes by head dim, blocks in and out."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

__all__ = ["Tiles", "empty_rows", "load_block", "padded", "store_block", "tiles_for"]


@dataclass(frozen=True)
class Tiles:
    """Tokens and value columns of one block, and how the compiler is to run it."""

    tokens: int
    values: int
    num_warps: int
    num_stages: int


def tiles_for(kernel: str, keys: int, values: int) -> Tiles:
    return Tiles(64, min(padded(values), 64), 8, 2)


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
