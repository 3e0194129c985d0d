"""The oracle of neighbourhood attention: the keys of every query by the definition, per axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..layout import TokenLayout
from .dense import masked_softmax

__all__ = ["reference_neighborhood"]


def reference_neighborhood(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: TokenLayout,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """q, k, v [B, H, N, D]; returns out and lse. A query sees the context and its neighbours."""
    options = zip(layout.grid, kernel_size, dilation, is_causal, strict=True)
    tables = [torch.tensor([_neighbors(i, *axis) for i in range(axis[0])]) for axis in options]
    frame, row, column = layout.coords().unbind(1)
    seen = [t[at][:, at] for t, at in zip(tables, (frame, row, column), strict=True)]
    visible = torch.ones(layout.num_tokens, layout.num_tokens, dtype=torch.bool)
    visible[layout.grid_slice, layout.grid_slice] = seen[0] & seen[1] & seen[2]
    bias = torch.zeros_like(visible, dtype=torch.float32).masked_fill(~visible, -torch.inf)
    return masked_softmax(q, k, v, bias.to(q.device), scale)


def _neighbors(i: int, size: int, kernel: int, dilation: int, causal: bool) -> list[bool]:
    """Which tokens of one axis token i sees."""
    line = list(range(i % dilation, size, dilation))
    at = line.index(i)
    if causal:
        near = line[max(0, at - kernel + 1) : at + 1]
    else:
        first = max(0, min(at - kernel // 2, len(line) - kernel))
        near = line[first : first + kernel]
    return [j in near for j in range(size)]
