"""Trained parts of linear attention, layer by layer: projections, feature maps, gates, residuals.

Projections are LinFusion's (arXiv:2409.02097): q = W_q (x + g_q(x)) and k likewise, with
g(x) = Linear(LeakyReLU(LayerNorm(Linear(x)))), and W_v and W_out of their own. A layer's tensors
have the names of its published files, and `LinearWeights` numbers its layers as they do.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import torch
from torch import nn

from ...kernels import TokenLayout, depthwise_residual
from ...kernels.feature_maps import hedgehog_map
from ..hosts import heads_of
from .layers import LayerWeights
from .projections import PROJECTIONS, Projections, copied

__all__ = [
    "DynamicResidual",
    "HedgehogMap",
    "LinearLayer",
    "LinearWeights",
    "StaticResidual",
    "generalised",
]


class HedgehogMap(nn.Module):
    """`hedgehog_map` with a trained W; starts as the identity times head_dim^(-1/4)."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        start = torch.eye(head_dim) * head_dim**-0.25
        self.weight = nn.Parameter(start.expand(heads, -1, -1).clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return hedgehog_map(x, self.weight)


class StaticResidual(nn.Module):
    """Depth-wise convolution of the values, one kernel a channel; starts at zero.

    `heads` 1 shares the kernels between heads (FLatten); RALA has its own for each.
    """

    def __init__(self, heads: int, head_dim: int, side: int = 5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, head_dim, side, side))

    def forward(self, v: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        return depthwise_residual(v, layout=layout, weight=self.weight)


class DynamicResidual(nn.Module):
    """InLine's 3 x 3 convolution of the values, its kernels made from their mean; starts at zero.

    InLine (arXiv:2412.06590) makes them from the mean of the layer's input, of which the mean value
    is the linear image W_v x.
    """

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.side = 3
        width = heads * head_dim
        self.enter = nn.Conv1d(width, width, 1, groups=heads)
        self.leave = nn.Conv1d(width, width * self.side**2, 1, groups=heads)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, v: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
        mean = layout.grid_of(v).mean(2).flatten(1).unsqueeze(-1)  # [B, H * D, 1]
        mean = mean.to(self.enter.weight.dtype)
        weight = self.leave(nn.functional.gelu(self.enter(mean)))
        weight = weight.view(*v.shape[:2], v.shape[3], self.side, self.side)
        return depthwise_residual(v, layout=layout, weight=weight)


class LinearLayer(Projections):
    """What is trained in one attention layer; a part left out is the model's own, or does nothing.

    to_q, to_k, to_v: replace the projections of the same names; to_out is [linear, dropout].
    to_q_, to_k_: g of the generalised projections; nn.Identity() doubles x, as published files with
        a middle dimension of -1 do.
    map_q, map_k: feature maps [B, H, n, D] -> [B, H, n, D'].
    gate: [H], of the far field beside a window, negative counts as 0.
    residual: (v, layout) -> what is added to the grid rows [B, H, f*h*w, D].
    heads: of the layer that they were trained for, where it is known.
    """

    PARTS: ClassVar[tuple[str, ...]] = (*PROJECTIONS, "g", "maps", "gate")

    def __init__(
        self,
        *,
        to_q: nn.Module | None = None,
        to_k: nn.Module | None = None,
        to_v: nn.Module | None = None,
        to_out: nn.ModuleList | None = None,
        to_q_: nn.Module | None = None,
        to_k_: nn.Module | None = None,
        map_q: nn.Module | None = None,
        map_k: nn.Module | None = None,
        gate: nn.Parameter | None = None,
        residual: nn.Module | None = None,
        heads: int | None = None,
    ) -> None:
        super().__init__(to_q=to_q, to_k=to_k, to_v=to_v, to_out=to_out, heads=heads)
        self.to_q_, self.to_k_ = to_q_, to_k_
        self.map_q, self.map_k = map_q, map_k
        self.gate = gate
        self.residual = residual

    @classmethod
    def from_attention(cls, attn: nn.Module, mid_dim: int | None = None) -> LinearLayer:
        """LinFusion's 17 tensors, from copies of a layer's projections and g = 0.

        `mid_dim` is g's middle dimension; None takes the layer's own width, -1 is the identity g.
        """
        return cls.of_parts(attn, (*PROJECTIONS, "g"), mid_dim=mid_dim)

    @classmethod
    def of_parts(
        cls,
        attn: nn.Module,
        parts: Collection[str],
        *,
        mid_dim: int | None = None,
        gate: float = 0.0,
    ) -> LinearLayer:
        """The parts named, of PARTS, as they are before training.

        "to_q", "to_k", "to_v", "to_out": copies of the layer's own, where it has them. "g": zero,
        `mid_dim` as in `from_attention`. "maps": Hedgehog's. "gate": at `gate` for every head.
        """
        cls.check_parts(parts)
        like, heads = attn.to_q.weight, heads_of(attn)
        width, inputs = like.shape
        made = copied(attn, parts)
        if "g" in parts:
            made |= {name: generalised(inputs, mid_dim) for name in ("to_q_", "to_k_")}
        if "maps" in parts:
            made |= {name: HedgehogMap(heads, width // heads) for name in ("map_q", "map_k")}
        if "gate" in parts:
            made["gate"] = nn.Parameter(torch.full((heads,), gate))
        return cls(**made).to(device=like.device, dtype=like.dtype)

    @classmethod
    def hybrid(cls, heads: int, head_dim: int, gate: float = 0.0) -> LinearLayer:
        """Trained Hedgehog maps and one gate a head, for the window with a linear far field."""
        return cls(
            map_q=HedgehogMap(heads, head_dim),
            map_k=HedgehogMap(heads, head_dim),
            gate=nn.Parameter(torch.full((heads,), gate)),
        )

    @property
    def has_projections(self) -> bool:
        is_generalised = self.to_q_ is not None or self.to_k_ is not None
        return is_generalised or super().has_projections

    def query(self, project: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """W_q (x + g_q(x))."""
        return project(x if self.to_q_ is None else x + self.to_q_(x))

    def key(self, project: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """W_k (x + g_k(x))."""
        return project(x if self.to_k_ is None else x + self.to_k_(x))


class LinearWeights(LayerWeights):
    """A `LinearLayer` for each of the layers named."""


def generalised(width: int, mid_dim: int | None) -> nn.Module:
    """g of the generalised projections, zero at first unless it is the identity (`mid_dim` -1)."""
    if mid_dim == -1:
        return nn.Identity()
    middle = width if mid_dim is None else mid_dim
    last = nn.Linear(middle, width)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(width, middle), nn.LayerNorm(middle), nn.LeakyReLU(), last)
