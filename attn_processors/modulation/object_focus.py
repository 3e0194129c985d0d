"""ObjectFocus: each pixel sees the phrase whose object it belongs to, and no other phrase.

The object-focused mask of attribution focusing (arXiv:2404.13899), without boxes: with m_ig the
attention mass of pixel i on the noun of phrase g, mean over heads, the pixel keeps the phrase of
the largest m_ig and all tokens of no phrase. The paper's constants are not public.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .base import Modulation
from .plan import GroupedKeys, Plan
from .scene import Scene
from .site import Site

__all__ = ["ObjectFocus"]


class ObjectFocus(Modulation):
    """Give every pixel to one phrase of the scene, by this very call's attention.

    smooth: average the masses over 3 x 3 pixels first, with weights 1, 2, 1.
    least: share of the phrases' mass that the winner must have; a pixel where none has it sees no
        phrase at all. 0 always gives one.
    """

    edits = frozenset({"text bias"})

    def __init__(self, scene: Scene, *, smooth: bool = True, least: float = 0.0) -> None:
        super().__init__(scene)
        if len(scene.phrases) < 2:
            raise ValueError(
                f"ObjectFocus chooses between phrases, and {scene!r} has one; mark two or more"
            )
        if not 0 <= least < 1:
            raise ValueError(f"least must lie in [0, 1), got {least!r}")
        self.smooth = smooth
        self.least = least

    def plan(self, site: Site, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Plan:
        tokens = site.tokens[self.scene]
        names = list(self.scene.phrases)
        nouns = torch.stack([site.marked(tokens.nouns[name]) for name in names], 1)
        mass = site.mass(nouns.to(site.dtype)).mean(1)[:, site.layout.grid_slice]
        groups = self._winners(mass.detach(), site.grid)  # [b, f*h*w] in 0..G
        marked = torch.stack([site.marked(tokens.phrases[name]) for name in names])  # [G, M]
        # group g sees its phrase alone, group G none, group G + 1 (text queries) everything
        hidden = marked.any(0) & ~F.pad(marked, (0, 0, 0, 1))
        hidden = F.pad(hidden, (0, 0, 0, 1))
        bias = torch.zeros_like(hidden, dtype=site.dtype).masked_fill(hidden, -torch.inf)
        groups = site.over_queries(groups, len(names) + 1)
        return Plan(grouped=GroupedKeys(groups=groups, bias=bias))

    def _winners(self, mass: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """The phrase of every pixel, [b, f*h*w], from its masses [b, f*h*w, G]; G for none."""
        num_phrases = mass.shape[-1]
        if self.smooth:
            mass = _smoothed(mass, grid)
        share = mass / mass.sum(-1, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny)
        top, winner = share.max(-1)
        return winner.masked_fill(top < self.least, num_phrases)


def _smoothed(mass: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Binomial 3 x 3 average over each frame; borders repeat."""
    b, _, num_phrases = mass.shape
    planes = mass.transpose(1, 2).reshape(b * num_phrases, -1, *grid)
    weight = torch.tensor([1.0, 2.0, 1.0]).to(mass)
    kernel = (weight[:, None] * weight)[None, None] / 16
    frames = planes.flatten(0, 1)[:, None]
    smooth = F.conv2d(F.pad(frames, (1, 1, 1, 1), mode="replicate"), kernel)
    return smooth.reshape(b, num_phrases, -1).transpose(1, 2)
