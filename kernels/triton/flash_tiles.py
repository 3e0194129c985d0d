"""What the flash kernels share: tile shapes by architecture, and the cut of long loops."""

from dataclasses import dataclass

import torch
import triton

__all__ = ["Tiles", "split", "tiles_for"]

# enough programs for some eight rounds on the largest GPUs
_PROGRAMS = 1024
# fewer blocks than this in a chunk do not pay for writing it out and merging it
_LEAST_BLOCKS = 8


@dataclass(frozen=True)
class Tiles:
    """Queries and keys of one block, and how the compiler is to run it."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


def split(programs: int, length: int, block: int) -> tuple[int, int]:
    """Chunks that `length` rows are cut into, and their size in rows, a multiple of `block`."""
    wanted = min(triton.cdiv(_PROGRAMS, programs), length // (block * _LEAST_BLOCKS))
    chunk = triton.cdiv(triton.cdiv(max(length, 1), max(wanted, 1)), block) * block
    return triton.cdiv(max(length, 1), chunk), chunk


def tiles_for(kernel: str, x: torch.Tensor) -> Tiles:
    return Tiles(64, 32, 4, 2)
