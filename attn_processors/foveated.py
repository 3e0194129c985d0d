"""Foveated attention: exact near the query, pooled further out, text always exact.

The far field is seen through averaged keys and values; log(count) on the logit of a pooled cell
gives it the softmax mass of the tokens it stands for. With `mass=False, partition=False` it is
CLEAR's pooled variant (arXiv:2412.16112).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..kernels import foveated_attention, foveated_keys
from ..kernels.counts import KeyCount
from ..kernels.inputs import check_positive
from ..kernels.layout import TokenLayout
from .base import AttnProcessor
from .proportional import proportional_scale

__all__ = ["FoveatedAttnProcessor"]

# CLEAR's official pooled class takes the logarithm of ten times its tokens
_CLEAR_POOLED_TOKENS = 10


@dataclass(kw_only=True, eq=False, repr=False)
class FoveatedAttnProcessor(AttnProcessor):
    """Image keys within `radius` one by one, the rest of the image in cells, and all text.

    radius: of the near field, in tokens of the layer's own grid, at least 1.
    pool: side of a cell in tokens.
    levels: 2 uses cells of pool * pool tokens a side further out.
    mass: give a cell the weight of its tokens.
    partition: see no token both near and in a cell.
    proportional: as in LocalAttnProcessor.
    impl: "reference", "torch" or "triton"; None chooses.
    """

    radius: int = 8
    pool: int = 4
    levels: int = 1
    mass: bool = True
    partition: bool = True
    proportional: int | None = None
    impl: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("radius", self.radius)
        check_positive("pool", self.pool, least=2)
        check_positive("levels", self.levels)
        if self.levels > 1 and not self.partition:
            raise ValueError(f"partition=False takes levels=1, got levels={self.levels}")
        if self.proportional is not None:
            check_positive("proportional", self.proportional, least=2)

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        layout: TokenLayout,
        scale: float | None,
    ) -> torch.Tensor:
        if self.proportional is not None:
            is_clear = not (self.mass or self.partition)
            tokens = layout.num_tokens * (_CLEAR_POOLED_TOKENS if is_clear else 1)
            scale = proportional_scale(scale, q.shape[-1], tokens, self.proportional)
        return foveated_attention(
            q,
            k,
            v,
            layout=layout,
            radius=self.radius,
            pool=self.pool,
            levels=self.levels,
            mass=self.mass,
            partition=self.partition,
            scale=scale,
            impl=self.impl,
        )

    def count_keys(self, layout: TokenLayout) -> KeyCount:
        return foveated_keys(layout, self.radius, self.pool, self.levels, self.partition)
