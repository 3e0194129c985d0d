"""How an attention layer would project another text: asked of its own stock processor.

The processor is called with one empty query token, and its softmax call, where projections, norms
and the split into heads are done, is what is looked at. So fused projections, adapters and norms
are those of the layer, and none is repeated here.
"""

from __future__ import annotations

import torch
from torch import nn

from ..redirect import redirect

__all__ = ["Probe"]


class Probe:
    """Keys and values that a cross-attention module makes of embeddings [n, T, C]."""

    def __init__(self, module: nn.Module, processor: object) -> None:
        self._module = module
        self._processor = processor

    def __call__(self, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both [n, H, T, D]."""
        seen: list[tuple[torch.Tensor, torch.Tensor]] = []

        def look(q, k, v, *, scale, special):
            seen.append((k, v))
            return torch.zeros_like(q)

        query = text.new_zeros(len(text), 1, self._module.to_q.in_features)
        redirect(self._processor, look)(self._module, query, encoder_hidden_states=text)
        if len(seen) != 1:
            raise NotImplementedError(
                f"{type(self._processor).__name__} makes {len(seen)} softmax calls (an image "
                "prompt?), so the one for the text is not known; unload it, or leave out the "
                "modulation that brings texts of its own"
            )
        return seen[0]
