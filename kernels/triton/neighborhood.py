"""Neighbourhood attention by Triton as a PyTorch operator: `grid_op` over boxes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from ..layout import TokenLayout
from .foveated_rings import NO_RINGS, Rings
from .grid_op import grid_op
from .near import Near, boxes

__all__ = ["neighborhood_attention"]

Pair = tuple[torch.Tensor, torch.Tensor]


def _sight(
    grid: Sequence[int],
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
) -> tuple[Near, Rings]:
    return boxes(kernel_size, dilation, is_causal), NO_RINGS


def _on_torch(
    layout: TokenLayout,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    scale: float,
) -> Callable[..., Pair]:
    from ..neighborhood import neighborhood_attention

    return partial(
        neighborhood_attention, layout=layout, kernel_size=tuple(kernel_size),
        dilation=tuple(dilation), is_causal=tuple(is_causal), scale=scale, impl="torch",
        return_lse=True,
    )  # fmt: skip


_attend = grid_op(
    "neighborhood", "int[] kernel_size, int[] dilation, bool[] is_causal", _sight, _on_torch
)


def neighborhood_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    layout: TokenLayout,
    kernel_size: Sequence[int],
    dilation: Sequence[int],
    is_causal: Sequence[bool],
    scale: float | None,
) -> Pair:
    """out [B, H, N, D] and lse [B, H, N] of the operator of this name."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    box = (list(kernel_size), list(dilation), list(is_causal))
    return _attend(q, k, v, layout.grid_slice.start, list(layout.grid), *box, scale)
