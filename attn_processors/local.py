"""Local attention: an image query sees all text and the image keys inside a disc around it.

CLEAR, arXiv:2412.16112.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from ..kernels import local_attention, local_keys
from ..kernels.counts import KeyCount
from ..kernels.inputs import check_positive
from ..kernels.layout import TokenLayout
from ..kernels.local import check_radius
from .base import AttnProcessor
from .proportional import proportional_scale

__all__ = ["LocalAttnProcessor"]


@dataclass(kw_only=True, eq=False, repr=False)
class LocalAttnProcessor(AttnProcessor):
    """Image keys nearer than `radius` tokens (strictly) and all text; text queries see everything.

    radius: in tokens of the layer's own grid, at least 1; or one for each head.
    proportional: tokens, text and image, of the calls the model was trained with; logits then grow
        by sqrt(log(tokens) / log(proportional)). None leaves them.
    impl: "reference", "torch" or "triton"; None chooses.
    """

    radius: int | Sequence[int] = 16
    proportional: int | None = None
    impl: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_radius(self.radius)
        if self.proportional is not None:
            check_positive("proportional", self.proportional, least=2)

    def bind(self, name: str, attn: nn.Module) -> LocalAttnProcessor:
        """Itself. Raises ValueError where the layer has not as many heads as there are radii."""
        if isinstance(self.radius, Sequence) and len(self.radius) != attn.heads:
            raise ValueError(
                f"{name} has {attn.heads} heads, but radius={self.radius} is for "
                f"{len(self.radius)}; map each pattern of layers to a processor of its own"
            )
        return self

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
            scale = proportional_scale(scale, q.shape[-1], layout.num_tokens, self.proportional)
        return local_attention(
            q, k, v, layout=layout, radius=self.radius, scale=scale, impl=self.impl
        )

    def count_keys(self, layout: TokenLayout) -> KeyCount:
        return local_keys(layout, self.radius)
