"""Foveated attention: exact near the query, pooled further out, text always exact.

The far field is seen through averaged keys and values; log(count) on the logit of a pooled cell
gives it the softmax mass of the tokens it stands for. With `mass=False, partition=False` it is
CLEAR's pooled variant (arXiv:2412.16112).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from ..kernels import foveated_attention, foveated_keys
from ..kernels.counts import KeyCount
from ..kernels.inputs import check_flag, check_positive
from ..kernels.layout import TokenLayout
from ..kernels.sequence import Exchange, Shard, sequence_foveated_attention
from .base import EVERY_EDIT
from .proportional import proportional_scale
from .sequence import check_split
from .trained.base import TrainedAttnProcessor
from .trained.local import LocalWeights

__all__ = ["FoveatedAttnProcessor"]

# CLEAR's official pooled class takes the logarithm of ten times its tokens
_CLEAR_POOLED_TOKENS = 10


@dataclass(kw_only=True, eq=False, repr=False)
class FoveatedAttnProcessor(TrainedAttnProcessor):
    """Image keys within `radius` one by one, the rest of the image in cells, and all text.

    radius: of the near field, in tokens of the layer's own grid, at least 1.
    pool: side of a cell in tokens.
    levels: 2 uses cells of pool * pool tokens a side further out.
    mass: give a cell the weight of its tokens.
    partition: see no token both near and in a cell.
    pool_weight: [pool, pool], of a cell's tokens in its key and value; None is their mean. Calls
        whose rows or columns `pool` does not divide cannot run then.
    proportional, weights, base: as in LocalAttnProcessor; a layer's own cell weights come first.
    impl: "reference", "torch" or "triton"; None chooses.
    """

    radius: int = 8
    pool: int = 4
    levels: int = 1
    mass: bool = True
    partition: bool = True
    pool_weight: torch.Tensor | None = None
    proportional: int | None = None
    weights: LocalWeights | None = None
    base: LocalWeights | None = None
    impl: str | None = None
    weights_class: ClassVar[type[LocalWeights]] = LocalWeights

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("radius", self.radius)
        check_positive("pool", self.pool, least=2)
        check_positive("levels", self.levels)
        check_flag("mass", self.mass)
        check_flag("partition", self.partition)
        if self.levels > 1 and not self.partition:
            raise ValueError(f"partition=False takes levels=1, got levels={self.levels}")
        if self.proportional is not None:
            check_positive("proportional", self.proportional, least=2)
        self._check_pool_weight()

    def _check_pool_weight(self) -> None:
        if self.pool_weight is not None and not isinstance(self.pool_weight, torch.Tensor):
            raise ValueError(f"pool_weight must be a tensor, got {self.pool_weight!r}")
        trained = [] if self.weights is None else [layer.pool_weight for layer in self.weights]
        shapes = {tuple(w.shape) for w in (self.pool_weight, *trained) if w is not None}
        wrong = shapes - {(self.pool, self.pool), (1, 1, 1, self.pool, 1, self.pool, 1)}
        if wrong:
            raise ValueError(
                f"cell weights must be ({self.pool}, {self.pool}) for pool={self.pool}, "
                f"got {wrong.pop()}"
            )
        if shapes and self.levels > 1:
            raise ValueError(f"cell weights take levels=1, got levels={self.levels}")

    def why_not(self, layout: TokenLayout) -> str | None:
        _, rows, columns = layout.grid
        is_weighted = self._weight() is not None
        if is_weighted and (rows % self.pool or columns % self.pool):
            return f"cell weights need sides divisible by pool={self.pool}, not {rows} x {columns}"
        return None

    def _weight(self) -> torch.Tensor | None:
        trained = None if self.part is None else self.part.pool_weight
        return self.pool_weight if trained is None else trained

    @property
    def carries(self) -> frozenset[str]:
        # image keys are pooled, so a bias must be 0 on them
        return EVERY_EDIT - {"bias"}

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        layout: TokenLayout,
        scale: float | None,
    ) -> torch.Tensor:
        self.require_part()
        scale = self._scale(scale, q.shape[-1], layout)
        options = self._options(q.device)
        return foveated_attention(q, k, v, layout=layout, scale=scale, impl=self.impl, **options)

    def why_not_split(self) -> str | None:
        return None

    def attend_shard(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        shard: Shard,
        exchange: Exchange,
        scale: float | None,
    ) -> torch.Tensor:
        check_split(self)
        scale = self._scale(scale, q.shape[-1], shard.layout)
        options = self._options(q.device)
        return sequence_foveated_attention(
            q, k, v, shard=shard, exchange=exchange, scale=scale, **options
        )

    def _options(self, device: torch.device) -> dict[str, Any]:
        weight = self._weight()
        return {
            "radius": self.radius,
            "pool": self.pool,
            "levels": self.levels,
            "mass": self.mass,
            "partition": self.partition,
            "pool_weight": None if weight is None else weight.to(device),
        }

    def _scale(self, scale: float | None, dim: int, layout: TokenLayout) -> float | None:
        is_clear = not (self.mass or self.partition)
        tokens = layout.num_tokens * (_CLEAR_POOLED_TOKENS if is_clear else 1)
        return proportional_scale(scale, dim, tokens, self.proportional)

    def count_keys(self, layout: TokenLayout) -> KeyCount:
        return foveated_keys(layout, self.radius, self.pool, self.levels, self.partition)
