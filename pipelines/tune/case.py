"""One slot of tiles to tune: its candidates, and the calls that are timed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from ...kernels.triton.slots import Slot

__all__ = ["Case", "Run", "Shape"]

Run = Callable[[Any], tuple[torch.Tensor, ...]]  # what a launch with some tiles gives


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The tensors that are timed: heads of one batch entry, a grid (rows, columns), text tokens."""

    device: str
    heads: int = 24
    grid: tuple[int, int] = (64, 64)
    text: int = 333  # whole blocks and a rest, such as Stable Diffusion 3's 77 + 256

    def __post_init__(self) -> None:
        if self.heads < 1 or self.text < 0 or min(self.grid) < 2:
            raise ValueError(
                f"heads must be >= 1, text >= 0 and both sides of the grid >= 2 (a line of tokens "
                f"takes the tiles of a grid), got {self.heads}, {self.text} and {self.grid}"
            )

    @property
    def num_tokens(self) -> int:
        """Of the grid, without the text."""
        return prod(self.grid)

    def random(self, tokens: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
        """[1, H, tokens, D], as a projection gives it."""
        x = torch.randn(1, tokens, self.heads, dim, device=self.device, dtype=dtype)
        return x.transpose(1, 2)


@dataclass(frozen=True, kw_only=True)
class Case:
    """`prepare` makes the tensors; the run it gives launches with the tiles it is given.

    `candidates` begin with the shipped tiles.
    """

    slot: Slot
    candidates: Sequence[Any]
    prepare: Callable[[], Run]
