"""A depth-wise convolution of the values over the grid, which linear attention adds to its output.

It gives back the locality that a global state lacks. One kernel per channel of a head, shared or
not between heads: FLatten (arXiv:2308.00442), RALA (arXiv:2411.07635), Agent Attention
(arXiv:2312.08874). One per picture as well: InLine (arXiv:2412.06590).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .layout import TokenLayout

__all__ = ["depthwise_residual"]


def depthwise_residual(
    v: torch.Tensor, *, layout: TokenLayout, weight: torch.Tensor
) -> torch.Tensor:
    """Convolve the grid rows of v [B, H, N, D], frame by frame, zero beyond the border.

    `weight` [D, s, s], [H, D, s, s] or [B, H, D, s, s], s odd. Returns [B, H, f*h*w, D].
    """
    batch, heads, _, dim = v.shape
    side = weight.shape[-1]
    if weight.dim() not in (3, 4, 5) or weight.shape[-2] != side or side % 2 == 0:
        raise ValueError(
            f"weight must be [D, s, s], [H, D, s, s] or [B, H, D, s, s] with s odd, "
            f"got {tuple(weight.shape)}"
        )
    kernels = weight.to(v.dtype).expand(batch, heads, dim, side, side).reshape(-1, 1, side, side)
    frames, height, width = layout.grid
    x = layout.grid_of(v).unflatten(2, layout.grid)  # [B, H, f, h, w, D]
    x = x.permute(2, 0, 1, 5, 3, 4).reshape(frames, -1, height, width)
    x = F.conv2d(x, kernels, padding=side // 2, groups=kernels.shape[0])
    return x.reshape(frames, batch, heads, dim, -1).permute(1, 2, 0, 4, 3).flatten(2, 3)
