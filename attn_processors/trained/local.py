"""Trained parts of local attention, layer by layer: CLEAR's projections and cell weights.

CLEAR, arXiv:2412.16112. The text stream and all norms stay the model's own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import torch
from torch import nn

from .layers import LayerWeights
from .projections import PROJECTIONS, Projections, copied

__all__ = ["LocalLayer", "LocalWeights"]


class LocalLayer(Projections):
    """What is trained in one attention layer; a part left out is the model's own.

    to_q, to_k, to_v, to_out, heads: as in Projections.
    pool_weight: [pool, pool], or (1, 1, 1, pool, 1, pool, 1) as in CLEAR's files, the weights of a
        cell's tokens for `FoveatedAttnProcessor`.
    """

    PARTS: ClassVar[tuple[str, ...]] = (*PROJECTIONS, "pool_weight")

    def __init__(
        self,
        *,
        to_q: nn.Module | None = None,
        to_k: nn.Module | None = None,
        to_v: nn.Module | None = None,
        to_out: nn.ModuleList | None = None,
        pool_weight: nn.Parameter | None = None,
        heads: int | None = None,
    ) -> None:
        super().__init__(to_q=to_q, to_k=to_k, to_v=to_v, to_out=to_out, heads=heads)
        self.pool_weight = pool_weight

    @classmethod
    def of_parts(
        cls, attn: nn.Module, parts: Collection[str], *, pool: int | None = None
    ) -> LocalLayer:
        """The parts named, of PARTS, as they are before training.

        "to_q", "to_k", "to_v", "to_out": copies of the layer's own, where it has them.
        "pool_weight": the mean over cells of side `pool`.
        """
        cls.check_parts(parts)
        weight = None
        if "pool_weight" in parts:
            if pool is None:
                raise ValueError("pool_weight needs pool, the side of a cell in tokens")
            weight = nn.Parameter(torch.full((pool, pool), pool**-2.0))
        like = attn.to_q.weight
        layer = cls(**copied(attn, parts), pool_weight=weight)
        return layer.to(device=like.device, dtype=like.dtype)


class LocalWeights(LayerWeights):
    """A `LocalLayer` for each of the layers named."""

    @property
    def pool(self) -> int | None:
        """Side of the cells that the layers weigh, None where they weigh none."""
        sides = {max(layer.pool_weight.shape) for layer in self if layer.pool_weight is not None}
        return max(sides, default=None)
