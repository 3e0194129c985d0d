"""ObjectFocus: each pixel sees the phrase whose object it belongs to, and no other phrase.

The object-focused mask of attribution focusing (arXiv:2404.13899), without boxes. The paper's
constants and the source of its masks are not public. Here a pixel i belongs to the phrase g of the
largest m_ig / mean_i m_ig, where m is the attention mass of the words of g in the step before, mean
over heads and the layers with most tokens: divided by its mean, since some words draw more
attention everywhere; over layers and from one step to the next, so that all of them agree on one
partition of the picture; of the finest layers, since coarse ones look where no object of the phrase
will be.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from ...kernels.inputs import is_number
from .base import Modulation
from .plan import GroupedKeys, Plan
from .scene import Scene
from .site import Site
from .span_maps import MapStore

__all__ = ["ObjectFocus"]


class ObjectFocus(Modulation):
    """Give every pixel to one phrase of the scene, by the attention of the step before.

    The first step of its window only looks.

    smooth: standard deviation of the Gaussian that the masses are averaged with, as a share of the
        longer side; 0 takes them as they are. The smoother, the fewer objects come in pieces.
    least: share of the phrases' masses that the winner must have; a pixel where none has it sees no
        phrase at all. 0 always gives one.
    """

    edits = frozenset({"text bias"})

    def __init__(self, scene: Scene, *, smooth: float = 0.15, least: float = 0.0) -> None:
        super().__init__(scene)
        if len(scene.phrases) < 2:
            raise ValueError(
                f"ObjectFocus chooses between phrases, and {scene!r} has one; mark two or more"
            )
        for name, value in (("smooth", smooth), ("least", least)):
            if not (is_number(value) and 0 <= value < 1):
                raise ValueError(f"{name} must lie in [0, 1), got {value!r}")
        self.smooth = smooth
        self.least = least

    def new_store(self) -> _FinestMaps:
        return _FinestMaps(self.scene.phrases)

    def plan(self, site: Site, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Plan | None:
        phrases = site.tokens[self.scene].phrases
        marked = torch.stack([site.marked(phrases[name]) for name in self.scene.phrases])  # [G, M]
        store = site.stores[self]
        if store.takes(site.grid):
            store.add(site.progress, _masses(site, marked))
        earlier = [step for step in store.steps if step < site.progress]
        if not earlier:
            return None
        maps = store.maps(site.grid, (earlier[-1], site.progress))
        groups = self._winners(torch.stack(list(maps.values()), 1))  # [b*f, h, w] in 0..G
        # group g sees its phrase alone, group G none, group G + 1 (text queries) everything
        hidden = marked.any(0) & ~F.pad(marked, (0, 0, 0, 1))
        hidden = F.pad(hidden, (0, 0, 0, 1))
        bias = torch.zeros_like(hidden, dtype=site.dtype).masked_fill(hidden, -torch.inf)
        groups = site.over_queries(groups.reshape(q.shape[0], -1), len(marked) + 1)
        return Plan(grouped=GroupedKeys(groups=groups, bias=bias, gives_way=True))

    def _winners(self, mass: torch.Tensor) -> torch.Tensor:
        """The phrase of every pixel, [b, h, w], from its masses [b, G, h, w]; G for none."""
        if self.smooth:
            mass = _smoothed(mass, self.smooth * max(mass.shape[-2:]))
        share = mass / mass.sum(1, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny)
        top, winner = share.max(1)
        return winner.masked_fill(top < self.least, mass.shape[1])


class _FinestMaps(MapStore):
    """Of the layers with most tokens alone."""

    def clear(self) -> None:
        super().clear()
        self._most = 0

    def takes(self, grid: tuple[int, int]) -> bool:
        """Whether no finer layer is known; what coarser ones left is forgotten."""
        tokens = math.prod(grid)
        if tokens > self._most:
            self.clear()
            self._most = tokens
        return tokens == self._most


def _masses(site: Site, marked: torch.Tensor) -> torch.Tensor:
    """Attention mass of each phrase over its mean in the frame, [b*f, G, h, w]."""
    mass = site.mass(marked.T.to(site.dtype)).mean(1)[:, site.layout.grid_slice].detach()
    planes = mass.unflatten(1, site.layout.grid).flatten(0, 1).permute(0, 3, 1, 2)
    return planes / planes.mean((2, 3), keepdim=True).clamp_min(torch.finfo(planes.dtype).tiny)


def _smoothed(planes: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian average of [..., h, w]; at the borders the weights inside share the whole."""
    rows, columns = (_weights(side, sigma, planes) for side in planes.shape[-2:])
    return rows @ planes @ columns.T


def _weights(side: int, sigma: float, like: torch.Tensor) -> torch.Tensor:
    """[side, side] weights of a Gaussian; rows sum to 1."""
    # made on the device, in float32 or wider: this runs in every layer
    dtype = torch.promote_types(like.dtype, torch.float32)
    x = torch.arange(side, dtype=dtype, device=like.device)
    return (-0.5 * ((x[:, None] - x) / sigma).square()).softmax(-1).to(like.dtype)
