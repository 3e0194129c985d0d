"""How a cached output is held: as it is, or in fewer bytes.

int8 has a scale for each group of up to 64 channels, so that an outlier channel coarsens its own
group alone; fp8 (e4m3) has one scale for each token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch

__all__ = ["STORES", "Kept", "Packed", "Store", "num_bytes", "store_of"]

_GROUP = 64
_FP8 = torch.float8_e4m3fn


class Packed(NamedTuple):
    """One tensor as it is held: its parts, and the dtype it comes back in."""

    parts: tuple[torch.Tensor, ...]
    dtype: torch.dtype


Kept = tuple[Packed | None, ...]


@dataclass(frozen=True, slots=True)
class Store:
    """A format: `pack` and `unpack` are inverse up to its rounding."""

    name: str
    pack: Callable[[torch.Tensor], Packed]
    unpack: Callable[[Packed], torch.Tensor]


def num_bytes(packed: Packed) -> int:
    return sum(part.numel() * part.element_size() for part in packed.parts)


def _pack_native(x: torch.Tensor) -> Packed:
    return Packed((x,), x.dtype)


def _unpack_native(packed: Packed) -> torch.Tensor:
    return packed.parts[0]


def _pack_bf16(x: torch.Tensor) -> Packed:
    return Packed((x.to(torch.bfloat16),), x.dtype)


def _unpack_bf16(packed: Packed) -> torch.Tensor:
    return packed.parts[0].to(packed.dtype)


def _pack_int8(x: torch.Tensor) -> Packed:
    groups = x.unflatten(-1, (-1, _group_size(x.shape[-1]))).float()
    # divided by as it will be multiplied; float16 would lose the scale of values below 0.01
    scale = (groups.abs().amax(-1, keepdim=True) / 127).clamp(min=2.0**-100).to(torch.bfloat16)
    steps = (groups / scale.float()).round().clamp(-127, 127)
    return Packed((steps.to(torch.int8), scale), x.dtype)


def _unpack_int8(packed: Packed) -> torch.Tensor:
    steps, scale = packed.parts
    return (steps.float() * scale.float()).flatten(-2).to(packed.dtype)


def _pack_fp8(x: torch.Tensor) -> Packed:
    largest = torch.finfo(_FP8).max
    scale = (x.float().abs().amax(-1, keepdim=True) / largest).clamp(min=2.0**-100)
    return Packed(((x.float() / scale).clamp(-largest, largest).to(_FP8), scale), x.dtype)


def _unpack_fp8(packed: Packed) -> torch.Tensor:
    values, scale = packed.parts
    return (values.float() * scale).to(packed.dtype)


def _group_size(channels: int) -> int:
    """The largest divisor of the channels that is at most 64."""
    return next(size for size in range(min(_GROUP, channels), 0, -1) if channels % size == 0)


STORES: Mapping[str, Store] = MappingProxyType(
    {
        "native": Store("native", _pack_native, _unpack_native),
        "bf16": Store("bf16", _pack_bf16, _unpack_bf16),
        "int8": Store("int8", _pack_int8, _unpack_int8),
        "fp8": Store("fp8", _pack_fp8, _unpack_fp8),
    }
)


def store_of(name: str) -> Store:
    if name not in STORES:
        raise ValueError(f"store must be {', '.join(STORES)}, got {name!r}")
    return STORES[name]
