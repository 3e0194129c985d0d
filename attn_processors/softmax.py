"""Dense softmax attention through our own call path: the identity, to check or measure against."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..kernels import softmax_attention
from ..kernels.counts import KeyCount
from ..kernels.layout import TokenLayout
from .base import EVERY_EDIT, AttnProcessor

__all__ = ["SoftmaxAttnProcessor"]


@dataclass(kw_only=True, eq=False, repr=False)
class SoftmaxAttnProcessor(AttnProcessor):
    """Every query attends to every key; equal to the stock processor bit by bit.

    impl: "reference", "torch" or "triton"; None chooses.
    """

    impl: str | None = None

    @property
    def is_softmax(self) -> bool:
        return True

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
        return softmax_attention(q, k, v, scale=scale, impl=self.impl)

    def count_keys(self, layout: TokenLayout) -> KeyCount:
        return KeyCount(layout.num_tokens, layout.num_tokens)
