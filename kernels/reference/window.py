"""The oracle of window attention: tokens see each other where their windows have one number."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..layout import TokenLayout
from .dense import masked_softmax

__all__ = ["reference_window"]


def reference_window(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: TokenLayout,
    window_size: Sequence[int],
    shift: Sequence[int],
    wrap: bool,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q, k, v [B, H, N, D]; returns out and lse. A query sees the context and its window."""
    number = layout.coords(q.device)
    for axis, (size, window, move) in enumerate(zip(layout.grid, window_size, shift, strict=True)):
        move = 0 if window >= size else move % window
        moved = number[:, axis] - move
        number[:, axis] = (moved % size if wrap else moved).div(window, rounding_mode="floor")
    same = (number[:, None] == number).all(-1)
    visible = torch.ones(layout.num_tokens, layout.num_tokens, dtype=torch.bool, device=q.device)
    visible[layout.grid_slice, layout.grid_slice] = same
    bias = torch.zeros_like(visible, dtype=torch.float32).masked_fill(~visible, -torch.inf)
    return masked_softmax(q, k, v, bias, scale)
