"""AttentionCouple: a prompt of its own for every region.

As users of ComfyUI know it (laksjdjf's and pamparamm's attention couple): one pass of the model,
and in each cross-attention layer the outputs of all prompts, mixed by the regions. With w_r(i) the
weight of prompt r at pixel i, adding up to 1:

    O_i = sum_r w_r(i) softmax(q_i K_r) V_r

Where each pixel has one prompt, it is attended to alone and nothing is computed twice. In joint
layers (Flux) the prompts stand one behind the other on the text axis: pixels see their own and all
of the picture, the tokens of a region's prompt see themselves and the region.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ...kernels.coverage import Region
from ...kernels.inputs import is_number
from .base import Modulation
from .plan import Branch, Extra, GroupedKeys, Plan
from .regions import read_region, refuse_overlap
from .scene import Scene
from .site import Site

__all__ = ["AttentionCouple"]


class AttentionCouple(Modulation):
    """Draw every region by its own prompt, and what no region covers by the scene's.

    prompts: prompt -> where it holds: the name of a region of the scene, a box or a mask.
    hard: a pixel is in a region or is not: more than half covered; regions must not overlap.
        Of two that share a pixel of a coarse layer, the smaller one has it.
        Otherwise prompts mix by coverage, which is normalised where it exceeds 1.
    base: share of the scene's prompt inside the regions, 0 to 1; 1 changes nothing.

    In joint layers all rows of a batch must be of the scene's prompt. Pooled embeddings, where a
    model has them, are those of the scene's prompt.
    """

    appends_text = True

    def __init__(
        self,
        scene: Scene,
        prompts: Mapping[str, object],
        *,
        hard: bool = True,
        base: float = 0.0,
    ) -> None:
        super().__init__(scene)
        if not isinstance(prompts, Mapping) or not prompts:
            raise ValueError(
                "AttentionCouple needs a prompt for a region, such as "
                f"{{'a red cat': (0, 0, 0.5, 1)}}, got {prompts!r}"
            )
        if not (is_number(base) and 0 <= base <= 1):
            raise ValueError(f"base must lie in [0, 1], got {base!r}")
        self.regions = {prompt: self._region(prompt, place) for prompt, place in prompts.items()}
        if hard:
            refuse_overlap(self.regions, "let prompts mix: AttentionCouple(..., hard=False)")
        self.hard = hard
        self.base = float(base)
        self.texts = tuple(self.regions) if base < 1 else ()

    def _region(self, prompt: str, place: object) -> Region:
        if not isinstance(place, str):
            return read_region(prompt, place)
        if place not in self.scene.regions:
            raise ValueError(
                f"{prompt!r} is for the region {place!r}, but the scene has "
                f"{list(self.scene.regions)}"
            )
        return self.scene.regions[place]

    def edits_in(self, kind: str) -> frozenset[str]:
        return frozenset({"texts"} if kind == "cross" else {"texts", "bias"})

    def plan(self, site: Site, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Plan | None:
        if self.base == 1:
            return None
        regions = list(self.regions.values())
        cover = site.coverage(regions)  # [R, f*h*w]
        inside = site.inside(regions, is_partition=True) if self.hard else cover > 0
        seen = _Cross(self, site) if site.kind == "cross" else _Joint(self, site, inside)
        if not self.hard:
            return Plan(branches=tuple(self._mixed(site, cover, seen)))
        order = torch.arange(1, len(inside) + 1, device=inside.device)
        apart = seen((inside * order[:, None]).sum(0))
        if self.base == 0:
            return apart
        share = v.new_full((1, 1, 1, 1), self.base)
        alone = seen(torch.zeros_like(inside[0], dtype=torch.int64))
        return Plan(branches=(Branch(share, alone), Branch(1 - share, apart)))

    def _mixed(self, site: Site, cover: torch.Tensor, seen: _Cross | _Joint) -> list[Branch]:
        """One branch a prompt, the scene's first, each for all pixels."""
        shares = cover / cover.sum(0).clamp_min(1) * (1 - self.base)
        weights = torch.cat([1 - shares.sum(0, keepdim=True), shares])
        branches = []
        for number, weight in enumerate(weights):
            prompts = torch.full_like(weight, number, dtype=torch.int64)
            # text queries are answered once, by the first branch
            full = site.over_queries(weight, 1.0 if number == 0 else 0.0)
            branches.append(Branch(full[None, None, :, None], seen(prompts)))
        return branches


class _Cross:
    """The plan for a prompt by pixel, where other prompts are further keys."""

    def __init__(self, couple: AttentionCouple, site: Site) -> None:
        self.site = site
        self.texts = [site.texts(text) for text in couple.texts]
        self.keys, self.values = site.project(torch.stack([t.embedding for t in self.texts]))

    def __call__(self, prompts: torch.Tensor) -> Plan:
        """prompts [f*h*w]: 0 the scene's, r the r-th region's."""
        site, count = self.site, len(self.texts) + 1
        groups = site.over_queries(prompts, 0)[None]
        own = torch.zeros(count, site.num_keys, dtype=site.dtype, device=site.device)
        own[1:] = -torch.inf
        extra = []
        for i, text in enumerate(self.texts):
            bias = own.new_full((count, len(text.embedding)), -torch.inf)
            bias[i + 1, text.visible] = 0
            grouped = GroupedKeys(groups=groups, bias=bias)
            extra.append(Extra(self.keys[i : i + 1], self.values[i : i + 1], grouped))
        return Plan(grouped=GroupedKeys(groups=groups, bias=own), extra=tuple(extra))


class _Joint:
    """The same where the prompts stand behind each other on the text axis."""

    def __init__(self, couple: AttentionCouple, site: Site, inside: torch.Tensor) -> None:
        self.site = site
        self.count = len(couple.texts)
        self.inside = inside

    def _text(self, number: int) -> slice:
        start = self.site.text + number * self.site.text_length
        return slice(start, start + self.site.text_length)

    def __call__(self, prompts: torch.Tensor) -> Plan:
        site, count = self.site, self.count
        groups = site.over_queries(prompts, 0)
        # one group a prompt for pixels, then one for the tokens of each region's prompt
        hidden = torch.zeros(2 * count + 1, site.num_keys, dtype=torch.bool, device=site.device)
        hidden[:, self._text(0).start : self._text(count).stop] = True
        for number in range(count + 1):
            hidden[number, self._text(number)] = False
        for number in range(1, count + 1):
            groups[self._text(number)] = count + number
            hidden[count + number, self._text(number)] = False
            hidden[count + number, site.layout.grid_slice] = ~self.inside[number - 1]
        bias = torch.zeros_like(hidden, dtype=site.dtype).masked_fill(hidden, -torch.inf)
        return Plan(grouped=GroupedKeys(groups=groups[None], bias=bias))
