"""One shape to measure at: a grid of tokens, heads, type and device, and its random inputs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...kernels import TokenLayout

__all__ = ["Case"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """An attention call over a grid (rows, columns) behind `text` tokens."""

    grid: tuple[int, int]
    text: int = 0
    batch: int = 1
    heads: int = 2
    head_dim: int = 64
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    @property
    def layout(self) -> TokenLayout:
        """Where the tokens sit."""
        return TokenLayout(text=self.text, grid=(1, *self.grid))

    @property
    def name(self) -> str:
        """Such as "64x64"."""
        return "{}x{}".format(*self.grid)

    def qkv(self, scale: float = 1.0, seed: int = 0) -> list[torch.Tensor]:
        """Normal q, k, v [B, H, N, D], the same on every device; logits of deviation `scale`."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.batch, self.heads, self.layout.num_tokens, self.head_dim)
        q, k, v = (torch.randn(shape, generator=generator) for _ in range(3))
        return [x.to(self.device, self.dtype) for x in (q * scale, k, v)]
