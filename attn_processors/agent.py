"""Agent attention: image queries see the rest of the picture through a few pooled queries.

Agent Attention and its training-free AgentSD, arXiv:2312.08874, with agents pooled on the grid
where AgentSD merges tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch

from ..kernels import agent_attention, agent_grid, agent_keys
from ..kernels.counts import KeyCount
from ..kernels.inputs import check_number, check_positive
from ..kernels.layout import TokenLayout
from .trained.agent import AgentWeights
from .trained.base import TrainedAttnProcessor

__all__ = ["AgentAttnProcessor"]


@dataclass(kw_only=True, eq=False, repr=False)
class AgentAttnProcessor(TrainedAttnProcessor):
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
    weights_class: ClassVar[type[AgentWeights]] = AgentWeights

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("agents", self.agents)
        check_number("scale2_exponent", self.scale2_exponent)
        check_number("shortcut", self.shortcut)

    def why_dense(self, layout: TokenLayout) -> str | None:
        count = prod(agent_grid(layout.grid, self.agents))
        if 2 * count < layout.num_grid:
            return None
        return f"{count} agents for {layout.num_grid} image tokens save nothing"

    @property
    def carries(self) -> frozenset[str]:
        # agents pool queries of several groups. A depth-wise kernel has the values' own width
        has_kernel = self.part is not None and self.part.conv is not None
        return frozenset({"values"} if has_kernel else {"key bias", "values"})

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        *,
        layout: TokenLayout,
        scale: float | None,
    ) -> torch.Tensor:
        part = self.require_part()
        return agent_attention(
            q,
            k,
            v,
            layout=layout,
            agents=self.agents,
            scale2_exponent=self.scale2_exponent,
            shortcut=self.shortcut,
            **({} if part is None else part.parts()),
            scale=scale,
            impl=self.impl,
        )

    def count_keys(self, layout: TokenLayout) -> KeyCount:
        return agent_keys(layout, self.agents)
