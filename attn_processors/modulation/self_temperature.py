"""SelfTemperature: sharper or flatter attention of the picture to itself.

From attribution focusing (arXiv:2404.13899): early in the schedule, sharper self-attention joins
like patches and keeps apart what belongs to different objects. s'_ij = factor s_ij.
"""

from __future__ import annotations

import torch

from ...kernels.inputs import is_number
from .base import Modulation
from .plan import GroupedKeys, Plan
from .site import Site

__all__ = ["SelfTemperature"]


class SelfTemperature(Modulation):
    """Multiply the logits between image tokens by `factor`; above 1 is sharper.

    In joint layers the logits to and from text stay as they are. Acts on all rows of the batch.
    """

    kinds = frozenset({"self", "joint"})
    is_static = True

    def __init__(self, factor: float) -> None:
        super().__init__(branch="both")
        if not (is_number(factor) and factor > 0):
            raise ValueError(f"factor must be > 0 and finite, got {factor!r}")
        self.factor = float(factor)

    def edits_in(self, kind: str) -> frozenset[str]:
        return frozenset({"temperature" if kind == "self" else "key scale"})

    def plan(self, site: Site, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Plan | None:
        if self.factor == 1:
            return None
        if site.kind == "self":
            return Plan(q_scale=self.factor)
        on_grid = torch.zeros(site.num_keys, dtype=torch.int64, device=site.device)
        on_grid[site.layout.grid_slice] = 1
        scale = torch.ones(2, site.num_keys, dtype=site.dtype, device=site.device)
        scale[1, site.layout.grid_slice] = self.factor
        grouped = GroupedKeys(groups=on_grid[None], bias=torch.zeros_like(scale), scale=scale)
        return Plan(grouped=grouped)
