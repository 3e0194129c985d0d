"""Trained parts of agent attention, layer by layer: position biases and a depth-wise kernel.

Agent Attention, arXiv:2312.08874. All start at zero, where they do nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import ClassVar

import torch
from torch import nn

from ..hosts import heads_of
from .layers import LayerWeights, TrainedLayer

__all__ = ["AgentLayer", "AgentWeights"]


class AgentLayer(TrainedLayer):
    """What is trained in one attention layer; a part left out does nothing.

    key_bias, query_bias: [heads, s, s, s, s], added to the logits of the first and second pass, by
        row and column of the agent, then of the token; resized to any grid.
    conv: [heads, head_dim, c, c], the kernel that is added to the values.
    """

    PARTS: ClassVar[tuple[str, ...]] = ("key_bias", "query_bias", "conv")

    def __init__(
        self,
        *,
        key_bias: nn.Parameter | None = None,
        query_bias: nn.Parameter | None = None,
        conv: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.key_bias, self.query_bias, self.conv = key_bias, query_bias, conv

    @classmethod
    def zeros(cls, heads: int, head_dim: int, side: int = 7, conv_side: int = 3) -> AgentLayer:
        """All parts, at zero."""
        return cls(
            key_bias=nn.Parameter(torch.zeros(heads, side, side, side, side)),
            query_bias=nn.Parameter(torch.zeros(heads, side, side, side, side)),
            conv=nn.Parameter(torch.zeros(heads, head_dim, conv_side, conv_side)),
        )

    @classmethod
    def of_parts(
        cls, attn: nn.Module, parts: Collection[str], *, side: int = 7, conv_side: int = 3
    ) -> AgentLayer:
        """The parts named, of PARTS, at zero."""
        cls.check_parts(parts)
        like = attn.to_q.weight
        heads = heads_of(attn)
        whole = cls.zeros(heads, like.shape[0] // heads, side, conv_side)
        layer = cls(**{name: value for name, value in whole.parts().items() if name in parts})
        return layer.to(device=like.device, dtype=like.dtype)

    def differences(self, name: str, attn: nn.Module) -> list[str]:
        return [
            f"{name}: {part} is for {len(value)} heads, but the layer has {heads_of(attn)}"
            for part, value in self.named_parameters()
            if len(value) != heads_of(attn)
        ]

    def parts(self) -> dict[str, torch.Tensor | None]:
        """The arguments of `agent_attention`."""
        return {"key_bias": self.key_bias, "query_bias": self.query_bias, "conv": self.conv}


class AgentWeights(LayerWeights):
    """An `AgentLayer` for each of the layers named."""
