"""Agent attention: image queries see the rest of the picture through a few pooled queries.

Agent Attention and its training-free AgentSD, arXiv:2312.08874, with agents pooled on the grid
where AgentSD merges tokens.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import prod

import torch
from torch import nn

from ..kernels import agent_attention, agent_grid, agent_keys
from ..kernels.counts import KeyCount
from ..kernels.inputs import check_positive
from ..kernels.layout import TokenLayout
from .agent_weights import AgentLayer, AgentWeights
from .base import AttnProcessor

__all__ = ["AgentAttnProcessor"]


@dataclass(kw_only=True, eq=False, repr=False)
class AgentAttnProcessor(AttnProcessor):
    """Agents read all keys, text too; image queries read the agents. Text queries see everything.

    Where the agents are half the tokens or more they save nothing: such calls run dense.

    agents: at most this many, on a grid with the proportions of the picture's.
    scale2_exponent: e of the second pass's scale head_dim^-e; AgentSD has 0.15, sharper than 0.5.
    shortcut: share of a token's own value added to its output; AgentSD has 0.075.
    weights: trained parts by layer; layers that have none stay dense, and the report says so.
    impl: "reference", "torch" or "triton"; None chooses.
    """

    agents: int = 256
    scale2_exponent: float = 0.5
    shortcut: float = 0.0
    weights: AgentWeights | None = None
    impl: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._layer: AgentLayer | None = None
        check_positive("agents", self.agents)
        if self.weights is not None and not isinstance(self.weights, AgentWeights):
            raise ValueError(f"weights must be AgentWeights, got {type(self.weights).__name__}")

    def bind(self, name: str, attn: nn.Module) -> AgentAttnProcessor:
        """The processor of one layer, sharing the trained weights.

        Raises NotImplementedError where the layer has none.
        """
        if self.weights is None:
            return self
        layer = self.weights.of(name)
        if layer is None:
            raise NotImplementedError("no trained weights for this layer")
        for part, value in layer.named_parameters():
            if len(value) != attn.heads:
                raise ValueError(
                    f"{name}: {part} is for {len(value)} heads, but the layer has {attn.heads}; "
                    "the weights are of another base model"
                )
        bound = copy.copy(self)
        bound._layer = layer
        return bound

    def why_dense(self, layout: TokenLayout) -> str | None:
        count = prod(agent_grid(layout.grid, self.agents))
        if 2 * count < layout.num_grid:
            return None
        return f"{count} agents for {layout.num_grid} image tokens save nothing"

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        layout: TokenLayout,
        scale: float | None,
    ) -> torch.Tensor:
        if self.weights is not None and self._layer is None:
            raise NotImplementedError(
                "trained weights belong to layers, which set_attn_processor does not name; "
                "use foveate.apply(pipe, processor)"
            )
        return agent_attention(
            q,
            k,
            v,
            layout=layout,
            agents=self.agents,
            scale2_exponent=self.scale2_exponent,
            shortcut=self.shortcut,
            **({} if self._layer is None else self._layer.parts()),
            scale=scale,
            impl=self.impl,
        )

    def count_keys(self, layout: TokenLayout) -> KeyCount:
        return agent_keys(layout, self.agents)
