"""The oracle of local attention: one mask over all pairs of tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..layout import TokenLayout
from .dense import masked_softmax

__all__ = ["reference_local"]


def reference_local(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: TokenLayout,
    radius: int | Sequence[int],
    frames_radius: int | None,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q, k, v [B, H, N, D]; returns out and lse. A query sees the context and its open disc."""
    where = layout.coords(q.device)
    frames, *inside = (where[:, None] - where).square().unbind(-1)
    reach = torch.tensor(radius, device=q.device).square().view(-1, 1, 1)  # of one head or each
    along = reach if frames_radius is None else frames_radius**2
    tokens = layout.num_tokens
    visible = torch.ones(len(reach), tokens, tokens, dtype=torch.bool, device=q.device)
    visible[:, layout.grid_slice, layout.grid_slice] = (
        frames * reach + sum(inside) * along < along * reach
    )
    bias = torch.zeros_like(visible, dtype=torch.float32).masked_fill(~visible, -torch.inf)
    return masked_softmax(q, k, v, bias, scale)
