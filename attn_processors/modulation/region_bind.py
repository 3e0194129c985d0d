"""RegionBind: pixels outside a phrase's region do not see the phrase.

The region-constrained cross-attention of PrimeComposer (arXiv:2403.05053), for every phrase that
has a region: s_ij = -inf for tokens j of the phrase and pixels i outside. Tokens of no phrase stay
visible everywhere, so that no pixel is left without keys.
"""

from __future__ import annotations

import torch

from .base import Modulation
from .plan import GroupedKeys, LowRank, Plan
from .regions import refuse_overlap, threshold
from .scene import Scene
from .site import Site

__all__ = ["RegionBind"]

# soft coverage enters as a logarithm, which this bounds
_LEAST = 1e-4


class RegionBind(Modulation):
    """Bind every phrase of the scene that has a region to it.

    hard: a pixel is in a region or is not: more than half covered. Otherwise the logits of a phrase
        grow by the logarithm of the coverage.
    overlap: whether regions may share pixels, which then see the phrases of both.
    drop_ends: hide the tokens behind the words too, end and padding, from every pixel. A causal
        text encoder such as CLIP puts the whole sentence into them, past every region.
    """

    edits = frozenset({"text bias"})
    is_static = True

    def __init__(
        self, scene: Scene, *, hard: bool = True, overlap: bool = False, drop_ends: bool = False
    ) -> None:
        super().__init__(scene)
        if not scene.regions:
            raise ValueError(
                "RegionBind needs a Scene with regions, got none; ObjectFocus does not"
            )
        self.hard = hard
        self.overlap = overlap
        self.drop_ends = drop_ends
        if hard and not overlap:
            refuse_overlap(
                scene.regions,
                "let pixels see both: RegionBind(scene, overlap=True), or hard=False",
            )

    def plan(self, site: Site, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Plan:
        tokens = site.tokens[self.scene].phrases
        marked = torch.stack([site.marked(tokens[name]) for name in self.scene.regions])  # [R, M]
        cover = site.coverage(list(self.scene.regions.values()))
        if self.hard:
            return Plan(grouped=self._hidden(site, cover, marked))
        # soft regions, and ends hidden from the pixels
        a = site.over_queries(cover.clamp_min(_LEAST).log(), 0.0)
        low_rank = LowRank(a.T[None, None], marked.T.to(a)[None, None])
        return Plan(low_rank=low_rank, grouped=self._hidden(site, cover[:0], marked[:0]))

    def _hidden(self, site: Site, cover: torch.Tensor, marked: torch.Tensor) -> GroupedKeys | None:
        """Keys marked [R, M] hidden from pixels outside of their region, and the ends from all."""
        inside = [threshold(one) for one in cover]
        if self.drop_ends:
            inside.append(torch.zeros(site.layout.num_grid, dtype=torch.bool, device=site.device))
            marked = torch.cat([marked, site.ends(self.scene)[None]])
        if not inside:
            return None
        # queries that are no pixels count as in every region
        inside = site.over_queries(torch.stack(inside), True)
        members, groups = torch.unique(inside.T, dim=0, return_inverse=True)  # [G, R], [N]
        hidden = (~members).to(site.dtype) @ marked.to(site.dtype) > 0
        bias = torch.zeros_like(hidden, dtype=site.dtype).masked_fill(hidden, -torch.inf)
        return GroupedKeys(groups=groups[None], bias=bias)
