"""Trained parts of local attention, layer by layer: CLEAR's projections and cell weights.

CLEAR, arXiv:2412.16112. The text stream and all norms stay the model's own.
"""

from __future__ import annotations

from torch import nn

from .layer_weights import LayerWeights
from .projected import Projections

__all__ = ["LocalLayer", "LocalWeights"]


class LocalLayer(Projections):
    """What is trained in one attention layer; a part left out is the model's own.

    to_q, to_k, to_v, to_out, heads: as in Projections.
    pool_weight: [pool, pool], or (1, 1, 1, pool, 1, pool, 1) as in CLEAR's files, the weights of a
        cell's tokens for `FoveatedAttnProcessor`.
    """

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


class LocalWeights(LayerWeights):
    """A `LocalLayer` for each of the layers named."""

    @property
    def pool(self) -> int | None:
        """Side of the cells that the layers weigh, None where they weigh none."""
        sides = {max(layer.pool_weight.shape) for layer in self if layer.pool_weight is not None}
        return max(sides, default=None)
