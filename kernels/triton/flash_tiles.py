"""What the flash kernels share: tile shapes by architecture, the cut of keys, rows in and out."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

__all__ = ["Tiles", "head_parts", "load_rows", "slab", "split", "store_rows", "tiles_for"]

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


def head_parts(dim: int) -> tuple[int, int]:
    """Two powers of two (the second may be 0) that cover a head dim with the least padding."""
    low = max(16, 1 << (dim.bit_length() - 1))
    if low >= dim:
        return low, 0
    high = max(16, triton.next_power_of_2(dim - low))
    return (2 * low, 0) if high >= low else (low, high)


def split(programs: int, length: int, block: int) -> tuple[int, int]:
    """Chunks that `length` rows are cut into, and their size in rows, a multiple of `block`."""
    wanted = min(triton.cdiv(_PROGRAMS, programs), length // (block * _LEAST_BLOCKS))
    chunk = triton.cdiv(triton.cdiv(max(length, 1), max(wanted, 1)), block) * block
    return triton.cdiv(max(length, 1), chunk), chunk


@triton.jit
def slab(X, batch_stride, head_stride, heads):
    """Where the batch entry and head of program axis 1 begin."""
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    return X + batch * batch_stride + head * head_stride


@triton.jit
def load_rows(
    X, rows, stride, ok,
    FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """WIDTH columns from FIRST of rows of X [*, DIM]; 0 beyond DIM and, if MASKED, where not ok."""
    columns = FIRST + tl.arange(0, WIDTH)
    pointers = X + rows[:, None] * stride + columns[None, :]
    if MASKED:
        x = tl.load(pointers, mask=ok[:, None] & (columns < DIM)[None, :], other=0.0)
    elif FIRST + WIDTH > DIM:
        x = tl.load(pointers, mask=(columns < DIM)[None, :], other=0.0)
    else:
        x = tl.load(pointers)
    return x


@triton.jit
def store_rows(
    X, values, rows, stride, ok, FIRST: tl.constexpr, WIDTH: tl.constexpr, DIM: tl.constexpr
):
    """Writes what `load_rows` would read."""
    columns = FIRST + tl.arange(0, WIDTH)
    pointers = X + rows[:, None] * stride + columns[None, :]
    mask = ok[:, None] & (columns < DIM)[None, :]
    tl.store(pointers, values.to(X.dtype.element_ty), mask=mask)


def tiles_for(kernel: str, x: torch.Tensor) -> Tiles:
    return Tiles(64, 32, 4, 2)
