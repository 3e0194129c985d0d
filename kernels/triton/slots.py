"""Where tiles are looked up: those that were tuned on this machine, else those that are shipped."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch

from .tuned import tuned_tiles

__all__ = ["Slot", "dtype_class", "spread"]


@dataclass(frozen=True)
class Slot:
    """All that the tiles of a launch depend on, never a length, and the tiles that are shipped."""

    kernel: str
    architecture: str
    head_dim: int
    dtype: str  # of `dtype_class`
    variant: str
    shipped: Any  # a dataclass of integers and flags

    @property
    def key(self) -> str:
        """Its name in the file of tuned tiles."""
        parts = (self.architecture, self.kernel, self.head_dim, self.dtype, self.variant)
        return "/".join(map(str, parts))

    @property
    def tiles(self) -> Any:
        """What a launch takes; the same in all of a process."""
        return tuned_tiles(self.key, self.shipped)


def dtype_class(dtype: torch.dtype) -> str:
    """Types that share their tiles: "half" or "float32"."""
    return "float32" if dtype == torch.float32 else "half"


def spread(shipped: Any, others: Iterable[Any]) -> list[Any]:
    """The shipped tiles, others, and the shipped ones under other stages and warps; each once."""
    stages = [shipped.num_stages + step for step in (-1, 1) if shipped.num_stages + step > 0]
    near = [replace(shipped, num_stages=number) for number in stages]
    warps = replace(shipped, num_warps=12 - shipped.num_warps)  # 4 or 8
    return list(dict.fromkeys([shipped, *others, *near, warps]))
