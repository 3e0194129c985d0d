"""Emphasize: phrases that weigh more, or less, in every pixel's attention to the text.

PASTA (arXiv:2311.02262) for prompts: an additive bias on the logits of marked tokens is a factor on
their softmax weight before it is normalised. PASTA lowers the rest of the prompt; here either can
be moved, and tokens that are no words (start, end, padding) stay, since they take up attention that
belongs to no word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from .base import Modulation
from .options import read_strengths
from .plan import GroupedKeys, Plan, key_bias
from .scene import Scene
from .site import Site

__all__ = ["Emphasize"]


class Emphasize(Modulation):
    """Multiply the weight of phrases by a factor each.

    strengths: name or phrase of the scene -> factor > 0; 1 changes nothing.
    damp: divide the weight of every word by the largest factor as well, so that the strongest
        phrase stays and the others fall, as PASTA does.
    in_regions: only for pixels inside the phrase's region.
    """

    is_static = True

    def __init__(
        self,
        scene: Scene,
        strengths: Mapping[str, float],
        *,
        damp: bool = False,
        in_regions: bool = False,
    ) -> None:
        super().__init__(scene)
        self.strengths = read_strengths(scene, strengths)
        for name, strength in self.strengths.items():
            if not strength > 0:
                raise ValueError(f"the strength of {name!r} must be > 0, got {strength!r}")
            if in_regions and name not in scene.regions:
                raise ValueError(f"in_regions needs a region for {name!r}; the scene gives none")
        self.damp = damp
        self.in_regions = in_regions

    def edits_in(self, kind: str) -> frozenset[str]:
        return frozenset({"text bias" if self.in_regions else "key bias"})

    def plan(self, site: Site, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Plan | None:
        logs = {name: math.log(s) for name, s in self.strengths.items() if s != 1}
        if not logs:
            return None
        tokens = site.tokens[self.scene]
        rows = torch.stack([site.marked(tokens.phrases[n]).to(site.dtype) * logs[n] for n in logs])
        damping = site.marked(tokens.words).to(site.dtype) * -max(0.0, *logs.values())
        if not self.in_regions:
            bias = rows.sum(0) + damping if self.damp else rows.sum(0)
            return Plan(grouped=key_bias(bias, q.shape[2]))
        inside = site.inside([self.scene.regions[name] for name in logs])
        inside = site.over_queries(inside, False)
        members, groups = torch.unique(inside.T, dim=0, return_inverse=True)
        bias = members.to(rows) @ rows
        if self.damp:
            bias = bias + members.any(1, keepdim=True) * damping
        return Plan(grouped=GroupedKeys(groups=groups[None], bias=bias))
