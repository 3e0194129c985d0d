"""Neighbourhood attention: an image query sees all text and a box of image keys around it.

Neighborhood Attention Transformer, arXiv:2204.07143.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..kernels import neighborhood_attention, neighborhood_keys
from ..kernels.counts import KeyCount
from ..kernels.layout import TokenLayout
from ..kernels.neighborhood import check_box
from .base import EVERY_EDIT, AttnProcessor

__all__ = ["NeighborhoodAttnProcessor"]


@dataclass(kw_only=True, eq=False, repr=False)
class NeighborhoodAttnProcessor(AttnProcessor):
    """Image keys in a box that moves inward at borders, and all text; text queries see everything.

    The options are over (frames, rows, columns) of the layer's own grid.

    kernel_size: tokens of the box; an axis with fewer is seen whole.
    dilation: tokens from one of them to the next.
    is_causal: whether the box only looks back, frames for instance.
    impl: "reference", "torch" or "triton"; None chooses.
    """

    kernel_size: tuple[int, int, int] = (1, 7, 7)
    dilation: tuple[int, int, int] = (1, 1, 1)
    is_causal: tuple[bool, bool, bool] = (False, False, False)
    impl: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_box(self.kernel_size, self.dilation, self.is_causal)

    @property
    def carries(self) -> frozenset[str]:
        return EVERY_EDIT

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        layout: TokenLayout,
        scale: float | None,
    ) -> torch.Tensor:
        return neighborhood_attention(
            q,
            k,
            v,
            layout=layout,
            kernel_size=self.kernel_size,
            dilation=self.dilation,
            is_causal=self.is_causal,
            scale=scale,
            impl=self.impl,
        )

    def count_keys(self, layout: TokenLayout) -> KeyCount:
        return neighborhood_keys(layout, self.kernel_size, self.dilation, self.is_causal)
