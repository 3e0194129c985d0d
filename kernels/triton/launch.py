"""How a call on tensors [B, H, N, D] is laid out over programs: strides, slabs, chunks.

Strides travel in units of 8 elements wherever all of them allow it. Triton itself only sees that a
number is a multiple of 16, and would read a head dim of 40 or 72 one element at a time.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import triton
import triton.language as tl

__all__ = ["architectures", "in_units", "signature", "slab", "split", "with_rows"]

# enough programs for some eight rounds on the largest GPUs
_PROGRAMS = 1024


def split(programs: int, length: int, block: int, least_blocks: int = 8) -> tuple[int, int]:
    """Chunks that `length` rows are cut into, and their size in rows, a multiple of `block`.

    Known from shapes alone. A chunk holds `least_blocks` blocks, fewer do not pay for its result.
    """
    wanted = min(triton.cdiv(_PROGRAMS, max(programs, 1)), length // (block * least_blocks))
    chunk = triton.cdiv(triton.cdiv(max(length, 1), max(wanted, 1)), block) * block
    return triton.cdiv(max(length, 1), chunk), chunk


def with_rows(x: torch.Tensor) -> torch.Tensor:
    """x, or a copy if its rows are not contiguous; gradients come with any strides."""
    return x if x.stride(-1) == 1 else x.contiguous()


def in_units(*tensors: torch.Tensor) -> tuple[int, list[int]]:
    """The unit in elements, 8 or 1, and all strides but the last of each tensor in that unit."""
    strides = [stride for x in tensors for stride in x.stride()[:-1]]
    unit = 8 if all(stride % 8 == 0 for stride in strides) else 1
    return unit, [stride // unit for stride in strides]


@triton.jit
def slab(X, batch_stride, head_stride, heads, UNIT: tl.constexpr):
    """Where the batch entry and head of program axis 1 begin."""
    batch = (tl.program_id(1) // heads).to(tl.int64)
    head = (tl.program_id(1) % heads).to(tl.int64)
    return X + (batch * batch_stride + head * head_stride) * UNIT


def architectures(name: str) -> tuple[str, ...]:
    """Those that share the tile shapes of an architecture."""
    return ("sm_80", "sm_86", "sm_89") if name == "sm_80" else (name,)


def signature(
    kernel: Any, constexprs: Mapping[str, Any], dtype: str, wide: Iterable[str]
) -> dict[str, str]:
    """Types of a kernel's arguments: capitals are pointers, `wide` ones to float32."""
    kinds = {name: f"*{dtype}" for name in kernel.arg_names if name.isupper()}
    kinds |= dict.fromkeys(wide, "*fp32") | dict.fromkeys(("M", "N"), "i32")
    kinds |= dict.fromkeys(("scale2", "bias_scale", "eps"), "fp32")
    return {name: kinds.get(name, "i32") for name in kernel.arg_names if name not in constexprs}
