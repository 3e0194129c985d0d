"""Tile shapes of the flash kernels, by architecture and head dim."""

from dataclasses import dataclass

import torch

__all__ = ["Tiles", "tiles_for"]


@dataclass(frozen=True)
class Tiles:
    """Queries and keys of one block, and how the compiler is to run it."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


def tiles_for(kernel: str, x: torch.Tensor) -> Tiles:
    return Tiles(64, 32, 4, 2)
