"""RegionBind: pixels outside a phrase's region do not see the phrase.

The region-constrained cross-attention of PrimeComposer (arXiv:2403.05053), for every phrase that
has a region: s_ij = -inf for tokens j of the phrase and pixels i outside. What is new here is the
beginning of the schedule, where the layout is decided: there the pixels of a region see nothing but
their phrase. Tokens of no phrase, such as the end, hold the whole sentence in most text encoders.
"""

from __future__ import annotations

import torch

from ...kernels.inputs import is_number
from .base import Modulation
from .plan import GroupedKeys, LowRank, Plan
from .regions import refuse_overlap
from .scene import Scene
from .site import Site

__all__ = ["RegionBind"]

# by kind of layer; in joint layers, where pixels see each other beside the text, it costs shapes
_ALONE = {"cross": 0.4, "joint": 0.0}
# soft coverage enters as a logarithm, which this bounds
_LEAST = 1e-4


class RegionBind(Modulation):
    """Bind every phrase of the scene that has a region to it.

    hard: a pixel is in a region or is not: more than half covered. Otherwise the logits of a phrase
        grow by the logarithm of the coverage.
    overlap: whether regions may share pixels, which then see the phrases of both.
    alone: until this fraction of the schedule the pixels of a region see no other word, and no end
        or padding token. 0 is never, None 0.4 in cross-attention and never in joint layers.
    """

    edits = frozenset({"text bias"})

    def __init__(
        self, scene: Scene, *, hard: bool = True, overlap: bool = False, alone: float | None = None
    ) -> None:
        super().__init__(scene)
        if not scene.regions:
            raise ValueError(
                "RegionBind needs a Scene with regions, got none; ObjectFocus does not"
            )
        if alone is not None and not (is_number(alone) and 0 <= alone <= 1):
            raise ValueError(f"alone must lie in [0, 1] or be None, got {alone!r}")
        self.hard = hard
        self.overlap = overlap
        self.alone = alone
        if hard and not overlap:
            refuse_overlap(
                scene.regions,
                "let pixels see both: RegionBind(scene, overlap=True), or hard=False",
            )

    def plan(self, site: Site, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Plan:
        tokens = site.tokens[self.scene].phrases
        marked = torch.stack([site.marked(tokens[name]) for name in self.scene.regions])  # [R, M]
        regions = list(self.scene.regions.values())
        grouped = self._grouped(site, site.over_queries(site.inside(regions), False), marked)
        if self.hard:
            return Plan(grouped=grouped)
        cover = site.coverage(regions)
        a = site.over_queries(cover.clamp_min(_LEAST).log(), 0.0)
        low_rank = LowRank(a.T[None, None], marked.T.to(a)[None, None])
        return Plan(low_rank=low_rank, grouped=grouped)

    def _grouped(
        self, site: Site, inside: torch.Tensor, marked: torch.Tensor
    ) -> GroupedKeys | None:
        """Hides keys from queries, by which regions hold them [R, N]; marked [R, M]: of phrases."""
        is_alone = site.progress < (_ALONE[site.kind] if self.alone is None else self.alone)
        if not self.hard and not is_alone:
            return None
        pixels = torch.zeros_like(inside[:1])
        pixels[:, site.layout.grid_slice] = True
        members, groups = torch.unique(torch.cat([inside, pixels]).T, dim=0, return_inverse=True)
        regions, pixels = members[:, :-1], members[:, -1:]  # of each group [G, R], [G, 1]
        hidden = torch.zeros(len(members), site.num_keys, dtype=torch.bool, device=site.device)
        if self.hard:
            hidden |= pixels & _holds(~regions, marked)
        if is_alone:
            text = site.marked(site.tokens[self.scene].words) | site.ends(self.scene)
            hidden |= regions.any(1, keepdim=True) & text & ~_holds(regions, marked)
        bias = torch.zeros_like(hidden, dtype=site.dtype).masked_fill(hidden, -torch.inf)
        return GroupedKeys(groups=groups[None], bias=bias)


def _holds(regions: torch.Tensor, marked: torch.Tensor) -> torch.Tensor:
    """Whether one of the regions [G, R] has a phrase [R, M] with the key: [G, M]."""
    return (regions[:, :, None] & marked).any(1)
